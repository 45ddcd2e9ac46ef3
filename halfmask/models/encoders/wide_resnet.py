"""Wide ResNet for small images, in the forms that semi-supervised classification compares methods on.

Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, arXiv:1605.07146: pre-activation blocks of two 3x3
convolutions, (depth - 4) / 6 of them per stage, `widen` times the channels of He et al.; leaky ReLU of slope 0.1 as in
Oliver et al., "Realistic Evaluation of Deep Semi-Supervised Learning Algorithms", NeurIPS 2018, arXiv:1804.09170.

    WRN-28-2         stages: 3                     32, 64, 128 channels         1.47 M parameters with 10 classes
    WRN-Var-28-2     stages: 4, first_stride: 2    32, 64, 128, 256 channels    5.93 M; for STL-10's 96 pixels

The numbers are those of the published logs of UniMatch V2 (arXiv:2410.10777), Tables 16 and 17. They do not tell the
stride of the first stage, which changes no parameter; nor do they tell biases of the convolutions (2 and 4 thousand
parameters), of which batch norm leaves nothing: there are none here.
"""

from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from halfmask.errors import RecipeError
from halfmask.models.encoders._encoder import Encoder, imagenet_statistics
from halfmask.models.weights import load_weights

_STEM = 16  # channels of the first convolution
_SLOPE = 0.1


class WideResNet(Encoder):
    """Three or four stages, each at half the resolution of the one before.

    Args:
        in_channels: bands of the image.
        weights: `null`, or a local file.
        depth: 6 n + 4 layers, for n blocks per stage of a network of three stages.
        widen: factor on 16, 32, 64 (and 128) channels.
        stages: 3, or 4 for larger images.
        first_stride: of the first stage.
        frozen: not trained, batch-norm statistics fixed.

    Raises:
        RecipeError: `depth` is not 6 n + 4.
    """

    def __init__(
        self,
        *,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        weights: str | None = None,
        depth: Annotated[int, Field(ge=10)] = 28,
        widen: Annotated[int, Field(ge=1)] = 2,
        stages: Literal[3, 4] = 3,
        first_stride: Literal[1, 2] = 1,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        blocks, odd = divmod(depth - 4, 6)
        if odd:
            raise RecipeError(
                f"model.encoder.depth={depth}: a wide ResNet has 6 n + 4 layers. "
                f"Use {depth - odd} or {depth - odd + 6}.",
                "H303",
            )
        self.channels = tuple(_STEM * widen * 2**stage for stage in range(stages))
        self.strides = tuple(first_stride * 2**stage for stage in range(stages))
        self.stem = _convolution(in_channels, _STEM)
        self.stages = nn.ModuleList()
        width = _STEM
        for stage, channels in enumerate(self.channels):
            stride = first_stride if stage == 0 else 2
            rest = (_Block(channels, channels) for _ in range(blocks - 1))
            self.stages.append(nn.Sequential(_Block(width, channels, stride), *rest))
            width = channels
        self.last = _activation(width)
        self.mean, self.std = imagenet_statistics(in_channels)
        if weights is not None:
            load_weights(self, weights, {}, stem="stem.weight")
        if frozen:
            self.freeze()

    def forward(self, image: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _D _h _w"]]:
        """Return the output of each stage, the last one normalized and activated."""
        x = self.stem(image)
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [*maps[:-1], self.last(x)]


class _Block(nn.Module):
    """Two 3x3 convolutions, each after norm and activation; a 1x1 one beside them where the shape changes."""

    def __init__(self, width: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = _activation(width)
        self.second = nn.Sequential(
            _convolution(width, channels, stride=stride), _activation(channels), _convolution(channels, channels)
        )
        same_shape = width == channels and stride == 1
        self.shortcut = None if same_shape else _convolution(width, channels, side=1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the output of the convolutions to the input."""
        activated = self.first(x)
        return (x if self.shortcut is None else self.shortcut(activated)) + self.second(activated)  # type: ignore[no-any-return]


def _convolution(width: int, channels: int, *, side: int = 3, stride: int = 1) -> nn.Conv2d:
    convolution = nn.Conv2d(width, channels, side, stride, padding=side // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, a=_SLOPE, mode="fan_out", nonlinearity="leaky_relu")
    return convolution


def _activation(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.LeakyReLU(_SLOPE, inplace=True))
