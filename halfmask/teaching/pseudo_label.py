"""Hard pseudo-labels with their confidence, and what is logged about them."""

from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from halfmask.models.coarse_logits import CoarseLogits, top_class

_RANGES = "pseudo/confidence_range/"  # logs of one family: a histogram, one number per range
_EDGES = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)


def pseudo_label(logits: Float[Tensor, "B K *S"] | CoarseLogits) -> tuple[Int[Tensor, "B *S"], Float[Tensor, "B *S"]]:
    """Return the most probable class and its probability, without gradient.

    The full softmax map is never made (`halfmask.models.coarse_logits`). The probability is float32 even under bfloat16
    autocast, whose spacing of 0.004 near 1 is too coarse for a threshold of 0.95. (float64 stays float64.)

    >>> label, confidence = pseudo_label(torch.tensor([[0.0, 0.0, 2.0]]))
    >>> label.item(), round(confidence.item(), 4)
    (2, 0.787)
    """
    return logits.top() if isinstance(logits, CoarseLogits) else top_class(logits.detach())


@torch.no_grad()
def pseudo_logs(
    label: Int[Tensor, "B *S"],
    confidence: Float[Tensor, "B *S"],
    keep: Bool[Tensor, "B *S"],
    valid: Bool[Tensor, "B *S"],
    classes: int,
) -> dict[str, Tensor]:
    """Measure the coverage, the class shares and the confidence of the pseudo-labels.

    Args:
        label: pseudo-labels before any mixing; any value where `valid` is False.
        confidence: of the labels.
        keep: pixels whose pseudo-label enters the loss.
        valid: real pixels.
        classes: K.

    Returns:
        `pseudo/coverage`: kept pixels / valid pixels (0-d); `pseudo/coverage_by_class`: the same among the pixels
        labeled with each class (K,), 0 where there are none; `pseudo/share`: each class's part of the
        pseudo-labels (K,). One class taking over the share is how self-training collapses.
        `pseudo/confidence_by_class`: mean over the pixels labeled with each class (K,), NaN where there are none.
        `pseudo/confidence_range/0.95-0.98` and six more (0-d): the part of the valid pixels whose confidence is at
        least 0.95 and below 0.98; their sum is 1 where any pixel is valid. The sum of the ranges above a threshold is
        the coverage that it would give.

    >>> label, everywhere = torch.tensor([0, 1, 1, 1]), torch.ones(4, dtype=torch.bool)
    >>> confidence = torch.tensor([0.5, 0.96, 0.97, 0.98])
    >>> logs = pseudo_logs(label, confidence, confidence >= 0.97, everywhere, 2)
    >>> logs["pseudo/coverage_by_class"], logs["pseudo/confidence_by_class"]
    (tensor([0.0000, 0.6667]), tensor([0.5000, 0.9700]))
    >>> logs["pseudo/confidence_range/0.95-0.98"]
    tensor(0.5000)
    """
    labeled = _sum_by_class(label, valid, classes)
    kept = _sum_by_class(label, keep & valid, classes)
    confidence_sum = _sum_by_class(label, valid, classes, confidence)
    total = labeled.sum().clamp_min(1)
    # Compared with each edge: cheaper than sorting into bins, and no table of edges has to reach the device.
    above = [labeled.sum(), *(((confidence >= edge) & valid).sum() for edge in _EDGES[1:-1]), labeled.new_zeros(())]
    ranges = {
        f"{_RANGES}{low:.2f}-{high:.2f}": (above[number] - above[number + 1]) / total
        for number, (low, high) in enumerate(pairwise(_EDGES))
    }
    return {
        "pseudo/coverage": kept.sum() / total,
        "pseudo/coverage_by_class": kept / labeled.clamp_min(1),
        "pseudo/share": labeled / total,
        "pseudo/confidence_by_class": confidence_sum / labeled,
        **ranges,
    }


def confidence_range(name: str) -> str | None:
    """Return the range that a log counts; `None` for other logs, and for those of one of several domains.

    >>> confidence_range("pseudo/confidence_range/0.95-0.98"), confidence_range("pseudo/confidence_range/a/0.95-0.98")
    ('0.95-0.98', None)
    """
    inside = name.removeprefix(_RANGES)
    return None if inside == name or "/" in inside else inside


@torch.no_grad()
def agreement(
    logits: Float[Tensor, "B K *S"] | CoarseLogits, label: Int[Tensor, "B *S"], valid: Bool[Tensor, "B *S"]
) -> Float[Tensor, ""]:
    """Return the part of the valid pixels where the student's class equals the pseudo-label."""
    # max, not argmax: several times faster on a CPU.
    best = logits.top()[0] if isinstance(logits, CoarseLogits) else logits.max(1).indices
    same = (best == label) & valid
    return same.sum() / valid.sum().clamp_min(1)


def _sum_by_class(label: Tensor, mask: Tensor, classes: int, value: Tensor | None = None) -> Tensor:
    # Of ones or of `value`, per image row and then over rows: few writes meet in one cell. `bincount` reads its size on
    # the host, and comparing with every class costs K times the memory.
    label = label.masked_fill(~mask, classes).reshape(-1, label.shape[-1])
    value = torch.ones_like(label, dtype=torch.int32) if value is None else value.reshape(label.shape)
    sums = value.new_zeros(label.shape[0], classes + 1)
    return sums.scatter_add_(1, label, value).sum(0)[:classes]  # (K,), int64 or the type of `value`
