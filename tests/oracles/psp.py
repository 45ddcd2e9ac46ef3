"""Last convolution of pyramid pooling as its paper writes it: upsample the branches, concatenate, convolve.

Zhao et al., CVPR 2017, arXiv:1612.01105. Oracle of `models/decoders/psp.py`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def convolved(
    x: Float[Tensor, "B D h w"],
    branches: Sequence[Float[Tensor, "B E _b _b"]],
    weight: Float[Tensor, "O F 3 3"],
    aligned: bool,
) -> Float[Tensor, "B O h w"]:
    """Bring all branches to the size of the map, then convolve all channels by 3x3."""
    size = x.shape[-2:]
    upsampled = [F.interpolate(branch, size=size, mode="bilinear", align_corners=aligned) for branch in branches]
    return F.conv2d(torch.cat([x, *upsampled], dim=1), weight, padding=1)
