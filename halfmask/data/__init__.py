"""Data: from files on disk to batches on the device.

Reading order: `contract` (what a dataset is), `datasets` (one file each), `folder` (how files on disk are read),
`splits` (which images are labeled, unlabeled, for validation), `loading` (from ids to batches), `check` (what is wrong
with the files), `annotations` and `convert` (formats of other tools).
"""
