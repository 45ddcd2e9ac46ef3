"""Last two operations of a fusion block of DPT in the order of its paper: upsample, then mix the channels.

Ranftl et al., ICCV 2021, arXiv:2103.13413, figure 1. Oracle of `models/decoders/dpt.py`.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def upsampled_mix(
    x: Float[Tensor, "B E h w"],
    weight: Float[Tensor, "E E 1 1"],
    bias: Float[Tensor, " E"] | None,
    size: tuple[int, int],
) -> Float[Tensor, "B E h2 w2"]:
    """Upsample to `size` (H, W), corners aligned, then convolve by 1x1."""
    return F.conv2d(F.interpolate(x, size=size, mode="bilinear", align_corners=True), weight, bias)
