"""CCT: auxiliary decoders, and the direction of I-VAT."""

from functools import partial

import torch
from torch import Tensor

from halfmask.bench.row import Measure, Pair, Row, Setting, Target, at_least, close
from halfmask.bench.timing import measure
from halfmask.losses.auxiliary_heads import AuxiliaryHeads, Perturbed
from halfmask.losses.consistency import Objective, pixel_weight
from halfmask.models.decoders.psp import SubPixel
from halfmask.reference import cct as plain
from halfmask.views.feature_noise import ChannelDrop, FeatureDrop, FeatureNoise, KeepContext, KeepObjects, make_guide
from halfmask.views.vat import Adversarial

_CLASSES = 21


def _make(setting: Setting, side: int, count: int) -> tuple[AuxiliaryHeads, Tensor, Tensor]:
    """Decoders, z (B, D, h, w) as behind a ReLU, and logits of a main decoder."""
    torch.manual_seed(setting.seed)
    width, side = setting.size(512, 24), setting.size(side, 4)
    heads = AuxiliaryHeads(SubPixel(width, _CLASSES), count).to(setting.device)
    z = setting.normal(2, width, side, side).relu().requires_grad_()
    coarse = setting.normal(2, _CLASSES, side // 2, side // 2) * 4  # objects of some cells
    return heads, z, torch.nn.functional.interpolate(coarse, (8 * side, 8 * side), mode="nearest")


def _objective(heads: AuxiliaryHeads, logits: Tensor) -> Objective:
    rows = heads.rows(logits).softmax(-1)
    return Objective("mse", rows, pixel_weight("mse", _CLASSES, torch.ones_like(rows[:, 0], dtype=torch.bool)))


def _own_weights(heads: AuxiliaryHeads) -> list[list[Tensor]]:
    """One list of leaves per decoder, as separate modules would hold them."""
    states = [heads.head_state(number) for number in range(heads.count)]
    return [[weight.requires_grad_() for weight in state.values()] for state in states]


def _run_plain(z: Tensor, weights: list[list[Tensor]], loss: Tensor) -> tuple[Tensor, ...]:
    leaves = [weight for own in weights for weight in own]
    found = torch.autograd.grad(loss, [z, *leaves])
    return (loss.detach(), *found)


def _run_stacked(heads: AuxiliaryHeads, z: Tensor, loss: Tensor) -> tuple[Tensor, ...]:
    found = torch.autograd.grad(loss, [z, *heads.parameters()])
    of = {id(parameter): gradient for parameter, gradient in zip(heads.parameters(), found[1:], strict=True)}
    rows = [of[id(view._base)].view(view.shape) for view in heads.stacked().values()]  # in the order of a classifier
    return (loss.detach(), found[0], *(row[number] for number in range(heads.count) for row in rows))


def _heads(setting: Setting, side: int) -> Pair:
    heads, z, logits = _make(setting, side, 30)
    weights = _own_weights(heads)

    def reference() -> tuple[Tensor, ...]:
        loss = plain.auxiliary_loss(z, weights, [lambda z: z] * 30, logits.softmax(1))
        return _run_plain(z, weights, loss)

    def fast() -> tuple[Tensor, ...]:
        ones = Perturbed(torch.ones(30, 1, 1, 1, 1, device=z.device))
        return _run_stacked(heads, z, heads.loss(z, [ones], _objective(heads, logits), group=_group(setting))[0])

    return Pair(reference, fast, close(atol=1e-5, rtol=1e-3), flops=True, graph=True)


def _perturbed(setting: Setting) -> Pair:
    """The published decoders but those of I-VAT and G-Cutout, whose draws differ: 22, on the same draws."""
    heads, z, logits = _make(setting, 40, 22)
    weights, foreground = _own_weights(heads), torch.arange(_CLASSES, device=setting.device) > 0
    detached = z.detach()
    drop, gamma, noise = (kind.sample(detached, None, 6) for kind in (ChannelDrop(), FeatureDrop(), FeatureNoise()))

    def reference() -> tuple[Tensor, ...]:
        perturbations = [
            *(partial(torch.mul, draw) for draw in drop),
            *[partial(plain.keep_objects, prediction=logits)] * 2,
            *[partial(plain.keep_context, prediction=logits)] * 2,
            *(partial(plain.feature_drop, gamma=float(one)) for one in gamma),
            *(partial(plain.feature_noise, noise=one) for one in noise),
        ]
        return _run_plain(z, weights, plain.auxiliary_loss(z, weights, perturbations, logits.softmax(1)))

    def fast() -> tuple[Tensor, ...]:
        size = (z.shape[-2], z.shape[-1])
        guide = make_guide(logits.max(1).indices, foreground, size)
        kinds = (
            (ChannelDrop(), drop),
            (KeepObjects(), KeepObjects().sample(detached, guide, 2)),
            (KeepContext(), KeepContext().sample(detached, guide, 2)),
            (FeatureDrop(), gamma),
            (FeatureNoise(), noise),
        )
        perturbed = [Perturbed(kind.factor(detached, draws)) for kind, draws in kinds]
        return _run_stacked(heads, z, heads.loss(z, perturbed, _objective(heads, logits), group=_group(setting))[0])

    return Pair(reference, fast, close(atol=1e-5, rtol=1e-3), graph=True)


def _group(setting: Setting) -> int:
    return 1 if setting.device.type == "cpu" else 6  # what `head_group: auto` takes


def _vat(setting: Setting, dtype: torch.dtype) -> list[Measure]:
    """Compare the exact direction, with weights and z rounded to `dtype`, with a finite difference in float64."""
    heads, z, _ = _make(setting, 16, 1)
    z = z.detach()
    for weight in heads.weights.values():
        weight.data = weight.data.to(dtype).float()
    rounded, u = z.to(dtype).float(), torch.rand(z.shape, generator=setting.generator()).to(z)
    weights = [weight.double() for weight in _own_weights(_make(setting, 16, 1)[0])[0]]
    eps = 2.0

    def published() -> Tensor:
        head = partial(plain.decode, [weight.float() for weight in weights])
        return plain.adversarial(z, head, u, xi=0.1, eps=eps) - z

    def exact() -> Tensor:
        return Adversarial(eps).offset(rounded, heads.row_head(0), u)

    wide = plain.adversarial(z.double(), partial(plain.decode, weights), u.double(), xi=1e-4, eps=eps) - z
    found = exact().double().flatten(1)
    cosine = (found * wide.flatten(1)).sum(1) / (found.norm(dim=1) * wide.flatten(1).norm(dim=1))
    published()
    times = [measure(form, setting.device, 3).own for form in (published, exact)]
    return [
        Measure("cosine", cosine.min().item(), unit=""),
        Measure("norm error", (found.norm(dim=1) / eps - 1).abs().max().item(), unit=""),
        Measure("time", times[0] / times[1], reference=times[0], fast=times[1]),
    ]


_HEADS = "30 auxiliary decoders and their loss, forward and backward: loop, pixel shuffle | groups of rows"
_KINDS = "22 perturbed decoders, forward and backward: each mask anew | shared masks, commuted factors"
_VAT = {"cosine": Target(least=0.995), "norm error": Target(most=0.01)}

ROWS = [
    *(
        Row(
            "cct-aux",
            f"B=2, {side}x{side} cells, K=21",
            partial(_heads, side=side),
            _HEADS,
            {"cpu": at_least(time=1.0, peak=2.4), "cuda": at_least(time=2.0)},
        )
        for side in (16, 40)
    ),
    Row("cct-aux", "B=2, 40x40 cells, K=21, perturbed", _perturbed, _KINDS, {"cpu": at_least(time=1.25)}),
    *(
        Row(
            "vat",
            f"B=2, 16x16 cells, {str(dtype).removeprefix('torch.')}",
            partial(_vat, dtype=dtype),
            "direction of I-VAT: finite difference (time: in float32) | exact derivative",
            {"cpu": _VAT, "cuda": _VAT},
        )
        for dtype in (torch.float32, torch.bfloat16)
    ),
]
