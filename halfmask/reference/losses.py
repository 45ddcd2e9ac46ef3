"""Losses in their textbook form: full softmax, boolean selection, a sort where the k-th value is needed."""

import torch
from torch import Tensor


def cross_entropy(logits: Tensor, target: Tensor, ignore_index: int = 255) -> Tensor:
    """Mean of -log p(true class) over labeled pixels; (B, K, *S) logits, (B, *S) labels."""
    flat = logits.movedim(1, -1)[target != ignore_index]  # (N, K)
    labels = target[target != ignore_index]
    if len(labels) == 0:
        return logits.sum() * 0
    return -flat.log_softmax(-1)[torch.arange(len(labels)), labels].mean()


def masked_cross_entropy(logits: Tensor, target: Tensor, keep: Tensor, denominator: Tensor) -> Tensor:
    """Sum of -log p(pseudo-label) over kept pixels, divided by the count of another mask."""
    flat, labels = logits.movedim(1, -1)[keep], target[keep]
    return -flat.log_softmax(-1)[torch.arange(len(labels)), labels].sum() / max(int(denominator.sum()), 1)


def ohem_cross_entropy(
    logits: Tensor, target: Tensor, *, threshold: float, min_kept: int, ignore_index: int = 255
) -> Tensor:
    """Mean of -log p over the hard pixels, found by sorting all probabilities."""
    valid = (target != ignore_index).flatten()
    flat = logits.movedim(1, -1).flatten(0, -2)  # (N, K)
    labels = target.flatten().masked_fill(~valid, 0)
    probability = flat.softmax(-1)[torch.arange(len(labels)), labels].detach()
    probability[~valid] = 1
    keep = valid
    if 0 < min_kept <= int(valid.sum()):
        ordered = probability[probability.argsort()]
        keep = valid & (probability <= max(threshold, float(ordered[min_kept - 1])))
    if not keep.any():
        return logits.sum() * 0
    return -flat.log_softmax(-1)[torch.arange(len(labels)), labels][keep].mean()
