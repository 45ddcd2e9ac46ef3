"""Which pseudo-labels teach: thresholds that follow the batch.

A fixed confidence threshold keeps few pixels early and nearly all late. Methods of the U2PL family keep a share of the
pixels instead: those whose entropy, or whose confidence, is on the right side of a percentile of the batch.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def masked_percentile(values: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"], percent: float) -> Float[Tensor, ""]:
    """Return a percentile of the values where the mask is True, interpolated as NumPy does; NaN where it is nowhere.

    Args:
        values: any numbers.
        mask: values that count.
        percent: 0 to 100.

    >>> masked_percentile(torch.tensor([1.0, 2.0, 3.0, 99.0]), torch.tensor([True, True, True, False]), 75.0).item()
    2.5
    """
    ordered = values.masked_fill(~mask, torch.inf).flatten().sort().values
    count = mask.sum()
    place = (count - 1).clamp_min(0) * (percent / 100)
    below = place.floor().long()
    above = torch.minimum(below + 1, (count - 1).clamp_min(0))
    low, high = ordered[below[None]][0], ordered[above[None]][0]
    found = low.double() + (high.double() - low.double()) * (place - below)
    return torch.where(count > 0, found, torch.nan).to(values.dtype)


def entropy(logits: Float[Tensor, "B K *S"]) -> Float[Tensor, "B *S"]:
    """Compute the entropy of the softmax of each pixel, in nats."""
    log_p = logits.float().log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def kth_true(mask: Bool[Tensor, " N"], k: Int[Tensor, " M"]) -> Int[Tensor, " M"]:
    """Return the places of the k-th True entries, counted from 0; some place if there are fewer.

    >>> kth_true(torch.tensor([False, True, True, False, True]), torch.tensor([0, 2])).tolist()
    [1, 4]
    """
    return torch.searchsorted(mask.cumsum(0), k + 1).clamp(max=len(mask) - 1)


def drawn_true(mask: Bool[Tensor, " N"], count: int) -> Int[Tensor, " count"]:
    """Draw the places of `count` True entries, with replacement, without asking the device how many there are."""
    draws = torch.rand(count, device=mask.device, dtype=torch.float64)
    return kth_true(mask, (draws * mask.sum()).long())
