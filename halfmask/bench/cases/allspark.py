"""AllSpark: attention among channels, and the memory of classes."""

from functools import partial

import torch
from torch import Tensor

from halfmask.bench.row import Pair, Row, Setting, Target, at_least, close
from halfmask.models.channel_attention import channel_attention
from halfmask.reference import allspark as plain
from halfmask.teaching.memory import enqueue

_CHANNELS, _TOKENS = 512, 289  # of the coarsest map at crop 513
_SIZES = ((21, 2), (81, 1), (150, 1))  # K, B


def _spark(setting: Setting, classes: int, images: int, dropout: float) -> Pair:
    channels, tokens = setting.size(_CHANNELS, 16), setting.size(_TOKENS, 9)
    generator = setting.generator()
    q = setting.normal(images, channels, tokens, generator=generator).requires_grad_()
    k, v = (setting.normal(1, classes * channels, tokens, generator=generator).requires_grad_() for _ in range(2))
    weight = setting.normal(images, channels, tokens, generator=generator)
    compare = close(atol=2e-5, rtol=1e-3)

    def run(form, dropout: float) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]  # noqa: ANN001
        out = form(q, k, v, dropout)
        return (out.detach(), *torch.autograd.grad((out * weight).sum(), (q, k, v)))

    def agree(expected: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> str:
        if dropout:  # the masks differ: what can be equal is the form without dropout
            expected, found = run(plain.channel_attention, 0.0), run(channel_attention, 0.0)
        return compare(expected, found)

    return Pair(
        partial(run, plain.channel_attention, dropout),
        partial(run, channel_attention, dropout),
        agree,
        flops=True,
        graph=True,
    )


def _enqueue(setting: Setting, classes: int, images: int, one_class: bool) -> Pair:
    slots, width = setting.size(_CHANNELS, 16), setting.size(_TOKENS, 9)
    vectors = setting.normal(images, slots, width)
    labels = torch.full_like(setting.integers(classes, images, slots), 3) if one_class else None
    labels = setting.integers(classes, images, slots) if labels is None else labels
    state = [
        (torch.zeros(classes, slots, width, device=setting.device), setting.integers(slots, classes)) for _ in range(2)
    ]

    def run(form, memory: Tensor, pointer: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]  # noqa: ANN001
        form(memory, pointer, vectors, labels)
        return memory, pointer

    return Pair(partial(run, plain.enqueue, *state[0]), partial(run, enqueue, *state[1]), close(atol=0.0))


_SPARK = "channel attention, forward and backward: whole score matrix, instance norm | moments, streamed"
_ENQUEUE = "write a batch into the memory: image by image, class by class | at once, without the host"

ROWS = [
    *(
        Row(
            "spark",
            f"K={classes}, B={images}, C=512, 289 tokens, dropout {dropout:g}",
            partial(_spark, classes=classes, images=images, dropout=dropout),
            _SPARK,
            {"cpu": at_least(time=0.85, saved=3.0 if classes == 21 else 2.4), "cuda": at_least(time=3.0)},
        )
        for classes, images in _SIZES
        for dropout in (0.1, 0.0)
    ),
    *(
        Row(
            "memory-enqueue",
            f"K={classes}, B={images}, {'one class' if one_class else 'random classes'}",
            partial(_enqueue, classes=classes, images=images, one_class=one_class),
            _ENQUEUE,
            {"cpu": at_least(time=1.8 if one_class else 4.0), "cuda": {"syncs": Target(most=0.0)}},
        )
        for classes, images in _SIZES
        for one_class in (False, True)
    ),
]
