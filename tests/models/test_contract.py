"""Every encoder and decoder file obeys the contract; a new file needs a small configuration here."""

from typing import Any

import pytest
import torch
from torch import nn

from halfmask.models.decoders._decoder import Decoder
from halfmask.models.encoders._encoder import Encoder
from halfmask.plugins import names, resolve
from halfmask.testing.models import check_bottleneck, check_decoder, check_encoder

# Files of the package only: installed plugins are tested by their owners.
ENCODERS: dict[str, list[dict[str, Any]]] = {
    "dinov2": [{"dim": 24, "heads": 2}, {"dim": 24, "heads": 2, "interpolation": "size"}],
    "dinov3": [{"dim": 24, "heads": 2}],
    "efficientnet_lite": [{}, {"frozen_stages": 3, "output_stride": 16}],
    "mit": [{"size": "b0"}],
    "resnet": [
        {"depth": 18, "width": 8, "output_stride": 32},
        {"depth": 18, "width": 8, "output_stride": 16, "stem": "plain"},
        {"depth": 50, "width": 4, "blocks": (1, 2, 1, 1), "output_stride": 8},
    ],
    "timm": [
        {"model": "mobilenetv3_small_050"},
        {"model": "convnext_atto"},
        {"model": "resnet10t", "output_stride": 16, "out_indices": (1, 4)},
        {"model": "vit_tiny_patch16_224"},
    ],
    "wide_resnet": [{"depth": 10, "widen": 1}, {"depth": 16, "widen": 1, "stages": 4, "first_stride": 2}],
    "xception": [{"width": 1, "blocks": 1}, {"width": 1, "blocks": 1, "output_stride": 8}],
}
PLAIN_TRANSFORMER = {"channels": (24,) * 4, "strides": (14,) * 4}
DECODERS: dict[str, list[dict[str, Any]]] = {
    "deeplabv3plus": [
        {"aspp": 8, "low": 4, "embedding": 12},
        {"aspp": 8, "low": 4, "embedding": 12, "rates": (1, 2), **PLAIN_TRANSFORMER},
    ],
    "dpt": [
        {"features": 8, "projections": (4, 8, 8, 12), **PLAIN_TRANSFORMER},
        PLAIN_TRANSFORMER,
        {"features": 8, "projections": (4, 8, 8, 12)},
    ],
    "last": [{}, PLAIN_TRANSFORMER],
    "pool": [{}, PLAIN_TRANSFORMER],
    "psp": [
        {},
        {"bins": (2, 3), "embedding": 6},
        {"upscale": 1, "dropout": 0.1, "align_branches": True},
        {"upscale": 2},
    ],
    "segformer": [{"embedding": 12}, {"embedding": 12, **PLAIN_TRANSFORMER}],
}

BOTTLENECKS: dict[str, list[dict[str, Any]]] = {
    "mapping": [{}, {"dropout": 0.0}],
    "allspark": [
        {},
        {"width": 8, "heads": 3, "impl": "stream"},
        {"cross_heads": "separate", "share_projections": True},
    ],
}


def _cases(kind: str, table: dict[str, list[dict[str, Any]]]) -> list[Any]:
    return [
        pytest.param(name, params, id=f"{name}-{index}")
        for name in names(kind)
        for index, params in enumerate(table.get(name, [{"no small configuration in this file": True}]))
    ]


@pytest.mark.parametrize(("name", "params"), _cases("encoders", ENCODERS))
def test_encoder_obeys_the_contract(name, params):
    check_encoder(resolve("encoders", name), **params)


@pytest.mark.parametrize(("name", "params"), _cases("decoders", DECODERS))
def test_decoder_obeys_the_contract(name, params):
    check_decoder(resolve("decoders", name), **params)


@pytest.mark.parametrize(("name", "params"), _cases("bottlenecks", BOTTLENECKS))
def test_bottleneck_obeys_the_contract(name, params):
    check_bottleneck(resolve("bottlenecks", name), **params)


def attention_maps(encoder: Encoder) -> set[tuple[int, ...]]:
    """Shapes kept for the backward pass whose last two axes are equal and hold every token."""
    side = 9 * encoder.size_multiple
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        maps = encoder.train()(torch.rand(2, 3, side, side))
    tokens = maps[-1].shape[-2:].numel()
    return {shape for shape in kept if len(shape) > 2 and side > shape[-1] == shape[-2] >= tokens}


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("dinov2", {"dim": 24, "heads": 2}),
        ("dinov3", {"dim": 24, "heads": 2}),
        ("timm", {"model": "vit_tiny_patch16_224", "out_indices": (0, 1, 2, 3)}),
    ],
)
def test_transformers_keep_no_attention_map(name, params):
    encoder = resolve("encoders", name)(**params)
    assert attention_maps(encoder) == set()
    for module in encoder.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    assert attention_maps(encoder)  # (2, heads, N, N)


class _Liar(Encoder):
    """An encoder with one fault, chosen by name."""

    def __init__(self, *, fault: str, in_channels: int = 3, weights: str | None = None) -> None:
        super().__init__()
        self.fault = fault
        self.conv = nn.Conv2d(in_channels, 6, 3, stride=1 if fault == "stride" else 2, padding=1)
        self.unused = nn.Linear(2, 2) if fault == "unused parameter" else nn.Identity()
        self.channels, self.strides = (7 if fault == "width" else 6,), (2,)
        self.size_multiple = 4 if fault == "accepts any size" else 1
        if fault != "statistics":
            self.mean, self.std = (0.5,) * in_channels, (0.5,) * in_channels
        self.count = 0.0

    def forward(self, image):
        self.count += self.fault == "random"
        x = self.conv(image) + self.count
        return [x.float() if self.fault == "precision" else x]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("width", "map 0 of a 96x64 image: promised"),
        ("stride", "map 0 of a 96x64 image: promised"),
        ("unused parameter", "no gradient reaches unused.weight"),
        ("accepts any size", "must raise ShapeError"),
        ("random", "must be deterministic"),
        ("precision", "must give float64 maps"),
        ("statistics", "one value per input channel"),
    ],
)
def test_a_broken_encoder_is_caught(fault, message):
    with pytest.raises(AssertionError, match=message):
        check_encoder(_Liar, fault=fault)


def test_an_honest_encoder_passes():
    check_encoder(_Liar, fault="none")


class _NarrowDecoder(Decoder):
    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], *, promise: int = 3) -> None:
        super().__init__(channels, strides)
        self.embedding = promise
        self.conv = nn.Conv2d(channels[0], 3, 1)

    def fuse(self, features: list[torch.Tensor]) -> torch.Tensor:
        return self.conv(features[0])


def test_a_decoder_with_another_width_than_promised_is_caught():
    check_decoder(_NarrowDecoder)
    with pytest.raises(AssertionError, match="width of refine's output"):
        check_decoder(_NarrowDecoder, promise=4)
