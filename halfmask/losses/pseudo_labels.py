"""Losses of unlabeled pixels, with the divisors that published methods use.

A sum over pixels has to be divided by something, and papers differ: the choice decides how much an unsure batch
teaches. With k = 1 for kept pixels, w their weights, N = B H W:

    valid     sum w l / number of valid pixels            UniMatch, CCVC: an unsure batch teaches less
    all       sum w l / N                                 AugSeg: also divided by ignored and padded pixels
    kept      sum w l / sum k                             CPS, PS-MT: a mean, however few pixels are kept
    scaled    (sum w l / sum k) * (N / sum k)             U2PL: fewer kept pixels teach more each
    weight    sum w l / sum over all pixels of w          GTA-Seg, AEL

All compute in float32 (float64 stays float64), never visit the host, and give 0 with a graph where nothing is kept.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from halfmask.losses.cross_entropy import masked_cross_entropy, summed_weighted_cross_entropy
from halfmask.models.coarse_logits import CoarseLogits, full

Divisor = Literal["valid", "all", "kept", "scaled", "weight"]


def pseudo_label_loss(
    logits: Float[Tensor, "B K *S"] | CoarseLogits,
    label: Int[Tensor, "B *S"],
    keep: Bool[Tensor, "B *S"],
    *,
    valid: Bool[Tensor, "B *S"],
    divisor: Divisor = "valid",
    weight: Float[Tensor, "B *S"] | None = None,
) -> Float[Tensor, ""]:
    """Compute the cross-entropy of kept pixels, with the named divisor of the module's table.

    Args:
        logits: of the student.
        label: pseudo-labels; any value where `keep` is False.
        keep: pixels that teach.
        valid: real pixels, for the divisor `valid`.
        divisor: see the table.
        weight: w of each pixel; default 1. The divisor `weight` sums it over all pixels, also those not kept.

    >>> keep = torch.tensor([[True, False, False, False]])
    >>> valid = torch.tensor([[True, True, False, False]])
    >>> logits, label = torch.zeros(1, 4, 4), torch.zeros(1, 4).long()
    >>> [
    ...     round(pseudo_label_loss(logits, label, keep, valid=valid, divisor=divisor).item(), 4)
    ...     for divisor in ("valid", "all", "kept", "scaled")
    ... ]
    [0.6931, 0.3466, 1.3863, 5.5452]
    """
    if weight is None:
        loss = masked_cross_entropy(logits, label, keep, keep)  # the mean over kept pixels
        kept, total = keep.sum(), None
    else:
        loss = summed_weighted_cross_entropy(logits, label, weight.masked_fill(~keep, 0.0))
        kept, total = keep.sum(), weight.sum()
        loss = loss / kept.clamp_min(1)
    if divisor == "kept":
        return loss
    if divisor == "valid":
        return loss * (kept / valid.sum().clamp_min(1))
    if divisor == "all":
        return loss * (kept / keep.numel())
    if divisor == "scaled":
        return loss * (keep.numel() / kept.clamp_min(1))
    return loss * (kept / (kept if total is None else total).clamp_min(1e-12))


def probability_distance(
    logits: Float[Tensor, "B K *S"] | CoarseLogits, target: Float[Tensor, "B K *S"], weight: Float[Tensor, "B *S"]
) -> Float[Tensor, ""]:
    """Average weight * squared distance of two distributions, summed over classes, over all pixels.

    Args:
        logits: of the student.
        target: probabilities; no gradient flows into them.
        weight: of each pixel.
    """
    logits = full(logits)
    probability = (logits if logits.dtype == torch.float64 else logits.float()).softmax(1)
    distance = (probability - target.detach()).square().sum(1)
    return (distance * weight).mean()


FuzzyWeight = Literal["none", "linear", "convex", "concave"]


def fuzzy_positives(
    teacher: Float[Tensor, "B K *S"], *, most: int, threshold: float
) -> tuple[Bool[Tensor, "B K *S"], Float[Tensor, "B *S"], Float[Tensor, "B *S"]]:
    """Choose the few top classes of each pixel, one of which is surely right (Qiao et al., FPL, CVPR 2023, eq. 3).

    With probabilities sorted p_1 >= p_2 >= ... and their sums c_i: n is the smallest number below `most` with
    c_(n+1) >= threshold, else `most`.

    Args:
        teacher: logits.
        most: largest number of positive classes.
        threshold: T, the probability that positives and the next class reach together.

    Returns:
        The positive classes; m = c_(n+1) / (n + 1), mean probability down to the best class left out; b = p_(n+1).
    """
    probability, order = teacher.softmax(1).topk(most + 1, dim=1)  # sorted; (B, most + 1, *S)
    total = probability.cumsum(1)
    # Sums grow, so counting those still too small finds the smallest n; the last one always counts as reached.
    small = (total[:, 1:most] < threshold).sum(1, keepdim=True)  # (B, 1, *S), n - 1
    count = small + 1
    ranks = torch.arange(most, device=teacher.device).view(-1, *[1] * (teacher.ndim - 2))
    positive = torch.zeros_like(teacher, dtype=torch.bool).scatter_(1, order[:, :most], ranks < count)
    mean = total.gather(1, count) / (count + 1)
    return positive, mean.squeeze(1), probability.gather(1, count).squeeze(1)


def fuzzy_loss(logits: Float[Tensor, "B K *S"], positive: Bool[Tensor, "B K *S"]) -> Float[Tensor, "B *S"]:
    """Compute log(1 + sum over positives of e^-s * sum over the others of e^s) of each pixel (FPL, eq. 6).

    One positive class gives the cross-entropy, up to the form of the sum.
    """
    low = -logits.masked_fill(~positive, float("inf"))
    high = logits.masked_fill(positive, float("-inf"))
    return F.softplus(low.logsumexp(1) + high.logsumexp(1))


def fuzzy_weight(
    kind: FuzzyWeight, mean: Float[Tensor, "B *S"], best_left_out: Float[Tensor, "B *S"]
) -> Float[Tensor, "B *S"]:
    """Weight a pixel by how clearly its positives stand above the best class left out (FPL, section 3.4)."""
    gap = mean - best_left_out
    if kind == "linear":
        return gap / mean
    if kind == "convex":
        return gap / (mean + best_left_out)
    if kind == "concave":
        return torch.log1p(50 * gap) / torch.log1p(50 * mean)
    return torch.ones_like(mean)
