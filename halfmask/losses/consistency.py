"""Distances between the predictions of auxiliary decoders and a fixed target distribution.

Ouali et al., "Semi-Supervised Semantic Segmentation with Cross-Consistency Training", CVPR 2020, arXiv:2003.09005.
With s = softmax of an auxiliary decoder, t = target (constant), both over K classes, m = (s + t) / 2, per pixel:

    mse           sum_k (s - t)^2
    kl            sum_k t (log t - log s)
    js            1/2 sum_k [s (log s - log m) + t (log t - log m)]              Jensen-Shannon divergence
    js_official   1/2 sum_k [m (log m - log s) + m (log m - log(t + 1e-5))]      CCT's code: arguments reversed

averaged over valid pixels *and classes*: with 21 classes a weight of 30 is about 1.4 per pixel. Confidence masking
keeps the pixels with max t > threshold; then mse averages over kept pixels and classes, kl divides the sum over kept
pixels by the number of all valid pixels (about K times more than unmasked), and js ignores it, all as in CCT's code.

Rows are pixels in any order, classes last: no term looks at neighbors, so an order that is cheap to make will do.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Distance = Literal["mse", "kl", "js", "js_official"]


class Objective(NamedTuple):
    """What every auxiliary decoder is compared with, and how the terms are weighted.

    Args:
        distance: name.
        target: t.
        pixels: weight of each pixel's distance: 1 / denominator where it counts, else 0.
        unlabeled_weight: factor of the distance.
        label: pseudo-labels from elsewhere, for the cross-entropy of every decoder; or `None`.
        labeled_pixels: weight of each pixel's cross-entropy: 1 / number of labeled pixels, else 0.
        weak_weight: factor of the cross-entropy.
        pair_mean: mean prediction of the decoders in the pair-wise term, or `None`.
        pair_pixels: weight of each pixel's pair-wise term.
        pair_weight: factor of the pair-wise term.
    """

    distance: Distance
    target: Float[Tensor, "R K"]
    pixels: Float[Tensor, " R"]
    unlabeled_weight: float = 1.0
    label: Int[Tensor, " R"] | None = None
    labeled_pixels: Float[Tensor, " R"] | None = None
    weak_weight: float = 0.0
    pair_mean: Float[Tensor, "R K"] | None = None
    pair_pixels: Float[Tensor, " R"] | None = None
    pair_weight: float = 0.0


class Terms(NamedTuple):
    """Distance, cross-entropy with pseudo-labels and pair-wise term, without their factors."""

    distance: Float[Tensor, ""]
    weak: Float[Tensor, ""]
    pair: Float[Tensor, ""]


def pixel_weight(
    distance: Distance,
    classes: int,
    valid: Bool[Tensor, "*R"],
    keep: Bool[Tensor, "*R"] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "*R"]:
    """Return each pixel's part in the mean, for the named distance; all 0 where nothing counts.

    Args:
        distance: name.
        classes: K.
        valid: real pixels.
        keep: those among them whose target is confident enough; `None`: no confidence masking.
        dtype: of the result.
    """
    if keep is None or distance not in ("mse", "kl"):
        return valid.to(dtype) / (classes * valid.sum()).clamp_min(1)
    keep = keep & valid
    denominator = classes * keep.sum() if distance == "mse" else valid.sum()
    return keep.to(dtype) / denominator.clamp_min(1)


def consistency_loss(
    logits: Float[Tensor, "B K *S"],
    target: Float[Tensor, "B K *S"],
    valid: Bool[Tensor, "B *S"] | None = None,
    *,
    distance: Distance = "mse",
    threshold: float | None = None,
) -> Float[Tensor, ""]:
    """Average the distance of one decoder's softmax to a target distribution.

    Args:
        logits: of the auxiliary decoder.
        target: probabilities; no gradient flows into them.
        valid: real pixels; `None` = all.
        distance: name.
        threshold: of confidence masking; `None`: all valid pixels count.

    >>> uniform = torch.full((1, 2, 3), 0.5)
    >>> round(consistency_loss(torch.zeros(1, 2, 3), uniform).item(), 4)
    0.0
    """
    rows, target_rows = logits.movedim(1, -1).flatten(0, -2), target.detach().movedim(1, -1).flatten(0, -2)
    real = torch.ones_like(rows[:, 0], dtype=torch.bool) if valid is None else valid.flatten()
    keep = None if threshold is None else target_rows.max(1).values > threshold
    pixels = row_distance(distance, _full_precision(rows)[None], _full_precision(target_rows))[0]
    return pixels @ pixel_weight(distance, rows.shape[1], real, keep, pixels.dtype)


def row_distance(
    distance: Distance, logits: Float[Tensor, "G R K"], target: Float[Tensor, "R K"]
) -> Float[Tensor, "G R"]:
    """Return each pixel's distance, summed over classes, for several decoders."""
    if distance == "mse":
        return (logits.softmax(-1) - target).square_().sum(-1)
    log_s = logits.log_softmax(-1)
    if distance == "kl":
        return torch.xlogy(target, target).sum(-1) - (target * log_s).sum(-1)
    s = log_s.exp()
    m = (s + target) / 2
    log_m = m.clamp_min(torch.finfo(m.dtype).tiny).log()  # 0 log 0 = 0, without an infinite gradient
    if distance == "js":
        return (s * (log_s - log_m) + torch.xlogy(target, target) - target * log_m).sum(-1) / 2
    return (m * (2 * log_m - log_s - (target + 1e-5).log())).sum(-1) / 2


def weighted_terms(
    logits: Float[Tensor, "G R K"], objective: Objective, share: Float[Tensor, " G"], paired: Float[Tensor, " G"]
) -> tuple[Float[Tensor, ""], Terms]:
    """Sum the terms of a group of decoders.

    The variance of the pair-wise term falls apart into decoders: with the mean m of their predictions held constant,
    sum_k (s_k - m)^2 / n has the value and the gradient of the variance, because sum_k (s_k - m) = 0.

    Args:
        logits: of the group.
        objective: what to compare with.
        share: weight of each decoder in the mean over decoders.
        paired: weight of each decoder in the pair-wise term; 0 for those outside.

    Returns:
        The weighted sum that teaches, and the terms without their factors.
    """
    logits = _full_precision(logits)
    zero = logits.new_zeros(())
    distance = (row_distance(objective.distance, logits, objective.target) @ objective.pixels) @ share
    weak, pair = zero, zero
    if objective.label is not None and objective.labeled_pixels is not None:
        index = objective.label.expand(len(logits), -1)[..., None]
        log_p = logits.gather(-1, index)[..., 0] - logits.logsumexp(-1)
        weak = -(log_p @ objective.labeled_pixels) @ share
    if objective.pair_mean is not None and objective.pair_pixels is not None:
        spread = (logits.softmax(-1) - objective.pair_mean).square().sum(-1)
        pair = (spread @ objective.pair_pixels) @ paired
    total = objective.unlabeled_weight * distance + objective.weak_weight * weak + objective.pair_weight * pair
    return total, Terms(distance, weak, pair)


def pairwise_loss(probability: Float[Tensor, "n B K *S"]) -> Float[Tensor, ""]:
    """Return the variance of several decoders' predictions, summed over classes, averaged over pixels.

    The biased variance of CCT's code (there over 8 randomly chosen decoders). In that code the term is added to the
    logged number only and never reaches the optimizer.
    """
    return probability.var(0, unbiased=False).sum(1).mean()


def _full_precision(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
