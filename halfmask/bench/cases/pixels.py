"""Per-pixel operations of a step: pseudo-labels, CutMix, hard pixels."""

from functools import partial

import torch
import torch.nn.functional as F

from halfmask.bench.row import Pair, Row, Setting, at_least, close, equal_but
from halfmask.losses.cross_entropy import hard_pixels, ohem_cross_entropy
from halfmask.reference import losses, mixing, pseudo
from halfmask.teaching.pseudo_label import pseudo_label
from halfmask.views.mixing import box_mask, paste

_IGNORE = 255


def _pseudo(setting: Setting, classes: int, images: int) -> Pair:
    side = setting.size(518, 24)
    logits = setting.normal(images, classes, side, side) * 4
    pixels = images * side * side
    return Pair(
        lambda: pseudo.pseudo_label(logits),
        lambda: pseudo_label(logits),
        close(atol=1e-5),
        traffic=logits.nbytes + pixels * (8 + 4),  # label and confidence are written
    )


def _cutmix(setting: Setting, images: int = 8) -> Pair:
    side = setting.size(518, 32)
    own = setting.normal(images, 3, side, side)
    box = box_mask((images, side, side), p=1.0, device=setting.device, generator=setting.generator())
    return Pair(
        lambda: mixing.paste(box, own)[0],
        lambda: paste(box, own)[0],
        close(atol=0.0),
        traffic=2 * own.nbytes + box.nbytes,  # of two pixels one is read
    )


def _ohem(setting: Setting, classes: int, images: int) -> Pair:
    side = setting.size(518, 24)
    logits = (setting.normal(images, classes, side, side) * 2).requires_grad_()
    target = setting.integers(classes, images, side, side)
    target[:, : side // 20 + 1] = _IGNORE
    threshold, min_kept = 0.05, images * side * side // 3

    def both(form):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        loss = form(logits, target, threshold=threshold, min_kept=min_kept, ignore_index=_IGNORE)
        return loss.detach(), *torch.autograd.grad(loss, logits)

    return Pair(
        partial(both, losses.ohem_cross_entropy),
        partial(both, ohem_cross_entropy),
        close(atol=1e-5, rtol=1e-5),
        traffic=2 * logits.nbytes + target.nbytes,  # logits are read, their gradient is written
        graph=True,
    )


def _selection(setting: Setting, classes: int, images: int) -> Pair:
    side = setting.size(518, 24)
    logits = setting.normal(images, classes, side, side) * 2
    target = setting.integers(classes, images, side, side)
    target[:, : side // 20 + 1] = _IGNORE
    loss = F.cross_entropy(logits, target, ignore_index=_IGNORE, reduction="none")  # there in any case
    threshold, min_kept = 0.05, images * side * side // 3
    return Pair(
        lambda: losses.hard_pixels(logits, target, threshold=threshold, min_kept=min_kept, ignore_index=_IGNORE),
        lambda: hard_pixels(loss, target != _IGNORE, threshold=threshold, min_kept=min_kept),
        equal_but(1e-4),
        traffic=loss.nbytes + target.numel(),
    )


_TITLE = {
    "pseudo-label": "label and confidence: softmax, argmax, maximum | maximum and log-sum-exp",
    "cutmix": "paste rectangles of the mirrored batch: boolean indexing | where",
    "ohem": "choose hard pixels: softmax and sort | pixel losses and k-th value",
    "ohem-loss": "loss of hard pixels, forward and backward: softmax, sort, boolean index | k-th value, mask",
}

ROWS = [
    *(
        Row(
            "pseudo-label",
            f"K={classes}, {images} x 518x518",
            partial(_pseudo, classes=classes, images=images),
            _TITLE["pseudo-label"],
            {"cpu": at_least(time=least)},
        )
        for classes, images, least in ((21, 2, 3.0), (150, 1, 1.8))
    ),
    Row("cutmix", "8 x 518x518", _cutmix, _TITLE["cutmix"], {"cpu": at_least(time=10.0)}),
    *(
        Row(
            id,
            f"K={classes}, {images} x 518x518",
            partial(work, classes=classes, images=images),
            _TITLE[id],
            {"cpu": targets},
        )
        for id, work, targets in (("ohem", _selection, at_least(time=6.0)), ("ohem-loss", _ohem, {}))
        for classes, images in ((21, 2), (150, 1))
    ),
]
