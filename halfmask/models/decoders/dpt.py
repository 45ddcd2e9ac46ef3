"""DPT: convolutional fusion of four transformer maps.

Ranftl et al., "Vision Transformers for Dense Prediction", ICCV 2021, arXiv:2103.13413, in the form of UniMatch V2
(Yang et al., TPAMI 2025, arXiv:2410.10777): no read-out token, no batch norm. Per level: 1x1 projection, resize by
4, 2, 1, 1/2, 3x3 to a common width; then from coarse to fine

    x = x + residual_unit(skip);   x = up(conv1x1(residual_unit(x)))

A pyramid (ResNet, MiT: Table 9 of UniMatch V2) already has four sizes, so nothing is resized. The layers of that
form are not described; the widths of DINOv2-L without resizing have the logged number of parameters with both
encoders (17.7 and 20.3 million).

Deviations, both exact: the 1x1 convolution runs before the upsampling (bilinear weights sum to 1, so they
commute; a quarter of the work), and the coarsest block has no unit for a skip it never gets.
"""

from typing import Annotated

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from halfmask.errors import RecipeError
from halfmask.models.decoders._decoder import Decoder

# UniMatch V2: token width -> (fusion width, widths of the four projected maps).
_WIDTHS: dict[int, tuple[int, tuple[int, int, int, int]]] = {
    384: (64, (48, 96, 192, 384)),
    768: (128, (96, 192, 384, 768)),
    1024: (256, (256, 512, 1024, 1024)),
    1536: (384, (1536, 1536, 1536, 1536)),
}
_PYRAMID = _WIDTHS[1024]


class DPT(Decoder):
    """For four maps, of one stride (a plain vision transformer) or a pyramid; no batch statistics, no dropout.

    Args:
        features: width of the fusion blocks and of the embedding; `null` takes the published one for the encoder's
            width (or a sixth of an unlisted width); 256 for a pyramid.
        projections: widths of the four projected maps; `null` likewise.
    """

    align_corners = True

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        features: Annotated[int, Field(ge=1)] | None = None,
        projections: tuple[int, int, int, int] | None = None,
    ) -> None:
        super().__init__(channels, strides)
        if len(channels) != 4:
            raise RecipeError(
                f"decoder dpt needs four maps, but the encoder gives {len(channels)}, of strides {tuple(strides)}. "
                "Use decoder segformer or deeplabv3plus, or encoder dinov2."
            )
        plain = len(set(strides)) == 1
        width, widths = _published_widths(channels[-1]) if plain else _PYRAMID
        width, widths = features or width, projections or widths
        self.embedding = width
        self.projects = nn.ModuleList(nn.Conv2d(c, w, 1) for c, w in zip(channels, widths, strict=True))
        self.resize = _resizing(widths) if plain else nn.ModuleList(nn.Identity() for _ in widths)
        self.to_common = nn.ModuleList(nn.Conv2d(w, width, 3, padding=1, bias=False) for w in widths)
        self.fusions = nn.ModuleList(_Fusion(width, skip=level < 3) for level in range(4))
        self.head = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True))

    def fuse(self, features: list[Float[Tensor, "B _D _h _w"]]) -> Float[Tensor, "B E h w"]:
        """Return the fused map at 8 times the resolution of the tokens, or at twice that of a pyramid's finest map."""
        maps = [
            common(resize(project(x)))
            for x, project, resize, common in zip(features, self.projects, self.resize, self.to_common, strict=True)
        ]
        x = self.fusions[3](maps[3], None, maps[2].shape[-2:])
        x = self.fusions[2](x, maps[2], maps[1].shape[-2:])
        x = self.fusions[1](x, maps[1], maps[0].shape[-2:])
        height, width = maps[0].shape[-2:]
        return self.fusions[0](x, maps[0], (2 * height, 2 * width))  # type: ignore[no-any-return]

    def refine(self, fused: Float[Tensor, "B E h w"]) -> Float[Tensor, "B E h w"]:
        """Build a 3x3 convolution with ReLU."""
        return self.head(fused)  # type: ignore[no-any-return]


class _Fusion(nn.Module):
    """Add the skip map, refine, project, upsample."""

    def __init__(self, width: int, skip: bool) -> None:
        super().__init__()
        self.skip = _ResidualUnit(width) if skip else None
        self.unit = _ResidualUnit(width)
        self.out = nn.Conv2d(width, width, 1)

    def forward(
        self, x: Float[Tensor, "B E h w"], skip: Float[Tensor, "B E h w"] | None, size: tuple[int, int]
    ) -> Float[Tensor, "B E h2 w2"]:
        if self.skip is not None and skip is not None:
            x = x + self.skip(skip)
        x = self.unit(x)
        return mix_and_upsample(x, self.out.weight, self.out.bias, size)


def mix_and_upsample(
    x: Float[Tensor, "B E h w"],
    weight: Float[Tensor, "E E 1 1"],
    bias: Float[Tensor, " E"] | None,
    size: tuple[int, int],
) -> Float[Tensor, "B E h2 w2"]:
    """Mix the channels by a 1x1 convolution, then upsample to `size` (H, W), corners aligned.

    The paper upsamples first. Both orders give the same, as the weights of the interpolation sum to 1, and this one
    multiplies a quarter of the cells.
    """
    return F.interpolate(F.conv2d(x, weight, bias), size=size, mode="bilinear", align_corners=True)


class _ResidualUnit(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "B E h w"]) -> Float[Tensor, "B E h w"]:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))  # type: ignore[no-any-return]


def _resizing(widths: tuple[int, int, int, int]) -> nn.ModuleList:
    """Resize four maps of one stride to 4, 2, 1 and 1/2 times their sizes."""
    return nn.ModuleList(
        [
            nn.ConvTranspose2d(widths[0], widths[0], 4, stride=4),
            nn.ConvTranspose2d(widths[1], widths[1], 2, stride=2),
            nn.Identity(),
            nn.Conv2d(widths[3], widths[3], 3, stride=2, padding=1),
        ]
    )


def _published_widths(tokens: int) -> tuple[int, tuple[int, int, int, int]]:
    """Return the widths for a token width: published, or 1/8, 1/4, 1/2 and all of it."""
    other = max(8, tokens // 6), (max(1, tokens // 8), max(1, tokens // 4), max(1, tokens // 2), tokens)
    return _WIDTHS.get(tokens, other)
