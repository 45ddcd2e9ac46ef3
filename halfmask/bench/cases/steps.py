"""Whole training steps."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from halfmask.batch import Batch, Progress, Samples
from halfmask.bench.networks import dinov2_dpt
from halfmask.bench.row import Disagreement, Pair, Row, Setting, Target, at_least, close
from halfmask.forms import plain_forms, use_plain_layers
from halfmask.methods.unimatch_v2 import UniMatchV2
from halfmask.models.model import Model
from halfmask.reference.ema import ema_update
from halfmask.reference.unimatch import unimatch_v2_loss
from halfmask.task import Task

_CLASSES = 21
_PROGRESS = Progress(1000, 2000, 100)


class _Inputs:
    """A batch, and the draws of the step, the same for both forms."""

    def __init__(self, setting: Setting, side: int, images: int) -> None:
        generator, device = setting.generator(), setting.device
        shape = (images, 3, side, side)
        self.labeled, self.weak, *self.strong = (torch.rand(shape, generator=generator).to(device) for _ in range(4))
        self.target = torch.randint(_CLASSES, (images, side, side), generator=generator).to(device)
        self.valid = torch.ones(images, side, side, dtype=torch.bool, device=device)
        self.box = torch.zeros(images, side, side, dtype=torch.bool, device=device)
        self.box[:, side // 4 : side // 2, side // 4 :] = True
        self.index = torch.arange(images, device=device)

    def batch(self) -> Batch:
        labeled = Samples(self.labeled, self.valid, self.index, self.target)
        return Batch(labeled, Samples(self.weak, self.valid, self.index))

    def mask(self, width: int) -> Tensor:
        """Channel factors of [view 1; view 2]: complementary halves."""
        first = (torch.arange(width, device=self.labeled.device) % 2 * 2.0).expand(len(self.labeled), -1)
        return torch.cat((first, 2 - first))


class _Build:
    """Makes the same network again and again."""

    def __init__(self, setting: Setting, size: str, crop: int) -> None:
        self.setting, self.size, self.crop = setting, size, crop

    def __call__(self, **overrides: Any) -> Model:
        return dinov2_dpt(self.setting, _CLASSES, self.size)


def _unimatch(setting: Setting, size: str, side: int, images: int, half: bool) -> Pair:
    side = setting.size(side, 28)
    inputs = _Inputs(setting, side, images)

    build = _Build(setting, size, side)
    method = UniMatchV2(Task("segmentation", tuple(map(str, range(_CLASSES)))), build, threshold=0.0).train()
    views = {"next": 0}

    def strong(_: Tensor) -> Tensor:
        views["next"] += 1
        return inputs.strong[views["next"] % 2 - 1]

    del method.strong  # a module's place takes no function
    method.strong = strong  # type: ignore[assignment]
    method.boxes = lambda *_, **__: inputs.box
    method.dropout = lambda _, widths, **__: [inputs.mask(width) for width in widths]
    student, teacher = build().train(), build().eval()
    with plain_forms():
        use_plain_layers(student)
        use_plain_layers(teacher)
    batch = inputs.batch()

    def reference() -> tuple[Tensor, ...]:
        loss = unimatch_v2_loss(
            student,
            teacher,
            (inputs.labeled, inputs.target),
            (inputs.weak, inputs.valid),
            inputs.strong,
            [inputs.box] * 2,
            inputs.mask(student.encoder.channels[0]),
            threshold=0.0,
        )
        gradients = torch.autograd.grad(loss, list(student.parameters()), allow_unused=True)
        ema_update(teacher, student, 0.996)
        return (loss.detach(), *_some(gradients))

    def fast() -> tuple[Tensor, ...]:
        views["next"] = 0
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=half):
            loss = method.step(batch, _PROGRESS).loss
        gradients = torch.autograd.grad(loss, list(method.student.parameters()), allow_unused=True)
        method.after_update(_PROGRESS)
        return (loss.detach(), *_some(gradients))

    # bfloat16 has three digits; in float32 sums over joined and separate batches round differently.
    agree = _same_loss if half else close(atol=2e-4, rtol=1e-2)
    dtype = torch.bfloat16 if half else torch.float32
    return Pair(reference, fast, agree, flops=True, graph=True, dtype=dtype)


def _some(gradients: tuple[Tensor | None, ...]) -> list[Tensor]:
    return [gradient for gradient in gradients if gradient is not None][-6:]  # of the decoder and classifier


def _same_loss(reference: tuple[Tensor, ...], fast: tuple[Tensor, ...]) -> str:
    difference = (fast[0] / reference[0] - 1).abs().item()
    plain, quick = (torch.cat([gradient.double().flatten() for gradient in form[1:]]) for form in (reference, fast))
    cosine = torch.dot(plain / plain.norm(), quick / quick.norm()).item()
    if difference > 0.02 or cosine < 0.99:
        raise Disagreement(
            f"losses differ by {difference:.1%}, allowed 2%; cosine of gradients {cosine:.3f}, least 0.99"
        )
    return f"losses differ by {difference:.2%}, cosine of gradients {cosine:.4f}"


_TITLE = "UniMatch V2, forward, backward, EMA: separate passes, layers as published, float32 | as it trains"
_NATIVE = bool(torch.cpu._is_avx512_bf16_supported())

ROWS = [
    *(
        Row(
            "unimatch-step",
            f"ViT-S, {side} pixels, B=2+2, {'bfloat16' if half else 'float32'}",
            partial(_unimatch, size="small", side=side, images=2, half=half),
            _TITLE,
            {"cpu": at_least(time=least)} if _NATIVE or not half else {},
            devices=("cpu",),
        )
        for side, half, least in ((126, False, 1.1), (252, False, 1.0), (126, True, 2.0))
    ),
    *(
        Row(
            "unimatch-step",
            f"ViT-{size[0].upper()}, 518 pixels, B=4+4, bfloat16",
            partial(_unimatch, size=size, side=518, images=4, half=True),
            _TITLE,
            {"cuda": {**at_least(time=4.0), "syncs": Target(most=0.0)}},
            devices=("cuda",),
        )
        for size in ("small", "base")
    ),
]
