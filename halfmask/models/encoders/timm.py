"""Any feature extractor of the timm library, by its name.

Wightman, "PyTorch Image Models", 2019, https://github.com/huggingface/pytorch-image-models: about 1,000 networks with
a common interface for intermediate maps. The maps' real sizes are probed once (of large networks with shapes only),
because some networks round sizes down or accept multiples only, and their own tables do not say so. Networks bound to
one size (BEiT: a table of relative positions) are made for the training crop; whatever else comes is resized to it, as
in the evaluation of UniMatch V2 with such encoders (Yang et al., TPAMI 2025, arXiv:2410.10777, Table 9).

Plain transformers, whose blocks all have one stride, give their maps after the network's final LayerNorm, the same for
every map and trained with it, as DINOv2 does in UniMatch V2; class and register tokens are left out. Networks that
normalize only the average of their tokens (BEiT, `vit_*_gap_*`) have no such layer, and their maps are the blocks'
outputs, as are those of all other networks. Networks with a learned attention bias (BEiT) keep attention maps on a
CPU, where torch computes attention with such a bias in its plain form.
"""

import copy
import functools
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from halfmask.errors import RecipeError, nearest
from halfmask.models.encoders._encoder import Encoder, imagenet_statistics
from halfmask.models.encoders.efficientnet_lite import check_arithmetic
from halfmask.models.timm_library import pads_by_size, timm
from halfmask.models.weights import Release, find_file, fitting_state, is_local, timm_releases

_SMALL = 15_000_000  # weights of a network that computes the maps of a small image in a tenth of a second


class Timm(Encoder):
    """Maps of any timm network that offers `features_only`.

    Args:
        model: timm's name, without the tag: `convnext_tiny`, `vit_small_patch16_224`, ...
        in_channels: bands of the image.
        weights: `null`, `default`, a tag of this network (`in12k_ft_in1k`), or a local file.
        output_stride: 16 or 8 where the network supports dilation; `null` leaves it as it is.
        out_indices: which maps; `null` takes all of stride 4 or more, or four evenly spaced blocks of a plain
            transformer.
        img_size: side of the square images of a network bound to one size; `null` = the training crop. Images of other
            sizes are resized to it (`eval.mode=slide` keeps large ones sharp). Without effect on all other networks.
        frozen: not trained.
        drop_path: chance to skip a residual branch, growing linearly from 0 to this over the blocks, in networks that
            have it (ViT, Swin, ConvNeXt, PVT, ...).
    """

    def __init__(
        self,
        *,
        model: str,
        in_channels: Annotated[int, Field(ge=1)] = 3,
        weights: str | None = None,
        output_stride: Annotated[int, Field(ge=1)] | None = None,
        out_indices: tuple[int, ...] | None = None,
        img_size: Annotated[int, Field(ge=1)] | None = None,
        frozen: bool = False,
        drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        found = _look_at(
            model, in_channels, output_stride, tuple(out_indices) if out_indices else None, img_size, drop_path
        )
        arguments = dict(found.arguments)
        self.size_multiple, self.only_size = found.size_multiple, found.only_size
        if weights is not None:
            arguments |= _pretrained(model, weights, in_channels)
        if found.final_norm:
            arguments["feature_cls"] = functools.partial(timm.models._features.FeatureGetterNet, norm=True)
        self.net: Any = _create(model, **arguments)
        for module in self.net.modules():
            vars(module).pop("pretrained_cfg", None)
        self.channels, self.strides = _widths(self.net)
        if pads_by_size(self.net):
            # SAME padding depends on the size: on other sides than in training maps of different strides do not meet.
            self.size_multiple = math.lcm(self.size_multiple, self.strides[-1])
        self.channels_last = _is_channels_last(self.net)
        self.mean, self.std = _statistics(model, in_channels)
        if frozen:
            self.freeze()

    @classmethod
    def published(cls, params: Mapping[str, Any]) -> dict[str, Release]:
        """Return the library's releases of a network."""
        return timm_releases(params["model"])

    def forward(self, image: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _D _h _w"]]:
        """Return the maps at `out_indices`."""
        self.check_size(image)
        side = self.only_size
        if side is not None and image.shape[-2:] != (side, side):
            image = F.interpolate(image, size=(side, side), mode="bilinear", align_corners=True)
        maps = self.net(image)
        return [x.permute(0, 3, 1, 2).contiguous() for x in maps] if self.channels_last else list(maps)


class _Shape(NamedTuple):
    """What a network of the library takes and gives, as a copy without weights tells.

    Args:
        arguments: for the library's constructor.
        size_multiple: what the sides of images must be multiples of.
        only_size: the only side that it takes, if there is only one.
        final_norm: whether the library leaves out the norm after the last block.
    """

    arguments: dict[str, Any]
    size_multiple: int
    only_size: int | None
    final_norm: bool


@functools.cache
def _look_at(
    model: str,
    in_channels: int,
    output_stride: int | None,
    out_indices: tuple[int, ...] | None,
    img_size: int | None,
    drop_path: float,
) -> _Shape:
    """Find out what a network takes and gives. It takes as long as to make it: once per process is enough."""
    _check_name(model)
    arguments: dict[str, Any] = {"in_chans": in_channels}
    if output_stride is not None:
        arguments["output_stride"] = output_stride
    if drop_path:
        arguments["drop_path_rate"] = drop_path
        _check_drop_path(model, arguments)
    arguments |= _size_arguments(model, arguments)
    arguments["out_indices"] = out_indices or _default_indices(model, arguments)
    multiple, only_size = _sizes(model, arguments, img_size)
    if only_size is not None:
        arguments["img_size"] = only_size
    return _Shape(arguments, multiple, only_size, _has_final_norm(model, arguments))


def _check_name(model: str) -> None:
    if model not in timm.list_models():  # which knows no tags, unlike `is_model`
        raise RecipeError(
            f"model.encoder.model={model!r} is not a network of timm.{nearest(model, timm.list_models())} "
            "A weight tag goes to model.encoder.weights.",
            "H303",
        )


def _create(model: str, **arguments: Any) -> nn.Module:
    try:
        with _without_remarks_on_classifiers():
            return timm.create_model(model, features_only=True, **arguments)
    except (RuntimeError, AttributeError, AssertionError, NotImplementedError) as error:
        raise RecipeError(
            f"timm network {model} cannot give feature maps with {arguments}: {error}. "
            "Try other model.encoder.output_stride or out_indices, or another network."
        ) from error


@contextmanager
def _without_remarks_on_classifiers() -> Iterator[None]:
    """Silence the lines that list the tensors of a release that a feature extractor has no use for."""
    log = logging.getLogger("timm.models._builder")

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Unexpected keys")

    log.addFilter(wanted)
    try:
        yield
    finally:
        log.removeFilter(wanted)


def _check_drop_path(model: str, arguments: dict[str, Any]) -> None:
    """Refuse networks that have no residual branch to skip, or take the option and ignore it."""
    try:
        net = _create_shapes_only(model, **arguments)
    except TypeError:
        net = nn.Identity()
    if not any(getattr(module, "drop_prob", 0) for module in net.modules() if type(module).__name__ == "DropPath"):
        raise RecipeError(f"timm network {model} has no drop path. Leave model.encoder.drop_path out.", "H303")


def _create_shapes_only(model: str, **arguments: Any) -> nn.Module:
    with torch.device("meta"), _Unfilled():
        return _create(model, **arguments).eval()


class _Unfilled(TorchFunctionMode):
    """Skips the random numbers of new weights, which take most of the time of a network without any."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or func in _FILL:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


_FILL = {torch.Tensor.normal_, torch.Tensor.uniform_}


def _size_arguments(model: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Ask networks made for one image size to accept others; the option's name depends on the family."""
    config = timm.models.get_pretrained_cfg(model)
    if config is None or not config.fixed_input_size:
        return {}
    for option in ({"dynamic_img_size": True}, {"strict_img_size": False}):
        try:
            _create_shapes_only(model, **arguments, **option)
        except TypeError:
            continue
        return option
    return {}


def _default_indices(model: str, arguments: dict[str, Any]) -> tuple[int, ...]:
    net = _create_shapes_only(model, **arguments)
    _, strides = _widths(net)
    if len(set(strides)) == 1:  # a plain transformer: the library takes the last blocks only
        depth = len(net.model.blocks)  # type: ignore[arg-type, union-attr]
        return tuple(depth * part // 4 - 1 for part in range(1, 5))
    return tuple(index for index, stride in enumerate(strides) if stride >= 4)


def _has_final_norm(model: str, arguments: dict[str, Any]) -> bool:
    """Return whether it is a plain transformer with a norm after its last block, which timm removes by default."""
    net: Any = _create_shapes_only(model, **arguments)
    one_stride = len({stage["reduction"] for stage in net.feature_info.info}) == 1
    return one_stride and isinstance(net, timm.models._features.FeatureGetterNet) and hasattr(net.model, "norm")


def _widths(net: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
    info: Any = net.feature_info
    return tuple(info.channels()), tuple(info.reduction())


def _is_channels_last(net: nn.Module) -> bool:
    layout = getattr(net, "output_fmt", None)
    return layout is not None and str(layout.value).upper() == "NHWC"


def _pretrained(model: str, weights: str, in_channels: int) -> dict[str, Any]:
    releases = timm_releases(model)
    if not is_local(weights, releases):
        # The library knows which keys of its own releases belong to the classifier.
        return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(find_file(weights, releases))}}
    with torch.device("meta"):
        whole = timm.create_model(model, num_classes=0, in_chans=in_channels)
    config: Any = whole.pretrained_cfg
    classifiers = config.get("classifier") or ()
    stems = config.get("first_conv") or ""
    state = fitting_state(
        whole,
        weights,
        releases,
        stem=f"{stems if isinstance(stems, str) else stems[0]}.weight",
        convert=lambda state: check_arithmetic(whole, state),
        drop=tuple(f"{name}." for name in ([classifiers] if isinstance(classifiers, str) else classifiers)),
    )
    return {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}


def _statistics(model: str, in_channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    config = timm.models.get_pretrained_cfg(model)
    if config is None or in_channels != 3:
        return imagenet_statistics(in_channels)
    return tuple(config.mean), tuple(config.std)


def _sizes(model: str, arguments: dict[str, Any], img_size: int | None) -> tuple[int, int | None]:
    """Return the multiple that image sides must be of, and the only side, where there is only one."""
    multiple, failure = _multiple(model, arguments)
    if multiple is not None:
        return multiple, None
    config = timm.models.get_pretrained_cfg(model)
    side = img_size or (config.input_size[-1] if config is not None else 224)
    try:
        net = _create_shapes_only(model, **arguments, img_size=side)
        if _fits(net, arguments["in_chans"], side, side):
            return 1, side
    except (TypeError, RuntimeError, AssertionError, ValueError) as error:
        failure = error
    else:
        stride = max(_widths(net)[1])
        nearest_side = max(round(side / stride), 1) * stride
        raise RecipeError(
            f"timm network {model} is made for one image size, and {side} is no multiple of its stride {stride}. Use "
            f"data.crop={nearest_side}.",
            "H302",
        )
    raise RecipeError(
        f"timm network {model} takes neither images of any size nor of {side}x{side} ({failure}). Choose another, for "
        "example convnext_tiny, vit_small_patch16_224 or pvt_v2_b2."
    ) from failure


def _multiple(model: str, arguments: dict[str, Any]) -> tuple[int | None, Exception | None]:
    """Find the smallest multiple that fits, or why there is none."""
    net = _create_shapes_only(model, **arguments)
    failure: Exception | None = None
    # Shapes alone need the compiler of torch, which takes two seconds to import: longer than a small network takes.
    for device in ("cpu", "meta") if sum(p.numel() for p in net.parameters()) < _SMALL else ("meta",):
        probe = net if device == "meta" else _zeros(copy.deepcopy(net))
        multiple, failure = _smallest(probe, arguments["in_chans"])
        if multiple is not None:
            return multiple, None
    return None, failure


def _zeros(net: nn.Module) -> nn.Module:
    """Make the weights of a network real, all zero. Its `to_empty` would import the compiler, too."""
    net._apply(lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype))
    return net


def _smallest(net: nn.Module, channels: int) -> tuple[int | None, Exception | None]:
    _, strides = _widths(net)
    coarsest = max(strides)
    failure: Exception | None = None
    for multiple in sorted({1, min(strides), coarsest, 2 * coarsest}):
        try:
            if _fits(net, channels, 4 * coarsest + multiple, 6 * coarsest + multiple):
                return multiple, None
        except (RuntimeError, AssertionError, ValueError) as error:
            failure = error
    return None, failure


def _fits(net: nn.Module, channels: int, height: int, width: int) -> bool:
    """Tell whether map sizes are the image's divided by the strides, rounded up."""
    device = next(net.parameters()).device
    with torch.no_grad():
        maps = net(torch.zeros(1, channels, height, width, device=device))
    sizes = [tuple(x.shape[1:3] if _is_channels_last(net) else x.shape[2:]) for x in maps]
    return sizes == [(-(-height // stride), -(-width // stride)) for stride in _widths(net)[1]]
