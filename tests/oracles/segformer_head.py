"""All-MLP head of SegFormer as its paper writes it: project, upsample, concatenate, fuse.

Xie et al., NeurIPS 2021, arXiv:2105.15203, section 3.2. Oracle and baseline of `models/decoders/segformer.py`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def fused_map(
    features: Sequence[Float[Tensor, "B _C _h _w"]],
    weights: Sequence[Float[Tensor, "E _C"]],
    biases: Sequence[Float[Tensor, " E"]],
    fuse: Float[Tensor, "E F 1 1"],
) -> Float[Tensor, "B E h w"]:
    """Project every map to E channels, bring all to the finest size, concatenate, mix by a 1x1 convolution.

    Args:
        features: fine to coarse.
        weights: of the linear projections, one per map.
        biases: likewise.
        fuse: 1x1 convolution whose input order is coarse to fine, F = E times the number of maps.
    """
    size = features[0].shape[-2:]
    projected = [
        F.linear(x.flatten(2).transpose(1, 2), weight, bias).transpose(1, 2).reshape(len(x), -1, *x.shape[-2:])
        for x, weight, bias in zip(features, weights, biases, strict=True)
    ]
    upsampled = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in projected]
    return F.conv2d(torch.cat(upsampled[::-1], dim=1), fuse)
