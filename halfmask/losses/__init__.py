"""Losses of labeled and unlabeled pixels.

Reading order: `cross_entropy` (labels, pseudo-labels, hard pixels, dice), `consistency` (distances between two
predictions), `class_weights`; then the same losses without full-size logits: `upsampled`, and `auxiliary_heads` for
many decoders at once.
"""
