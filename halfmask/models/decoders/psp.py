"""Pyramid pooling decoder of PSPNet.

Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, arXiv:1612.01105, in the form of CCT (Ouali et al., "Semi-
Supervised Semantic Segmentation with Cross-Consistency Training", CVPR 2020, arXiv:2003.09005): the coarsest map is
averaged over 1x1, 2x2, 3x3 and 6x6 cells, each average projected, normalized, rectified and upsampled; the
concatenation [map, branches] goes through one 3x3 convolution.

Deviation from the paper: no dropout and no auxiliary loss (as in CCT's code).
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from halfmask.models.decoders._decoder import Decoder

Bin = Annotated[int, Field(ge=1)]


class PSP(Decoder):
    """Needs batch statistics; meant for an encoder with output stride 8.

    Args:
        bins: cells per side of each branch.
        embedding: width of the result and of the branches; `null`: the map's width / number of bins.
    """

    align_corners = True

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        bins: tuple[Bin, ...] = (1, 2, 3, 6),
        embedding: Annotated[int, Field(ge=1)] | None = None,
    ) -> None:
        super().__init__(channels, strides)
        self.embedding = embedding or max(1, channels[-1] // len(bins))
        self.bins = tuple(bins)
        self.branches = nn.ModuleList(_conv(channels[-1], self.embedding, 1) for _ in self.bins)
        self.bottleneck = _conv(channels[-1] + len(self.bins) * self.embedding, self.embedding, 3)

    def fuse(self, features: list[Float[Tensor, "B _D _h _w"]]) -> Float[Tensor, "B E h w"]:
        """Concatenate the coarsest map and its pooled branches."""
        x = features[-1]
        if 1 in self.bins:
            self.check_pooled_batch(x)
        pooled = [
            branch(F.adaptive_avg_pool2d(x, cells)) for cells, branch in zip(self.bins, self.branches, strict=True)
        ]
        size = x.shape[-2:]
        return torch.cat(
            [x, *(F.interpolate(p, size=size, mode="bilinear", align_corners=False) for p in pooled)], dim=1
        )

    def refine(self, fused: Float[Tensor, "B E h w"]) -> Float[Tensor, "B D h w"]:
        """One 3x3 convolution with batch norm and ReLU; the embedding is not negative."""
        return self.bottleneck(fused)  # type: ignore[no-any-return]


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
