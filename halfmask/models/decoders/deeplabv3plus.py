"""DeepLabV3+: dilated spatial pyramid pooling on the coarsest map, refined with a stride-4 map.

Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", ECCV 2018,
arXiv:1802.02611, in the plain (not separable) form of the UniMatch code (Yang et al., CVPR 2023,
arXiv:2208.09910):

    aspp   = project(concat[1x1, 3x3 at each rate, global mean](c4))
    fused  = concat[reduce(c1), up(aspp)]
    z      = conv3x3(conv3x3(fused)), each with batch norm and ReLU

Two dialects matter in this field. `unimatch` is the one above. In `u2pl` (Wang et al., CVPR 2022, arXiv:2203.03884;
also GTA-Seg and AugSeg) the low-level map is wide, a 3x3 convolution follows the pyramid, z is the concatenation
itself, and the classifier is the whole prediction head: two 3x3 convolutions with norm, ReLU and channel dropout 0.1,
then 1x1.

`mapping` is that of CCVC (Wang et al., CVPR 2023, arXiv:2303.01276): a 1x1 convolution with norm, ReLU and channel
dropout on the concatenation, which lets one of two networks use other features than the other.

Deviations from the paper: no dropout anywhere, convolutions are not separable, the rates do not change with the
output stride (as in the UniMatch code).
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from halfmask.models.decoders._decoder import Decoder
from halfmask.models.projection import representation_head

Width = Annotated[int, Field(ge=1)]


class DeepLabV3Plus(Decoder):
    """Needs batch statistics; works with any encoder, best with an output stride of 16 or 8.

    Args:
        rates: dilations of the 3x3 branches.
        aspp: channels of each pyramid branch and of their projection.
        low: channels of the projected stride-4 map; few, so that it refines and does not decide.
        embedding: channels before the classifier; `u2pl` has `low` + `aspp` of them instead.
        dialect: see above; `u2pl` goes with `low` = 256 and `rates` of 12, 24, 36.
        mapping: channel dropout of the mapping before the fusion; `null`: no mapping.
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
        dialect: Literal["unimatch", "u2pl"] = "unimatch",
        mapping: Annotated[float, Field(ge=0, lt=1)] | None = None,
    ) -> None:
        super().__init__(channels, strides)
        self.dialect = dialect
        self.embedding = embedding if dialect == "unimatch" else low + aspp
        # The finest map of stride 4 or more; a plain ViT has a single stride.
        self.low_level = next((level for level, stride in enumerate(strides) if stride >= 4), 0)
        self.branches = nn.ModuleList([_conv(channels[-1], aspp, 1)])
        self.branches += [_conv(channels[-1], aspp, 3, rate) for rate in rates]
        self.pool = _conv(channels[-1], aspp, 1)
        self.project = _conv((len(rates) + 2) * aspp, aspp, 1)
        self.reduce = _conv(channels[self.low_level], low, 1)
        if dialect == "unimatch":
            self.convs = nn.Sequential(_conv(low + aspp, embedding, 3), _conv(embedding, embedding, 3))
        else:
            self.head = _conv(aspp, aspp, 3)
        self.mapping = (
            None if mapping is None else nn.Sequential(_conv(low + aspp, low + aspp, 1), nn.Dropout2d(mapping))
        )

    def fuse(self, features: list[Float[Tensor, "B _D _h _w"]]) -> Float[Tensor, "B E h w"]:
        """Concatenate the reduced low-level map and the upsampled pyramid, in this order."""
        low = self.reduce(features[self.low_level])
        high = F.interpolate(self._pyramid(features[-1]), size=low.shape[-2:], mode="bilinear", align_corners=True)
        fused = torch.cat([low, high], dim=1)
        return fused if self.mapping is None else self.mapping(fused)

    def refine(self, fused: Float[Tensor, "B E h w"]) -> Float[Tensor, "B D h w"]:
        """Run two 3x3 convolutions, or none (`u2pl`)."""
        return self.convs(fused) if self.dialect == "unimatch" else fused

    def make_classifier(self, classes: int) -> nn.Module:
        """Make a 1x1 convolution, or the prediction head of U2PL."""
        if self.dialect == "unimatch":
            return super().make_classifier(classes)
        return representation_head(self.embedding, classes)

    def _pyramid(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B A h w"]:
        self.check_pooled_batch(x)
        pooled = self.pool(x.mean((-2, -1), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        pyramid: Tensor = self.project(torch.cat([*(branch(x) for branch in self.branches), pooled], dim=1))
        return pyramid if self.dialect == "unimatch" else self.head(pyramid)


def _conv(inputs: int, outputs: int, kernel: int, rate: int = 1) -> nn.Sequential:
    padding = rate * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=rate, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
