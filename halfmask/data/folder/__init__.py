"""Files of images and masks in a folder of the user's own.

Reading order: `layouts` with `folder_names` (which folders hold what), `pairing` and `beside` (which mask is whose),
`pairs` (images of two dates), `lists` (split lists), `description` with `class_lines` (halfmask.yaml and class files),
`files` (what datasets of image and mask files share), `images/` and `masks/` (reading their pixels).
"""
