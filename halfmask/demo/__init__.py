"""The demonstration: render still lifes, train with and without the unlabeled ones, and compare.

Reading order: `run` (the whole), `dataset` (images and masks on disk), `scene`, `shapes` and `backdrop` (what is seen),
`render` with `noise` (from a scene to pixels), `figure` and `page` (the comparison).
"""
