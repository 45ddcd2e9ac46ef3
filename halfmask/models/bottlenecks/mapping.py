"""A mapping of the encoder's last map, which lets one of two networks use other features than the other.

Wang et al., CCVC, CVPR 2023, arXiv:2303.01276, map the decoder input of DeepLabV3+ (`model.decoder.mapping`); with any
other decoder this bottleneck is the same layers one step earlier: 1x1 convolution, norm, ReLU, channel dropout.
"""

from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from halfmask.models.bottlenecks._bottleneck import Bottleneck


class Mapping(Bottleneck):
    """1x1 convolution with batch norm, ReLU and channel dropout; the width stays.

    Args:
        dropout: of whole channels.
    """

    def __init__(self, channels: int, *, dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5) -> None:
        super().__init__(channels)
        convolution = nn.Conv2d(channels, channels, 1, bias=False)
        norm, drop = nn.BatchNorm2d(channels), nn.Dropout2d(dropout)
        self.layers = nn.Sequential(convolution, norm, nn.ReLU(inplace=True), drop)

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """Map the last map."""
        return self.layers(x)  # type: ignore[no-any-return]
