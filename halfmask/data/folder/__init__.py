"""Files of images and masks in a folder.

Reading order: `layouts` (which folders hold what), `description` (halfmask.yaml and class files), `files` and `pairs`
(which mask belongs to which image), `images` and `masks` (decoding), `mask_forms` and `mask_layers` (do masks agree
with one another), `ids` (the table of ids that results carry), `ground` (coordinates), `rasters` and `geotiff` (images
of any size).
"""
