"""Contract checks of encoders, decoders and bottlenecks, for our own files and for those of third parties.

    from halfmask.testing.models import check_decoder, check_encoder
    check_encoder(MyEncoder, depth=18)
    check_decoder(MyDecoder, channels=(8, 16, 32, 64), strides=(4, 8, 16, 32))

Each raises `AssertionError` with the rule that was broken. Pass parameters that make the network small.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from halfmask.errors import ShapeError
from halfmask.models.bottlenecks._bottleneck import Bottleneck
from halfmask.models.decoders._decoder import Decoder
from halfmask.models.encoders._encoder import Encoder
from halfmask.plugins import params_model

_CLASSES = 5


def check_encoder(cls: type[Encoder], **params: Any) -> None:
    """Check that an encoder's promises hold.

    Widths and strides are honest at any legal size (side / stride, rounded up), sizes that are no multiple are
    refused, every trainable parameter gets a gradient, a state dict restores the outputs exactly, other input
    channels and float64 work, evaluation is deterministic, and `frozen` freezes.
    """
    accepted = params_model(cls).model_fields
    for name in ("in_channels", "weights"):
        _require(name in accepted, f"{cls.__name__} must take the keyword-only argument {name}")
    encoder = cls(**params).eval()
    _require(len(encoder.channels) == len(encoder.strides) > 0, "channels and strides must have the same length")
    _require(list(encoder.strides) == sorted(encoder.strides), "maps must be ordered fine to coarse")
    for height, width in _sizes(encoder.size_multiple):
        _check_maps(encoder, encoder(_image(1, 3, height, width)), height, width)
    _check_refusal(encoder)

    height, width = _sizes(encoder.size_multiple)[0]
    image = _image(2, 3, height, width)
    with torch.no_grad():
        _require(_same(encoder(image), encoder(image)), "evaluation must be deterministic")
        restored = cls(**params).eval()
        restored.load_state_dict(encoder.state_dict())
        _require(_same(encoder(image), restored(image)), "a state dict must restore the outputs exactly")
        _require(all(torch.isfinite(x).all() for x in restored.train()(image)), "outputs in train mode must be finite")
        maps = restored.eval().double()(image.double())
        _require(all(x.dtype == torch.float64 for x in maps), "a float64 encoder must give float64 maps")
        other = cls(**params, in_channels=5).eval()
        _check_maps(other, other(_image(1, 5, height, width)), height, width)
        _require(len(other.mean) == len(other.std) == 5, "mean and std must have one value per input channel")
    _check_gradients(encoder, lambda: encoder(image))
    if "frozen" in accepted:
        _check_frozen(cls(**params, frozen=True))


def check_decoder(
    cls: type[Decoder],
    channels: tuple[int, ...] = (8, 16, 32, 64),
    strides: tuple[int, ...] = (4, 8, 16, 32),
    **params: Any,
) -> None:
    """Check that a decoder's promises hold for maps of these widths and strides.

    The embedding has the promised width and feeds the classifier, any map sizes work, every trainable parameter
    gets a gradient, a state dict restores the outputs exactly, float64 works, evaluation is deterministic.
    """
    first_two = list(inspect.signature(cls).parameters)[:2]
    _require(first_two == ["channels", "strides"], f"{cls.__name__} must take channels and strides first")
    decoder = cls(channels, strides, **params).eval()
    classifier = decoder.make_classifier(_CLASSES)

    def embed(network: Decoder, features: list[Tensor]) -> Tensor:
        return network.refine(network.fuse(features))

    for height, width in ((64, 96), (97, 130)):
        embedding = embed(decoder, _maps(2, channels, strides, height, width))
        _require(embedding.shape[:2] == (2, decoder.embedding), "`embedding` must be the width of refine's output")
        _require(classifier(embedding).shape[:2] == (2, _CLASSES), "the classifier must give one map per class")

    features = _maps(2, channels, strides, 64, 96)
    with torch.no_grad():
        _require(_same([embed(decoder, features)], [embed(decoder, features)]), "evaluation must be deterministic")
        restored = cls(channels, strides, **params).eval()
        restored.load_state_dict(decoder.state_dict())
        same = _same([embed(decoder, features)], [embed(restored, features)])
        _require(same, "a state dict must restore the outputs exactly")
        _require(bool(torch.isfinite(embed(restored.train(), features)).all()), "train mode must give finite values")
        double = embed(restored.eval().double(), [x.double() for x in features])
        _require(double.dtype == torch.float64, "a float64 decoder must give a float64 embedding")
    both = nn.ModuleList([decoder, classifier])
    _check_gradients(both, lambda: [classifier(embed(decoder, features))])


def check_bottleneck(cls: type[Bottleneck], channels: int = 12, **params: Any) -> None:
    """Check that a bottleneck's promises hold for a map of this width.

    The map keeps its shape whatever its size is, one image's result does not depend on the others in evaluation, a
    gradient reaches the map, a state dict restores the outputs exactly, float64 works, evaluation is deterministic.
    """
    first = list(inspect.signature(cls).parameters)[:1]
    _require(first == ["channels"], f"{cls.__name__} must take channels first")
    bottleneck = cls(channels, **params).eval()
    for height, width in ((4, 4), (3, 5), (1, 1)):
        (x,) = _maps(2, (channels,), (1,), height, width)
        with torch.no_grad():
            out = bottleneck(x)
            _require(out.shape == x.shape, "the map must keep its shape")
            _require(_same([out], [bottleneck(x)]), "evaluation must be deterministic")
            alone = bottleneck(x[:1])
            together = torch.allclose(alone, out[:1], atol=1e-5)
            _require(together, "in evaluation an image must not depend on the others of its batch")
    (x,) = _maps(2, (channels,), (1,), 4, 6)
    with torch.no_grad():
        restored = cls(channels, **params).eval()
        restored.load_state_dict(bottleneck.state_dict())
        _require(_same([bottleneck(x)], [restored(x)]), "a state dict must restore the outputs exactly")
        _require(bool(torch.isfinite(restored.train()(x)).all()), "train mode must give finite values")
        double = restored.eval().double()(x.double())
        _require(double.dtype == torch.float64, "a float64 bottleneck must give a float64 map")
    x.requires_grad_()
    bottleneck(x).square().sum().backward()
    _require(x.grad is not None and bool(x.grad.isfinite().all()), "the gradient of the map must exist and be finite")


def _sizes(multiple: int) -> list[tuple[int, int]]:
    """Return two small sizes, one of which is as odd as the encoder allows."""
    if multiple == 1:
        return [(64, 96), (65, 97)]
    side = multiple * max(1, 64 // multiple)
    return [(side, side + multiple), (side + multiple, side)]


def _image(batch: int, channels: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(0))


def _maps(batch: int, channels: tuple[int, ...], strides: tuple[int, ...], height: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, c, -(-height // s), -(-width // s), generator=generator)
        for c, s in zip(channels, strides, strict=True)
    ]


def _check_maps(encoder: Encoder, maps: list[Tensor], height: int, width: int) -> None:
    _require(len(maps) == len(encoder.channels), f"{len(encoder.channels)} maps promised, {len(maps)} given")
    for level, (x, channels, stride) in enumerate(zip(maps, encoder.channels, encoder.strides, strict=True)):
        promised = (channels, -(-height // stride), -(-width // stride))
        given = tuple(x.shape[1:])
        _require(given == promised, f"map {level} of a {width}x{height} image: promised {promised}, given {given}")


def _check_refusal(encoder: Encoder) -> None:
    multiple = encoder.size_multiple
    if multiple == 1:
        return
    side = multiple * max(1, 64 // multiple)
    try:
        encoder(_image(1, 3, side, side + 1))
    except ShapeError as error:
        _require(str(multiple) in str(error), "the ShapeError must name the multiple")
    else:
        raise AssertionError(f"a side that is no multiple of {multiple} must raise ShapeError")


def _check_gradients(module: nn.Module, outputs: Callable[[], list[Tensor]]) -> None:
    # Zero-initialized residual branches have zero gradients by design: move every parameter first.
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    module.zero_grad()
    # Weights of all signs: a plain sum would have no gradient behind a normalization.
    terms = [(x.float() * torch.linspace(-1, 1, x.numel()).view_as(x)).sum() for x in outputs()]
    torch.autograd.backward([term for term in terms if term.requires_grad])  # maps of frozen stages have none
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            gradient = parameter.grad
            _require(gradient is not None, f"no gradient reaches {name}")
            assert gradient is not None
            _require(bool(torch.isfinite(gradient).all()), f"the gradient of {name} is not finite")
            _require(bool(gradient.abs().sum() > 0), f"the gradient of {name} is 0")


def _check_frozen(encoder: Encoder) -> None:
    trainable = [name for name, parameter in encoder.named_parameters() if parameter.requires_grad]
    _require(not trainable, f"frozen, but trainable: {trainable[:3]}")
    encoder.train()
    _require(not any(module.training for module in encoder.modules()), "frozen, but train() reaches its modules")


def _same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _require(fact: bool, rule: str) -> None:
    if not fact:
        raise AssertionError(rule)
