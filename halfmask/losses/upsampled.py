"""Cross-entropy of upsampled logits without the upsampled logits.

Bilinear upsampling and the loss are computed band by band of output rows, forward and backward at once: a band's
gradient goes into the gradient of the coarse logits, and the band is freed. At 150 classes and 518 pixels an image's
logits take 161 MB, and so do their softmax and their gradient; a band takes 3 MB on a CPU. It cannot be
differentiated twice.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from halfmask.models.coarse_logits import row_mix

# Below this size of the upsampled logits holding them is faster on a CPU; on a GPU the number is an estimate.
STREAM_BYTES = 512 * 2**20
# Upsampled logits of one band. On a CPU 3 MiB took a third less time than 40; on a GPU the number is an estimate.
_BAND_BYTES = {"cpu": 3 * 2**20, "other": 64 * 2**20}


def upsampled_cross_entropy(
    logits: Float[Tensor, "B K h w"],
    target: Int[Tensor, "B H W"],
    align_corners: bool,
    ignore_index: int = 255,
    weight: Float[Tensor, "B H W"] | None = None,
    *,
    impl: Literal["auto", "stream", "whole"] = "auto",
) -> Float[Tensor, ""]:
    """Average the cross-entropy over labeled pixels, of logits upsampled to the size of the target.

    Args:
        logits: at the resolution of the classifier.
        target: labels.
        align_corners: convention of the interpolation.
        ignore_index: label of unknown pixels.
        weight: factor of each pixel's loss; the denominator stays the number of labeled pixels.
        impl: `stream`, `whole` (all upsampled logits at once), or `auto`: by the size of the upsampled logits.

    >>> loss = upsampled_cross_entropy(torch.zeros(1, 4, 2, 2), torch.full((1, 6, 6), 3), True, impl="stream")
    >>> round(loss.item(), 4)
    1.3863
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if impl == "auto":
        whole = logits.shape[0] * logits.shape[1] * target.shape[1] * target.shape[2] * logits.element_size()
        impl = "stream" if whole > STREAM_BYTES else "whole"
    if impl == "whole":
        upsampled = F.interpolate(logits, size=target.shape[-2:], mode="bilinear", align_corners=align_corners)
        loss = F.cross_entropy(upsampled, target.long(), ignore_index=ignore_index, reduction="none")
        total = (loss if weight is None else loss * weight).sum()
    else:
        total = summed_cross_entropy(logits, target, align_corners, ignore_index, weight)
    return total / (target != ignore_index).sum().clamp_min(1)


def summed_cross_entropy(
    logits: Float[Tensor, "B K h w"],
    target: Int[Tensor, "B H W"],
    align_corners: bool,
    ignore_index: int = 255,
    weight: Float[Tensor, "B H W"] | None = None,
) -> Float[Tensor, ""]:
    """Sum the cross-entropy over labeled pixels, band by band; arguments as for `upsampled_cross_entropy`."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    # Gradients are taken in the forward pass, whose autocast must not reach the interpolation.
    with torch.autocast(logits.device.type, enabled=False):
        total: Tensor = _Streamed.apply(logits, target, align_corners, ignore_index, weight)
    return total


class _Streamed(torch.autograd.Function):
    """Sum of the pixel losses; forward keeps the gradient of the coarse logits, nothing else."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, align_corners: bool, ignore_index: int, weight: Tensor | None
    ) -> Tensor:
        # On a CPU image by image, in bands that stay in the cache; a GPU needs larger pieces of work.
        images = 1 if logits.device.type == "cpu" else len(logits)
        gradient, total = torch.zeros_like(logits), logits.new_zeros(())
        for first in range(0, len(logits), images):
            part = slice(first, first + images)
            own = None if weight is None else weight[part]
            total += _add_part(gradient[part], logits.detach()[part], target[part], align_corners, ignore_index, own)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Any:
        return ctx.saved_tensors[0] * outer, None, None, None, None


def _add_part(
    gradient: Tensor, logits: Tensor, target: Tensor, align_corners: bool, ignore_index: int, weight: Tensor | None
) -> Tensor:
    """Add the gradient of some images in place; return the sum of their losses."""
    height, width = target.shape[-2:]
    top, bottom, share = row_mix(logits.shape[2], height, align_corners, logits.device, logits.dtype)
    row_bytes = logits.shape[0] * logits.shape[1] * width * logits.element_size()
    rows = max(1, _BAND_BYTES["cpu" if logits.device.type == "cpu" else "other"] // row_bytes)
    total = logits.new_zeros(())
    for start in range(0, height, rows):
        band = slice(start, min(start + rows, height))
        first, last = _reach(start, band.stop - 1, logits.shape[2], height, align_corners)
        with torch.enable_grad():
            leaf = logits[:, :, first : last + 1].requires_grad_()
            above, below = leaf[:, :, top[band] - first], leaf[:, :, bottom[band] - first]
            mixed = torch.lerp(above, below, share[band, None])
            wide = F.interpolate(mixed, (mixed.shape[2], width), mode="bilinear", align_corners=align_corners)
            loss = F.cross_entropy(wide, target[:, band].long(), ignore_index=ignore_index, reduction="none")
            loss = (loss if weight is None else loss * weight[:, band]).sum()
            gradient[:, :, first : last + 1] += torch.autograd.grad(loss, leaf)[0]
        total += loss.detach()
    return total


def _reach(first: int, last: int, source: int, target: int, align_corners: bool) -> tuple[int, int]:
    """Return the input rows that a band of output rows needs, on the host; as in `row_mix`, one row to spare."""

    def position(row: int) -> float:
        if align_corners:
            return row * ((source - 1) / max(target - 1, 1))
        return max((row + 0.5) * (source / target) - 0.5, 0.0)

    return min(int(position(first)), source - 1), min(int(position(last)) + 1, source - 1)
