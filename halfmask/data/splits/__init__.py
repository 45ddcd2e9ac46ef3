"""Decide which images are labeled, unlabeled and for validation.

Reading order: `split` (published lists, own lists), `drawing` (a seeded draw), `verify` with `stamps` (are all files
whole?), `copies` (the same image in two lists), `weak` (tags and pseudo-masks of unlabeled images), `opening` (all that
is wrong, at once).
"""
