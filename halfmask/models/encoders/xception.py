"""Xception-65, as UniMatch V1 trains it on COCO.

Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017, arXiv:1610.02357, in the aligned
form of Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", ECCV 2018,
arXiv:1802.02611 (Figure 4): strided separable convolutions instead of max pooling, 16 blocks in the middle, batch norm
after every depthwise convolution. With s a 3x3 separable convolution (depthwise, norm, pointwise, norm):

    block(x) = skip(x) + s3(relu(s2(relu(s1(relu(x))))))          skip: 1x1 convolution and norm; blocks 1, 2, 3, 20
    block(x) = relu(x) + s3(relu(s2(relu(s1(relu(x))))))          blocks 4 to 19

Deviations, all those of the UniMatch code (Yang et al., CVPR 2023, arXiv:2208.09910), which is followed:
  * Blocks 4 to 19 add relu(x), not x: there the first ReLU works in place.
  * The low-level map is s2 of block 2, before its ReLU and before the stride, which is that of s3.
  * Running statistics move by 0.0003 per step. They suit pretrained weights; from random ones an evaluation is of no
    use in the first thousands of steps.

Parameter names are those of the authors' checkpoints.
"""

from collections import OrderedDict
from typing import Annotated, Any, Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from halfmask.models.encoders._encoder import Encoder, imagenet_statistics
from halfmask.models.weights import load_weights

OUTER_BLOCKS = 4  # numbers 1, 2, 3 and the last; those in the middle are between 3 and the last
_MOMENTUM = 0.0003


class Xception(Encoder):
    """Two maps: the low-level one at stride 4 and the last one.

    Args:
        in_channels: bands of the image.
        weights: `null`, or a local file with the authors' names (`block1.sepconv1.depthwise.weight`, ...).
        output_stride: of the last map; 8 dilates at 4 times the cost there.
        width: channels of the first convolution, to which all others are proportional; 4 makes a network for a CPU.
        blocks: blocks in the middle, which keep the shape of their map.
        frozen: not trained, batch-norm statistics fixed.
    """

    def __init__(
        self,
        *,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        weights: str | None = None,
        output_stride: Literal[8, 16] = 16,
        width: Annotated[int, Field(ge=1)] = 32,
        blocks: Annotated[int, Field(ge=0)] = 16,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.channels = (8 * width, 64 * width)
        self.strides = (4, output_stride)
        self.mean, self.std = imagenet_statistics(in_channels)
        self.last_block = blocks + OUTER_BLOCKS
        # A table of layers by name, not to be called; a sequence, because run.recompute finds blocks in sequences.
        self.net: Any = nn.Sequential(_layers(in_channels, width, blocks, output_stride))
        if weights is not None:
            load_weights(self.net, weights, {}, stem="conv1.weight", drop=("fc.",))
        if frozen:
            self.freeze()

    def forward(self, image: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _D _h _w"]]:
        """Return the low-level map, which no ReLU has cut, and the last one."""
        net = self.net
        x = F.relu(net.bn1(net.conv1(image)))
        x = F.relu(net.bn2(net.conv2(x)))
        _, x = net.block1(x)
        low, x = net.block2(x)
        for number in range(3, self.last_block + 1):
            _, x = net.get_submodule(f"block{number}")(x)
        return [low, net.conv5(net.conv4(net.conv3(x)))]


def _layers(bands: int, width: int, blocks: int, output_stride: int) -> "OrderedDict[str, nn.Module]":
    """Return all layers by the authors' names."""
    middle, last = 91 * width // 4, blocks + OUTER_BLOCKS  # 728 channels; number of the last block
    third_stride, dilation = (2, 1) if output_stride == 16 else (1, 2)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(bands, width, 3, stride=2, padding=1, bias=False),
        bn1=_norm(width),
        conv2=nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
        bn2=_norm(2 * width),
        block1=_Block(2 * width, 4 * width, stride=2),
        block2=_Block(4 * width, 8 * width, stride=2),
        block3=_Block(8 * width, middle, stride=third_stride),
    )
    layers |= {
        f"block{number}": _Block(middle, middle, dilation=dilation, rectified_skip=True) for number in range(4, last)
    }
    layers[f"block{last}"] = _Block(middle, 32 * width, first=middle, dilation=dilation)
    layers["conv3"] = _Separable(32 * width, 48 * width, dilation=dilation, activate=True)
    layers["conv4"] = _Separable(48 * width, 48 * width, dilation=dilation, activate=True)
    layers["conv5"] = _Separable(48 * width, 64 * width, dilation=dilation, activate=True)
    return layers


class _Block(nn.Module):
    """Three separable convolutions, each after a ReLU, and a skip beside them: 1x1 convolution, or relu(x)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        first: int | None = None,
        stride: int = 1,
        dilation: int = 1,
        rectified_skip: bool = False,
    ) -> None:
        super().__init__()
        first = outputs if first is None else first
        self.rectified_skip = rectified_skip
        if not rectified_skip:
            self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.skipbn = _norm(outputs)
        self.sepconv1 = _Separable(inputs, first, dilation=dilation)
        self.sepconv2 = _Separable(first, outputs, dilation=dilation)
        self.sepconv3 = _Separable(outputs, outputs, stride=stride, dilation=dilation)

    def forward(self, x: Float[Tensor, "B C h w"]) -> tuple[Float[Tensor, "B D h w"], Float[Tensor, "B D _h _w"]]:
        """Return the output of the second separable convolution, and that of the block."""
        rectified = F.relu(x)
        second = self.sepconv2(F.relu(self.sepconv1(rectified)))
        beside = rectified if self.rectified_skip else self.skipbn(self.skip(x))
        return second, beside + self.sepconv3(F.relu(second))


class _Separable(nn.Module):
    """Depthwise 3x3 and pointwise convolution, each with batch norm, and with ReLU where there is none in front."""

    def __init__(
        self, inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1, activate: bool = False
    ) -> None:
        super().__init__()
        self.activate = activate
        self.depthwise = nn.Conv2d(
            inputs, inputs, 3, stride, padding=dilation, dilation=dilation, groups=inputs, bias=False
        )
        self.bn1 = _norm(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = _norm(outputs)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D _h _w"]:
        """Run the depthwise convolution first."""
        x = self.bn1(self.depthwise(x))
        x = self.bn2(self.pointwise(F.relu(x) if self.activate else x))
        return F.relu(x) if self.activate else x


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, momentum=_MOMENTUM)
