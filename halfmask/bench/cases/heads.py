"""Heads of networks."""

import copy

import torch
from torch import Tensor

from halfmask.bench.row import Pair, Row, Setting, at_least, close
from halfmask.models.decoders.segformer import SegFormer

_CHANNELS, _STRIDES = (64, 128, 320, 512), (4, 8, 16, 32)  # MiT-B2 to -B5


def _segformer(setting: Setting) -> Pair:
    embedding, side = setting.size(768, 16), setting.size(513, 65)
    torch.manual_seed(setting.seed)
    fast = SegFormer(_CHANNELS, _STRIDES, embedding=embedding, dropout=0.0).to(setting.device)
    reference = copy.deepcopy(fast)
    reference.impl = "reference"
    cells = [(side - 1) // stride + 1 for stride in _STRIDES]
    features = [
        setting.normal(1, width, side, side).requires_grad_() for width, side in zip(_CHANNELS, cells, strict=True)
    ]
    weight = setting.normal(1, embedding, cells[0], cells[0])

    def run(head: SegFormer) -> tuple[Tensor, ...]:
        out = head.fuse(features)
        # Biases before a normalization have no gradient but rounding.
        parameters = [parameter for parameter in head.parameters() if parameter.ndim > 1]
        gradients = torch.autograd.grad((out * weight).mean(), [*features, *parameters])
        return (out.detach(), *gradients)

    return Pair(lambda: run(reference), lambda: run(fast), close(atol=2e-4), flops=True, graph=True)


ROWS = [
    Row(
        "segformer-head",
        "E=768, crop 513, MiT-B2 widths, B=1",
        _segformer,
        "SegFormer's head, forward and backward: mix above | below the upsampling",
        {"cpu": at_least(time=3.5), "cuda": at_least(time=3.0)},
    )
]
