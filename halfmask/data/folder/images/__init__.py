"""Read the pixels of images.

Reading order: `decode` (a whole image), `rasters` (rows of images of any size),
`ground` (where pixels lie on Earth).
"""
