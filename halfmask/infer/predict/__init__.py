"""From images to mask files.

Reading order: `predict` (a folder, a pattern, one file), `inputs` (which images), `tiles` (how a large image is cut),
`tiled` (one large image), `outputs` (the files that are written).
"""
