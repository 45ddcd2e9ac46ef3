"""Losses of labeled and unlabeled pixels.

Reading order: `cross_entropy` (labels, pseudo-labels, hard pixels, dice, weights of classes), `pseudo_labels` (what a
sum over unlabeled pixels is divided by, sets of classes), `consistency` (distances between two predictions), `contrast`
and `rank` (embeddings); then the same losses without full-size logits: `upsampled`, and `auxiliary_heads` for many
decoders at once.
"""
