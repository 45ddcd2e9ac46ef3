"""Supervised and pseudo-label losses.

All of them compute in float32 (float64 stays float64), never visit the host, and give 0 with a graph and a zero
gradient where nothing is left to learn from. Targets are int64 labels; `ignore_index` marks unknown ones.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import BeforeValidator, Field
from torch import Tensor

from halfmask.losses.upsampled import summed_cross_entropy
from halfmask.models.coarse_logits import CoarseLogits, full
from halfmask.recipe.sections import Section

_SKIP = -100  # label of pixels left out; never a class
_LARGEST_RATIO = 100.0  # of the weights of two classes


class Ohem(Section):
    """Cross-entropy of the hard pixels, with the numbers of `ohem_cross_entropy`.

    Args:
        threshold: pixels whose true class has at most this probability are hard.
        min_kept: hard pixels to keep at least, per process and batch.
    """

    name: Literal["ohem"] = "ohem"
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.7
    min_kept: Annotated[int, Field(ge=0)] = 200_000


def _with_defaults(value: object) -> object:
    return Ohem() if value == "ohem" else value


# Argument `loss` of methods. A recipe says `ce`, `ohem`, or `{name: ohem, threshold: 0.7, min_kept: 200000}`.
LabeledLoss = Annotated[Literal["ce", "ohem"] | Ohem, BeforeValidator(_with_defaults)]


def cross_entropy(
    logits: Float[Tensor, "B K *S"] | CoarseLogits,
    target: Int[Tensor, "B *S"],
    ignore_index: int = 255,
    *,
    weight: Float[Tensor, " K"] | None = None,
) -> Float[Tensor, ""]:
    """Average the cross-entropy over labeled pixels; 0 if there are none.

    With weights of the classes it is the weighted mean: sum w_y l / sum w_y.

    >>> logits = torch.zeros(1, 4, 2)
    >>> round(cross_entropy(logits, torch.tensor([[3, 255]])).item(), 4)
    1.3863
    >>> cross_entropy(logits, torch.tensor([[255, 255]])).item()
    0.0
    """
    keep, weights = target != ignore_index, _weight_of(target, weight)
    if isinstance(logits, CoarseLogits):
        total = _streamed_sum(logits, target, ignore_index, weights)
        return total / (keep.sum().clamp_min(1) if weights is None else _sum_of(weights, keep))
    return _mean(_pixel_loss(logits, target, ignore_index), keep, weights)


def masked_cross_entropy(
    logits: Float[Tensor, "B K *S"] | CoarseLogits,
    target: Int[Tensor, "B *S"],
    keep: Bool[Tensor, "B *S"],
    denominator: Bool[Tensor, "B *S"],
) -> Float[Tensor, ""]:
    """Sum the cross-entropy over kept pixels and divide by the number of pixels in another mask.

    Args:
        logits: of the student.
        target: pseudo-labels; any value where `keep` is False.
        keep: pixels that teach.
        denominator: pixels to divide by. All valid ones, as FixMatch does, make an unsure batch teach less; `keep`
            itself gives the mean over kept pixels.

    >>> keep = torch.tensor([[True, False]])
    >>> loss = masked_cross_entropy(torch.zeros(1, 4, 2), torch.tensor([[3, 0]]), keep, torch.ones_like(keep))
    >>> round(loss.item(), 4)
    0.6931
    """
    target = target.masked_fill(~keep, _SKIP)
    if isinstance(logits, CoarseLogits):
        total = _streamed_sum(logits, target, _SKIP)
    else:
        total = _pixel_loss(logits, target, _SKIP).sum()
    return total / denominator.sum().clamp_min(1)


def ohem_cross_entropy(
    logits: Float[Tensor, "B K *S"] | CoarseLogits,
    target: Int[Tensor, "B *S"],
    *,
    threshold: float,
    min_kept: int,
    ignore_index: int = 255,
    nan_on_empty: bool = False,
    weight: Float[Tensor, " K"] | None = None,
) -> Float[Tensor, ""]:
    """Average the cross-entropy over hard pixels (online hard example mining).

    Shrivastava et al., CVPR 2016, in the per-pixel form that semantic segmentation code uses: with p the
    probability of the true class, keep the pixels with p <= max(threshold, p_(min_kept)), where p_(k) is the k-th
    smallest over all pixels and ignored ones count as p = 1. Fewer labeled pixels than `min_kept`, or
    `min_kept = 0`: all labeled pixels are kept.

    Args:
        logits: of the student.
        target: labels.
        threshold: pixels at or below this probability are hard.
        min_kept: keep at least so many pixels of the batch of one process.
        ignore_index: label of unknown pixels.
        nan_on_empty: give NaN instead of 0 where no pixel is labeled, as the plain mean of published code does.
        weight: of each class in the mean; which pixels are hard does not depend on it.
    """
    loss = _pixel_loss(logits, target, ignore_index)
    keep = hard_pixels(loss, target != ignore_index, threshold=threshold, min_kept=min_kept)
    if nan_on_empty:
        return loss.masked_fill(~keep, 0.0).sum() / keep.sum()
    return _mean(loss, keep, _weight_of(target, weight))


def bootstrapped_cross_entropy(
    logits: Float[Tensor, "B K *S"] | CoarseLogits,
    target: Int[Tensor, "B *S"],
    *,
    threshold: float,
    min_kept: int = 1,
    ignore_index: int = 255,
    weight: Float[Tensor, " K"] | None = None,
) -> Float[Tensor, ""]:
    """Average the cross-entropy over pixels that are not learned yet (annealed bootstrapped CE of CCT).

    Ouali et al., CVPR 2020, arXiv:2003.09005; the threshold rises during training. With p the probability of the true
    class of the n labeled pixels in rising order, keep p < max(threshold, p[min(min_kept B, n - 1)]), strictly.

    Args:
        logits: of the student.
        target: labels.
        threshold: eta; pixels whose true class has a smaller probability are kept.
        min_kept: about so many pixels per image are kept in any case.
        ignore_index: label of unknown pixels.
        weight: of each class in the mean.

    >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]])
    >>> loss = bootstrapped_cross_entropy(logits, torch.tensor([[0, 0]]), threshold=0.6)
    >>> round(loss.item(), 4)
    0.6931
    """
    loss = _pixel_loss(logits, target, ignore_index)
    valid = target != ignore_index
    probability = torch.exp(-loss.detach()).masked_fill(~valid, torch.inf).flatten()
    rank = min(min_kept * len(logits), probability.numel() - 1)
    smallest = probability.topk(rank + 1, largest=False, sorted=True).values
    at = smallest.gather(0, (valid.sum() - 1).clamp(0, rank)[None])
    keep = valid & (probability.view_as(loss) < at.clamp_min(threshold))
    return _mean(loss, keep, _weight_of(target, weight))


def hard_pixels(
    loss: Float[Tensor, "B *S"], valid: Bool[Tensor, "B *S"], *, threshold: float, min_kept: int
) -> Bool[Tensor, "B *S"]:
    """Choose the pixels that `ohem_cross_entropy` keeps, by the k-th smallest probability instead of a sort.

    Args:
        loss: cross-entropy of each pixel, -log p.
        valid: labeled pixels.
        threshold: see `ohem_cross_entropy`.
        min_kept: likewise.

    >>> loss, valid = torch.tensor([[0.1, 3.0, 2.0]]), torch.tensor([[True, True, True]])
    >>> hard_pixels(loss, valid, threshold=0.06, min_kept=1)
    tensor([[False,  True, False]])
    """
    if min_kept == 0:
        return valid
    probability = torch.exp(-loss.detach()).masked_fill(~valid, 1.0)
    smallest = _kth_smallest(probability.flatten(), min(min_kept, probability.numel()))
    hard = probability <= smallest.clamp_min(threshold)
    too_few = valid.sum() < min_kept
    return valid & (hard | too_few)


def supervised_loss(loss: LabeledLoss, ignore_index: int = 255) -> Callable[..., Tensor]:
    """Return the loss of labeled images that a recipe asks for, as a function of logits and labels.

    It also takes `weight`, one number per class (`Batch.class_weights`).

    >>> logits, target = torch.zeros(1, 4, 2), torch.tensor([[3, 255]])
    >>> round(supervised_loss(Ohem(threshold=0.5))(logits, target).item(), 4)
    1.3863
    """
    if loss == "ce":
        return partial(cross_entropy, ignore_index=ignore_index)
    hard = Ohem() if isinstance(loss, str) else loss
    return partial(ohem_cross_entropy, threshold=hard.threshold, min_kept=hard.min_kept, ignore_index=ignore_index)


def squared_error(
    logits: Float[Tensor, "B K *S"] | CoarseLogits, target: Float[Tensor, "B K *S"], valid: Bool[Tensor, "B *S"]
) -> Float[Tensor, ""]:
    """Average over valid pixels the squared distance of two distributions, summed over classes.

    Args:
        logits: of the student.
        target: logits of the teacher; no gradient flows into them.
        valid: pixels that count.
    """
    difference = _full_precision(full(logits)).softmax(1) - _full_precision(target.detach()).softmax(1)
    return _mean(difference.square().sum(1), valid)


def soft_cross_entropy(
    logits: Float[Tensor, "B K *S"] | CoarseLogits, target: Float[Tensor, "B K *S"], valid: Bool[Tensor, "B *S"]
) -> Float[Tensor, ""]:
    """Average over valid pixels the cross-entropy with a distribution: - sum_k q_k log p_k, q = softmax(target).

    Args:
        logits: of the student.
        target: logits of the teacher; no gradient flows into them.
        valid: pixels that count.

    >>> valid = torch.ones(1, 2, dtype=torch.bool)
    >>> round(soft_cross_entropy(torch.zeros(1, 4, 2), torch.randn(1, 4, 2), valid).item(), 4)
    1.3863
    """
    q, log_p = _full_precision(target.detach()).softmax(1), _full_precision(full(logits)).log_softmax(1)
    return _mean(-(q * log_p).sum(1), valid)


def dice_loss(
    probability: Float[Tensor, "B K *S"], target: Int[Tensor, "B *S"], keep: Bool[Tensor, "B *S"] | None = None
) -> Float[Tensor, ""]:
    """Average over classes 1 - (2 sum p y + e) / (sum p^2 + sum y^2 + e), sums over the whole batch, e = 1e-5.

    Milletari et al., V-Net, 3DV 2016, with squared terms in the denominator.

    Args:
        probability: softmax of the student.
        target: labels; any value where `keep` is False.
        keep: pixels in the three sums; `None` = all.
    """
    probability = _full_precision(probability)
    classes = torch.arange(probability.shape[1], device=target.device).view(-1, *[1] * (target.ndim - 1))
    truth = (target.unsqueeze(1) == classes).to(probability.dtype)  # (B, K, *S)
    weight = torch.ones_like(target, dtype=torch.bool) if keep is None else keep
    probability = probability.masked_fill(~weight.unsqueeze(1), 0.0)
    truth = truth * weight.unsqueeze(1)
    axes = [axis for axis in range(probability.ndim) if axis != 1]
    overlap = (probability * truth).sum(axes)  # (K,)
    size = probability.square().sum(axes) + truth.sum(axes)  # y^2 = y
    return (1 - (2 * overlap + 1e-5) / (size + 1e-5)).mean()


def summed_weighted_cross_entropy(
    logits: Float[Tensor, "B K *S"] | CoarseLogits, target: Int[Tensor, "B *S"], weight: Float[Tensor, "B *S"]
) -> Float[Tensor, ""]:
    """Sum weight * cross-entropy over all pixels.

    Args:
        logits: of the student.
        target: labels; any value where the weight is 0.
        weight: of each pixel, not negative; no gradient flows into it.
    """
    target, weight = target.masked_fill(weight == 0, _SKIP), weight.detach()
    if isinstance(logits, CoarseLogits):
        return _streamed_sum(logits, target, _SKIP, weight)
    loss = _pixel_loss(logits, target, _SKIP)
    return (loss * weight.to(loss.dtype)).sum()


def class_weights(counts: Sequence[int], rule: Literal["inverse", "effective"]) -> tuple[float, ...]:
    """Return the weight of each class in the loss of labeled images, from its number of labeled pixels.

    With n_k pixels of class k, N = sum_k n_k, and K' classes that occur:

        inverse      w_k ~ 1 / n_k
        effective    w_k ~ (1 - beta) / (1 - beta^n_k)       Cui et al., "Class-Balanced Loss Based on Effective Number
                                                             of Samples", CVPR 2019, arXiv:1901.05555, equation 10

    `effective` takes beta = 1 - K' / N, so a class saturates at its even share of the pixels: of two frequent classes
    neither is held back, of two rare ones the rarer weighs more, about as with `inverse`. (The paper counts images;
    with millions of pixels its values of beta would make all weights equal.)

    Weights are scaled to a mean of 1 over the classes that occur; none is more than 100 times another, so that a
    handful of pixels cannot decide a batch. A class that does not occur has weight 1, which is never used.

    Args:
        counts: labeled pixels of each class.
        rule: see the equations above.

    >>> [round(weight, 3) for weight in class_weights([900, 100, 0], "inverse")]
    [0.2, 1.8, 1.0]
    """
    present = [count for count in counts if count > 0]
    if not present:
        return (1.0,) * len(counts)
    beta = 1 - len(present) / sum(present)

    def raw(count: int) -> float:
        return 1 / count if rule == "inverse" else (1 - beta) / (1 - beta**count)

    ceiling = _LARGEST_RATIO * raw(max(present))
    mean = sum(min(raw(count), ceiling) for count in present) / len(present)
    return tuple(min(raw(count), ceiling) / mean if count > 0 else 1.0 for count in counts)


def _streamed_sum(logits: CoarseLogits, target: Tensor, ignore_index: int, weight: Tensor | None = None) -> Tensor:
    values = _full_precision(logits.values)
    weight = None if weight is None else weight.to(values.dtype)
    return summed_cross_entropy(values, target, logits.align_corners, ignore_index, weight)


def _pixel_loss(logits: Tensor | CoarseLogits, target: Tensor, ignore_index: int) -> Tensor:
    logits, target = _full_precision(full(logits)), target.long()
    rows = logits.movedim(1, -1)
    # Reduced by the callers: the built-in reduction is not deterministic on a GPU.
    loss = partial(F.cross_entropy, ignore_index=ignore_index, reduction="none")
    if rows.is_contiguous():  # channels last, as a transformer's decoder gives them: nothing is copied
        return loss(rows.flatten(0, -2), target.flatten()).view_as(target)
    return loss(logits, target)


def _mean(loss: Tensor, keep: Tensor, weight: Tensor | None = None) -> Tensor:
    if weight is None:
        return loss.masked_fill(~keep, 0.0).sum() / keep.sum().clamp_min(1)
    weight = weight.to(loss.dtype)
    return (loss * weight.masked_fill(~keep, 0.0)).sum() / _sum_of(weight, keep)


def _sum_of(weight: Tensor, keep: Tensor) -> Tensor:
    return weight.masked_fill(~keep, 0.0).sum().clamp_min(torch.finfo(weight.dtype).tiny)


def _weight_of(target: Tensor, weight: Tensor | None) -> Tensor | None:
    """Look up the weight of every pixel's class; ignored pixels get an arbitrary weight."""
    return None if weight is None else weight[target.clamp(0, len(weight) - 1).long()]


def _full_precision(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _kth_smallest(values: Tensor, k: int) -> Tensor:
    if values.is_cuda and torch.are_deterministic_algorithms_enabled():
        return values.sort().values[k - 1]  # kthvalue has no deterministic kernel there
    return values.kthvalue(k).values
