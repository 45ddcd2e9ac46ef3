"""Losses of upsampled logits."""

from functools import partial

import torch
from torch import Tensor

from halfmask.bench.row import Pair, Row, Setting, at_least, close
from halfmask.losses.upsampled import upsampled_cross_entropy
from halfmask.reference import losses as plain


def _up_ce(setting: Setting, classes: int, images: int) -> Pair:
    side, cells = setting.size(518, 40), setting.size(296, 24)  # DPT's logits have 8 / 14 of the pixels
    logits = setting.normal(images, classes, cells, cells).requires_grad_()
    target = setting.integers(classes, images, side, side)
    target[:, :, : side // 20 + 1] = 255

    def run(form) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]  # noqa: ANN001
        loss = form(logits, target, True)
        return loss.detach(), torch.autograd.grad(loss, logits)[0]

    return Pair(
        partial(run, plain.upsampled_cross_entropy),
        partial(run, upsampled_cross_entropy),
        close(atol=1e-6, rtol=1e-3),
        traffic=2 * logits.nbytes + target.nbytes,
        graph=True,
    )


_TITLE = "upsample and cross-entropy, forward and backward: whole logits | bands of rows (above 512 MiB)"

ROWS = [
    Row("up-ce", "K=21, 4 x 518x518", partial(_up_ce, classes=21, images=4), _TITLE, {"cpu": at_least(time=0.97)}),
    Row(
        "up-ce",
        "K=150, 4 x 518x518",
        partial(_up_ce, classes=150, images=4),
        _TITLE,
        {"cpu": at_least(time=1.1), "cuda": at_least(peak=5.0)},
    ),
]
