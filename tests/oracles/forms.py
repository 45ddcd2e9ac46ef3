"""Compute whole steps by the textbook forms: `with plain_forms():`.

No other module knows of it. Inside the context every module of halfmask that uses a fast function finds its plain form
in its place, so build networks and methods inside, too. Random draws are the same in both forms; losses differ by
rounding only. What has no entry here has its own switch: CCT's `head_group=0`, `UniMatchV2.one_pass = False`,
`run.stream_loss=false`.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from halfmask.losses import cross_entropy
from halfmask.models import channel_attention, model, timm_library
from halfmask.models.decoders import dpt, psp, segformer
from halfmask.teaching import ema, grouping, memory, pseudo_label
from halfmask.views import boxes as fast_boxes
from halfmask.views import channel_dropout, strong, weak
from halfmask.views import mixing as fast_mixing
from tests.oracles import allspark, attention, losses, mixing, pseudo, segformer_head, strong_views
from tests.oracles import channel_dropout as plain_dropout
from tests.oracles import dpt as plain_dpt
from tests.oracles import ema as plain_ema
from tests.oracles import psp as plain_psp
from tests.oracles.geometry import cut_whole


def _attend(q: Tensor, k: Tensor, v: Tensor, dropout: float, keep: Tensor | None, impl: str) -> Tensor:
    return allspark.channel_attention(q, k, v, dropout, keep)


def _write_one_by_one(
    slots: Tensor, origin: Tensor, pointer: Tensor, vectors: Tensor, classes: Tensor, index: Tensor
) -> None:
    images = index[:, None, None].expand(*classes.shape, 1)
    allspark.enqueue(origin[..., None], pointer.clone(), images, classes)
    allspark.enqueue(slots, pointer, vectors, classes)


def _whole_chain(_: nn.Module, image: Tensor, params: strong.StrongParams) -> Tensor:
    return strong_views.strong_views(image.flatten(0, -4), **params._asdict()).reshape(image.shape)


def _drawn_boxes(corners: Tensor, size: tuple[int, int], device: torch.device | str | None = None) -> Tensor:
    boxes = [(top, left, bottom, right) for top, left, bottom, right in corners.tolist()]
    return mixing.boxes_to_mask(boxes, *size).to(device)


def _pair_one_by_one(kept: Tensor, undropped: Tensor) -> list[Tensor]:
    mask = plain_dropout.complementary_mask(kept, undropped.nonzero().flatten().tolist())
    return list(mask.to(kept.device).chunk(2))


def _cut_whole(
    image: np.ndarray, window: weak.Window, crop: int, *, fill: np.ndarray, resample: weak.Resample = "bilinear"
) -> np.ndarray:
    place: dict[str, Any] = {"size": window.size, "corner": window.corner, "crop": crop, "flip": window.flip}
    kernel, _ = weak._FILTERS[resample]
    bands = range(image.shape[2])
    return np.stack([cut_whole(image[:, :, band], **place, fill=int(fill[band]), resample=kernel) for band in bands])


_date_differences = model.date_differences


def _dates_in_turn(encode: Callable[[Tensor], list[Tensor]], image: Tensor, *, apart: bool) -> list[Tensor]:
    return _date_differences(encode, image, apart=True)


PLAIN: Mapping[Callable[..., Any], Callable[..., Any]] = {
    cross_entropy.bootstrapped_cross_entropy: losses.bootstrapped_cross_entropy,
    cross_entropy.cross_entropy: losses.cross_entropy,
    cross_entropy.masked_cross_entropy: losses.masked_cross_entropy,
    cross_entropy.ohem_cross_entropy: losses.ohem_cross_entropy,
    channel_attention.channel_attention: _attend,
    timm_library.fused_attention: attention.attention,
    dpt.mix_and_upsample: plain_dpt.upsampled_mix,
    psp.convolve_with_branches: plain_psp.convolved,
    segformer.folded_map: segformer_head.fused_map,
    model.date_differences: _dates_in_turn,
    ema.lerp_: plain_ema.lerp_,
    grouping.channel_classes: allspark.channel_classes,
    memory._write: _write_one_by_one,
    pseudo_label.pseudo_label: pseudo.pseudo_label,
    pseudo_label.pseudo_logs: pseudo.pseudo_logs,
    channel_dropout._pair: _pair_one_by_one,
    fast_mixing.paste: mixing.paste,
    fast_boxes.filled: _drawn_boxes,
    strong.StrongAugment.apply_params: _whole_chain,
    weak.cut_image: _cut_whole,
}


@contextmanager
def plain_forms() -> Iterator[None]:
    """Put the plain forms in place of the fast ones, in every module of halfmask.

    >>> fast = fast_mixing.paste
    >>> with plain_forms():
    ...     fast_mixing.paste is mixing.paste
    True
    >>> fast_mixing.paste is fast
    True
    """
    _exchange(PLAIN)
    try:
        yield
    finally:
        # Modules that were imported meanwhile hold plain forms, too: they get the fast ones now.
        _exchange({plain: fast for fast, plain in PLAIN.items()})


def _exchange(forms: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
    by_id = {id(old): new for old, new in forms.items()}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "halfmask":
            for owner in (module, strong.StrongAugment) if module is strong else (module,):
                for key, value in list(vars(owner).items()):
                    if id(value) in by_id:
                        setattr(owner, key, by_id[id(value)])
