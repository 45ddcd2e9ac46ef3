"""Gaussian blur of a batch, each image with its own radius, as Pillow computes it.

Three box filters of fractional length along each axis, with repeated edge pixels (Gwosdek et al., "Theoretical
foundations of Gaussian convolution by extended box filtering", SSVM 2011): for a standard deviation `radius`,

    v = radius^2 / 3,  l = floor((sqrt(12 v + 1) - 1) / 2),  a = (2l + 1)(l(l + 1) - 3v) / (6 (v - (l + 1)^2))

each box covers 2l + 1 whole pixels and a fraction `a` of the next one on both sides. The published strong views are
made by Pillow, whose result this is without its rounding to whole levels after each of the six passes: at most 3
levels of 255 lie between the two, half a level on average in smooth images, one in noise.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

_PASSES = 3


def box_radius(radius: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Return l + a of each box for a standard deviation in pixels."""
    variance = radius * radius / _PASSES
    whole = torch.floor((torch.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    return whole + part


def reach(radius: float) -> int:
    """Return how many pixels to each side a single box can touch.

    >>> reach(0.5), reach(2.0)
    (1, 2)
    """
    return math.floor((math.sqrt(4 * radius * radius + 1) - 1) / 2) + 1


def gaussian_blur(
    image: Float[Tensor, "N C H W"], radius: Float[Tensor, " N"], *, largest: float
) -> Float[Tensor, "N C H W"]:
    """Blur each image; a radius of 0 leaves it exactly as it is.

    Args:
        image: any range.
        radius: standard deviation in pixels.
        largest: upper bound of `radius`, a Python number: it decides the number of taps without asking the device.
    """
    taps = reach(largest)
    box = box_radius(radius.to(image.dtype))
    distance = torch.arange(taps + 1, device=image.device, dtype=image.dtype)
    # Pixels nearer than the radius count fully, the next one by the fraction that is covered.
    weights = (box[:, None] + 1 - distance).clamp(0, 1) / (2 * box + 1)[:, None]  # (N, taps + 1)
    weights = weights[:, :, None, None, None]
    for axis in (-1, -2):
        for _ in range(_PASSES):
            image = _box(image, weights, axis)
    return image


def _box(image: Tensor, weights: Tensor, axis: int) -> Tensor:
    taps, length = weights.shape[1] - 1, image.shape[axis]
    padded = F.pad(image, (taps, taps, 0, 0) if axis == -1 else (0, 0, taps, taps), mode="replicate")
    out = image * weights[:, 0]
    for distance in range(1, taps + 1):
        pair = padded.narrow(axis, taps - distance, length) + padded.narrow(axis, taps + distance, length)
        out.addcmul_(pair, weights[:, distance])
    return out
