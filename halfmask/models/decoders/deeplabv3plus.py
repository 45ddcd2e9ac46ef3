"""DeepLabV3+: dilated spatial pyramid pooling on the coarsest map, refined with a stride-4 map.

Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", ECCV 2018,
arXiv:1802.02611, in the plain (not separable) form of the UniMatch code (Yang et al., CVPR 2023,
arXiv:2208.09910):

    aspp   = project(concat[1x1, 3x3 at each rate, global mean](c4))
    fused  = concat[reduce(c1), up(aspp)]
    z      = conv3x3(conv3x3(fused)), each with batch norm and ReLU

Deviations from the paper: no dropout anywhere, convolutions are not separable, the rates do not change with the
output stride (as in the UniMatch code).
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from halfmask.models.decoders._decoder import Decoder

Width = Annotated[int, Field(ge=1)]


class DeepLabV3Plus(Decoder):
    """Needs batch statistics; works with any encoder, best with an output stride of 16 or 8.

    Args:
        rates: dilations of the 3x3 branches.
        aspp: channels of each pyramid branch and of their projection.
        low: channels of the projected stride-4 map; few, so that it refines and does not decide.
        embedding: channels before the classifier.
    """

    align_corners = True

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        rates: tuple[int, ...] = (6, 12, 18),
        aspp: Width = 256,
        low: Width = 48,
        embedding: Width = 256,
    ) -> None:
        super().__init__(channels, strides)
        self.embedding = embedding
        # The finest map of stride 4 or more; a plain ViT has a single stride.
        self.low_level = next((level for level, stride in enumerate(strides) if stride >= 4), 0)
        self.branches = nn.ModuleList([_conv(channels[-1], aspp, 1)])
        self.branches += [_conv(channels[-1], aspp, 3, rate) for rate in rates]
        self.pool = _conv(channels[-1], aspp, 1)
        self.project = _conv((len(rates) + 2) * aspp, aspp, 1)
        self.reduce = _conv(channels[self.low_level], low, 1)
        self.convs = nn.Sequential(_conv(low + aspp, embedding, 3), _conv(embedding, embedding, 3))

    def fuse(self, features: list[Float[Tensor, "B _D _h _w"]]) -> Float[Tensor, "B E h w"]:
        """Concatenate the reduced low-level map and the upsampled pyramid, in this order."""
        low = self.reduce(features[self.low_level])
        high = F.interpolate(self._pyramid(features[-1]), size=low.shape[-2:], mode="bilinear", align_corners=True)
        return torch.cat([low, high], dim=1)

    def refine(self, fused: Float[Tensor, "B E h w"]) -> Float[Tensor, "B D h w"]:
        """Run two 3x3 convolutions."""
        return self.convs(fused)  # type: ignore[no-any-return]

    def _pyramid(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B A h w"]:
        self.check_pooled_batch(x)
        pooled = self.pool(x.mean((-2, -1), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        return self.project(torch.cat([*(branch(x) for branch in self.branches), pooled], dim=1))  # type: ignore[no-any-return]


def _conv(inputs: int, outputs: int, kernel: int, rate: int = 1) -> nn.Sequential:
    padding = rate * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=rate, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
