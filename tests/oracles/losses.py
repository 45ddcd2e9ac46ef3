"""Losses in their textbook form: full softmax, boolean selection, a sort where the k-th value is needed."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, target: Tensor, ignore_index: int = 255, *, weight: Tensor | None = None) -> Tensor:
    """Mean of -log p(true class) over labeled pixels, weighted by class; (B, K, *S) logits, (B, *S) labels."""
    logits = _full_precision(logits)
    flat = logits.movedim(1, -1)[target != ignore_index]  # (N, K)
    labels = target[target != ignore_index].long()
    if len(labels) == 0:
        return logits.sum() * 0
    loss = -flat.log_softmax(-1)[torch.arange(len(labels), device=labels.device), labels]
    if weight is None:
        return loss.mean()
    return (loss * weight[labels]).sum() / weight[labels].sum()


def masked_cross_entropy(logits: Tensor, target: Tensor, keep: Tensor, denominator: Tensor) -> Tensor:
    """Sum of -log p(pseudo-label) over kept pixels, divided by the count of another mask."""
    flat, labels = _full_precision(logits).movedim(1, -1)[keep], target[keep].long()
    return -flat.log_softmax(-1)[torch.arange(len(labels), device=labels.device), labels].sum() / max(
        int(denominator.sum()), 1
    )


def hard_pixels(logits: Tensor, target: Tensor, *, threshold: float, min_kept: int, ignore_index: int = 255) -> Tensor:
    """Pixels whose true class is improbable, found by sorting all probabilities: a mask of the target's shape."""
    valid = (target != ignore_index).flatten()
    labels = target.flatten().masked_fill(~valid, 0).long()
    flat = _full_precision(logits.detach()).movedim(1, -1).flatten(0, -2)  # (N, K)
    probability = flat.softmax(-1)[torch.arange(len(labels), device=labels.device), labels]
    probability[~valid] = 1
    keep = valid
    if 0 < min_kept <= int(valid.sum()):
        ordered = probability[probability.argsort()]
        keep = valid & (probability <= max(threshold, float(ordered[min_kept - 1])))
    return keep.view(target.shape)


def ohem_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    threshold: float,
    min_kept: int,
    ignore_index: int = 255,
    nan_on_empty: bool = False,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean of -log p over the hard pixels."""
    keep = hard_pixels(logits, target, threshold=threshold, min_kept=min_kept, ignore_index=ignore_index)
    if nan_on_empty and not keep.any():
        return logits.sum() * torch.nan
    return cross_entropy(logits, target.masked_fill(~keep, ignore_index), ignore_index, weight=weight)


def bootstrapped_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    threshold: float,
    min_kept: int = 1,
    ignore_index: int = 255,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean of -log p over the pixels that are not learned yet, found by sorting all labeled ones."""
    valid = target != ignore_index
    flat, labels = _full_precision(logits.detach()).movedim(1, -1)[valid], target[valid].long()
    probability = flat.softmax(-1)[torch.arange(len(labels), device=labels.device), labels]
    keep = valid.clone()
    if len(labels):
        ordered = probability.sort().values
        limit = max(threshold, float(ordered[min(min_kept * len(logits), len(labels) - 1)]))
        keep[valid] = probability < limit
    return cross_entropy(logits, target.masked_fill(~keep, ignore_index), ignore_index, weight=weight)


def upsampled_cross_entropy(
    logits: Tensor, target: Tensor, align_corners: bool, ignore_index: int = 255, weight: Tensor | None = None
) -> Tensor:
    """Upsample (B, K, h, w) logits to the size of the (B, H, W) labels, then average each pixel's cross-entropy."""
    whole = F.interpolate(logits, size=target.shape[-2:], mode="bilinear", align_corners=align_corners)
    loss = F.cross_entropy(whole, target.long(), ignore_index=ignore_index, reduction="none")
    return (loss if weight is None else loss * weight).sum() / (target != ignore_index).sum().clamp_min(1)


def _full_precision(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
