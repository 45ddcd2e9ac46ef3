"""Losses in their textbook form: full softmax, boolean selection, a sort where the k-th value is needed."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, target: Tensor, ignore_index: int = 255) -> Tensor:
    """Mean of -log p(true class) over labeled pixels; (B, K, *S) logits, (B, *S) labels."""
    flat = logits.movedim(1, -1)[target != ignore_index]  # (N, K)
    labels = target[target != ignore_index]
    if len(labels) == 0:
        return logits.sum() * 0
    return -flat.log_softmax(-1)[torch.arange(len(labels), device=labels.device), labels].mean()


def masked_cross_entropy(logits: Tensor, target: Tensor, keep: Tensor, denominator: Tensor) -> Tensor:
    """Sum of -log p(pseudo-label) over kept pixels, divided by the count of another mask."""
    flat, labels = logits.movedim(1, -1)[keep], target[keep]
    return -flat.log_softmax(-1)[torch.arange(len(labels), device=labels.device), labels].sum() / max(
        int(denominator.sum()), 1
    )


def hard_pixels(logits: Tensor, target: Tensor, *, threshold: float, min_kept: int, ignore_index: int = 255) -> Tensor:
    """Pixels whose true class is improbable, found by sorting all probabilities: a mask of the target's shape."""
    valid = (target != ignore_index).flatten()
    labels = target.flatten().masked_fill(~valid, 0)
    flat = logits.detach().movedim(1, -1).flatten(0, -2)  # (N, K)
    probability = flat.softmax(-1)[torch.arange(len(labels), device=labels.device), labels]
    probability[~valid] = 1
    keep = valid
    if 0 < min_kept <= int(valid.sum()):
        ordered = probability[probability.argsort()]
        keep = valid & (probability <= max(threshold, float(ordered[min_kept - 1])))
    return keep.view(target.shape)


def ohem_cross_entropy(
    logits: Tensor, target: Tensor, *, threshold: float, min_kept: int, ignore_index: int = 255
) -> Tensor:
    """Mean of -log p over the hard pixels."""
    keep = hard_pixels(logits, target, threshold=threshold, min_kept=min_kept, ignore_index=ignore_index)
    return cross_entropy(logits, target.masked_fill(~keep, ignore_index), ignore_index)


def upsampled_cross_entropy(
    logits: Tensor, target: Tensor, align_corners: bool, ignore_index: int = 255, weight: Tensor | None = None
) -> Tensor:
    """Upsample (B, K, h, w) logits to the size of the (B, H, W) labels, then average each pixel's cross-entropy."""
    whole = F.interpolate(logits, size=target.shape[-2:], mode="bilinear", align_corners=align_corners)
    loss = F.cross_entropy(whole, target.long(), ignore_index=ignore_index, reduction="none")
    return (loss if weight is None else loss * weight).sum() / (target != ignore_index).sum().clamp_min(1)
