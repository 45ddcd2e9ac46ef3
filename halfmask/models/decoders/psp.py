"""Pyramid pooling decoder of PSPNet.

Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, arXiv:1612.01105, in the form of CCT (Ouali et al., "Semi-
Supervised Semantic Segmentation with Cross-Consistency Training", CVPR 2020, arXiv:2003.09005): the coarsest map is
averaged over 1x1, 2x2, 3x3 and 6x6 cells, each average projected, normalized, rectified and upsampled; the
concatenation [map, branches] goes through one 3x3 convolution.

CCT's classifier follows: a 1x1 convolution to the classes, then three times [1x1 convolution to 4 values per class,
ReLU, pixel shuffle], so that logits come at 8 times the resolution and are never negative. Its sub-pixel convolutions
start as in Aitken et al., "Checkerboard artifact free sub-pixel convolution", 2017, arXiv:1707.02937 (ICNR).

UniMatch V1 (Yang et al., CVPR 2023, arXiv:2208.09910) has the paper's own classifier for change detection: `dropout:
0.1, upscale: 1`, and branches upsampled like its logits (`align_branches: true`).

Deviation from the paper: no auxiliary loss; by default no dropout (as in CCT's code). The 3x3 convolution of the
upsampled branches is computed at their few cells (`convolve_with_branches`), which is exact.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

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
        upscale: factor from the map to the logits by learned sub-pixel convolutions (8 in CCT); 1: a plain 1x1
            convolution. What is left to the image's size is bilinear.
        dropout: probability to drop a value of the embedding before the classifier.
        align_branches: upsample the branches with their corner cells on the corners of the map.
    """

    align_corners = True

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        bins: tuple[Bin, ...] = (1, 2, 3, 6),
        embedding: Annotated[int, Field(ge=1)] | None = None,
        upscale: Literal[1, 2, 4, 8, 16] = 8,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        align_branches: bool = False,
    ) -> None:
        super().__init__(channels, strides)
        self.upscale, self.align_branches = upscale, align_branches
        self.embedding = embedding or max(1, channels[-1] // len(bins))
        self.bins = tuple(bins)
        self.branches = nn.ModuleList(_conv(channels[-1], self.embedding, 1) for _ in self.bins)
        self.bottleneck = _conv(channels[-1] + len(self.bins) * self.embedding, self.embedding, 3)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()

    def fuse(self, features: list[Float[Tensor, "B _D _h _w"]]) -> Float[Tensor, "B E h w"]:
        """Concatenate the coarsest map and its pooled branches."""
        x = features[-1]
        size, aligned = x.shape[-2:], self.align_branches
        return torch.cat(
            [x, *(F.interpolate(p, size=size, mode="bilinear", align_corners=aligned) for p in self._pooled(x))], dim=1
        )

    def refine(self, fused: Float[Tensor, "B E h w"]) -> Float[Tensor, "B D h w"]:
        """Run one 3x3 convolution with batch norm and ReLU, then dropout; the embedding is not negative."""
        return self.dropout(self.bottleneck(fused))  # type: ignore[no-any-return]

    def decode(self, features: list[Float[Tensor, "B _D _h _w"]]) -> Float[Tensor, "B D h w"]:
        """Fuse and refine without the concatenated map."""
        x, (convolution, norm, rectify) = features[-1], self.bottleneck
        assert isinstance(convolution, nn.Conv2d)
        mixed = convolve_with_branches(x, self._pooled(x), convolution.weight, self.align_branches)
        return self.dropout(rectify(norm(mixed)))  # type: ignore[no-any-return]

    def _pooled(self, x: Tensor) -> list[Tensor]:
        if 1 in self.bins:
            self.check_pooled_batch(x)
        return [branch(F.adaptive_avg_pool2d(x, cells)) for cells, branch in zip(self.bins, self.branches, strict=True)]

    def make_classifier(self, classes: int) -> nn.Module:
        """Return the sub-pixel classifier, or a 1x1 convolution where `upscale` is 1."""
        if self.upscale == 1:
            return nn.Conv2d(self.embedding, classes, 1)
        return SubPixel(self.embedding, classes, upscale=self.upscale)


def convolve_with_branches(
    x: Float[Tensor, "B D h w"],
    branches: Sequence[Float[Tensor, "B E _b _b"]],
    weight: Float[Tensor, "O F 3 3"],
    aligned: bool,
) -> Float[Tensor, "B O h w"]:
    """Convolve the concatenation of a map and its upsampled branches by 3x3, borders padded with zeros.

    Upsampling and convolution of a branch are linear in its few cells p, so they change places:

        W * up(p) = (W p) S     W p: (O, 9 k), every tap applied to the k cells;  S: (9 k, h w), the weights of the
                                interpolation at each pixel's nine neighbors

    With bins 1, 2, 3 and 6 there are 50 cells in all, where the plain form convolves E channels of h w pixels for each
    branch: half of the convolution's work (Zhao et al.: E = D / 4).

    Args:
        x: map.
        branches: small square maps.
        weight: of the convolution, whose input channels are those of [x, branches].
        aligned: upsample the branches with their corner cells on the corners of the map.
    """
    area, width, size = x.shape[-2] * x.shape[-1], branches[0].shape[1], (x.shape[-2], x.shape[-1])
    cells = sum(branch.shape[-2] * branch.shape[-1] for branch in branches)
    if cells * (area + width) >= len(branches) * width * area:  # few channels or pixels: the plain form does less
        upsampled = (F.interpolate(p, size=size, mode="bilinear", align_corners=aligned) for p in branches)
        return F.conv2d(torch.cat([x, *upsampled], dim=1), weight, padding=1)
    own, *others = weight.split([x.shape[1], *(branch.shape[1] for branch in branches)], dim=1)
    parts, reach = [], []
    for branch, taps in zip(branches, others, strict=True):
        every = taps.permute(2, 3, 0, 1).flatten(0, 2) @ branch.flatten(2)  # (B, 9 O, k)
        parts.append(every.unflatten(1, (9, -1)).transpose(1, 2).flatten(2))  # (B, O, 9 k)
        reach.append(_reach(branch.shape[-1], size, aligned, x))
    joined = torch.cat(parts, dim=2) @ torch.cat(reach).to(parts[0].dtype)  # (B, O, h w)
    return F.conv2d(x, own, padding=1) + joined.unflatten(2, size)  # type: ignore[no-any-return]


def _reach(side: int, size: tuple[int, int], aligned: bool, like: Tensor) -> Float[Tensor, "N P"]:
    """Return how much of each of side^2 cells every pixel's nine neighbors show: (9 side^2, h w), tap by tap."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    one_each = torch.eye(side**2, device=like.device, dtype=dtype).view(1, side**2, side, side)
    shown = F.pad(F.interpolate(one_each, size=size, mode="bilinear", align_corners=aligned)[0], (1, 1, 1, 1))
    height, width = size
    shifts = [shown[:, top : top + height, left : left + width] for top in range(3) for left in range(3)]
    return torch.cat(shifts).flatten(1)


class SubPixel(nn.Module):
    """Embedding to logits at `upscale` times its resolution; no normalization.

    Every logit has passed a ReLU: a pixel whose units are all dead has equal logits and counts as class 0.

    Args:
        inputs: D, width of the embedding.
        classes: K.
        upscale: a power of two.
    """

    def __init__(self, inputs: int, classes: int, *, upscale: int = 8) -> None:
        super().__init__()
        self.project = nn.Conv2d(inputs, classes, 1, bias=False)
        stages = upscale.bit_length() - 1
        self.stages = nn.ModuleList(nn.Conv2d(classes, 4 * classes, 1) for _ in range(stages))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw Kaiming normal weights (fan-in, gain sqrt 2), the same for the 4 sub-pixels of a class (ICNR).

        Biases keep U(-1/sqrt(K), 1/sqrt(K)) and differ between sub-pixels, as in CCT's code: a fresh classifier
        still shows a weak 2x2 pattern.
        """
        nn.init.kaiming_normal_(self.project.weight, nonlinearity="relu")
        for stage in self.stages:
            assert isinstance(stage, nn.Conv2d)
            stage.reset_parameters()
            kernel = torch.empty_like(stage.weight[::4])
            nn.init.kaiming_normal_(kernel, nonlinearity="relu")
            stage.weight.copy_(kernel.repeat_interleave(4, dim=0))

    def forward(self, embedding: Float[Tensor, "B D h w"]) -> Float[Tensor, "B K H W"]:
        """Project, then double the resolution once per stage."""
        x = self.project(embedding)
        for stage in self.stages:
            x = F.pixel_shuffle(F.relu(stage(x)), 2)
        return x  # type: ignore[no-any-return]


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
