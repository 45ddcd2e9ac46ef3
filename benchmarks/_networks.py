"""Rows of parts of networks and of whole training steps: the library's form against the textbook's."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from _oracles import allspark, cct, ema, plain_forms, unimatch_v2_loss
from _pairs import Disagreement, Measure, Pair, Row, Setting, close, forms, seconds
from torch import Tensor

from halfmask.batch import Batch, Progress, Samples
from halfmask.losses.auxiliary_heads import AuxiliaryHeads, Perturbed
from halfmask.losses.consistency import Objective, pixel_weight
from halfmask.methods.unimatch_v2 import UniMatchV2
from halfmask.models.build import Builder
from halfmask.models.channel_attention import channel_attention
from halfmask.models.decoders.psp import SubPixel
from halfmask.models.decoders.segformer import SegFormer
from halfmask.models.model import Model
from halfmask.recipe.sections import ModelRecipe
from halfmask.task import Task
from halfmask.teaching.ema import ema_copy
from halfmask.teaching.memory import enqueue
from halfmask.views.feature_noise import ChannelDrop, FeatureDrop, FeatureNoise, KeepContext, KeepObjects, make_guide
from halfmask.views.vat import Adversarial

Tensors = tuple[Tensor, ...]


def _spark(setting: Setting, classes: int, images: int, dropout: float) -> Pair:
    channels, tokens = setting.size(512, 16), setting.size(289, 9)  # of the coarsest map at crop 513
    generator = setting.generator()
    q = setting.normal(images, channels, tokens, generator=generator).requires_grad_()
    k, v = (setting.normal(1, classes * channels, tokens, generator=generator).requires_grad_() for _ in range(2))
    weight = setting.normal(images, channels, tokens, generator=generator)
    compare = close(atol=2e-5, rtol=1e-3)

    def run(form: Callable[..., Tensor], p: float = dropout) -> Tensors:
        out = form(q, k, v, p)
        return out.detach(), *torch.autograd.grad((out * weight).sum(), (q, k, v))

    def agree(plain: Tensors, fast: Tensors) -> str:
        if dropout:  # the masks differ: what can be equal is the form without dropout
            plain, fast = run(allspark.channel_attention, 0.0), run(channel_attention, 0.0)
        return compare(plain, fast)

    return forms(run, allspark.channel_attention, channel_attention, agree, flops=True, graph=True)


def _enqueue(setting: Setting, classes: int, images: int, one_class: bool) -> Pair:
    slots, width = setting.size(512, 16), setting.size(289, 9)
    vectors, labels = setting.normal(images, slots, width), setting.integers(classes, images, slots)
    labels = torch.full_like(labels, 3) if one_class else labels
    states = {
        form: (torch.zeros(classes, slots, width, device=setting.device), setting.integers(slots, classes))
        for form in (allspark.enqueue, enqueue)
    }

    def run(form: Callable[..., None]) -> Tensors:
        form(*states[form], vectors, labels)
        return states[form]

    return forms(run, allspark.enqueue, enqueue, close(atol=0.0))


def _segformer(setting: Setting) -> Pair:
    widths, strides = (64, 128, 320, 512), (4, 8, 16, 32)  # MiT-B2 to -B5
    embedding, side = setting.size(768, 16), setting.size(513, 65)
    torch.manual_seed(setting.seed)
    head = SegFormer(widths, strides, embedding=embedding, dropout=0.0).to(setting.device)
    cells = [(side - 1) // stride + 1 for stride in strides]
    features = [setting.normal(1, width, n, n).requires_grad_() for width, n in zip(widths, cells, strict=True)]
    weight = setting.normal(1, embedding, cells[0], cells[0])

    def run(context: Callable[[], AbstractContextManager[None]]) -> Tensors:
        with context():
            out = head.fuse(features)
        # Biases before a normalization have no gradient but rounding.
        weights = [parameter for parameter in head.parameters() if parameter.ndim > 1]
        return out.detach(), *torch.autograd.grad((out * weight).mean(), [*features, *weights])

    return forms(run, plain_forms, nullcontext, close(atol=2e-4), flops=True, graph=True)


def _decoders(setting: Setting, side: int, count: int) -> tuple[AuxiliaryHeads, Tensor, Tensor]:
    """Decoders, z (B, D, h, w) as behind a ReLU, and logits of a main decoder."""
    torch.manual_seed(setting.seed)
    width, side = setting.size(512, 24), setting.size(side, 4)
    heads = AuxiliaryHeads(SubPixel(width, 21), count).to(setting.device)
    z = setting.normal(2, width, side, side).relu().requires_grad_()
    coarse = setting.normal(2, 21, side // 2, side // 2) * 4  # objects of some cells
    return heads, z, F.interpolate(coarse, (8 * side, 8 * side), mode="nearest")


def _own_weights(heads: AuxiliaryHeads) -> list[list[Tensor]]:
    """One list of leaves per decoder, as separate modules would hold them."""
    states = [heads.head_state(number) for number in range(heads.count)]
    return [[weight.requires_grad_() for weight in state.values()] for state in states]


def _auxiliary(setting: Setting, side: int, perturbed: bool) -> Pair:
    """All 30 decoders on z; or 22, each perturbed by the same draws (not I-VAT and G-Cutout, whose draws differ)."""
    heads, z, logits = _decoders(setting, side, 22 if perturbed else 30)
    weights, detached = _own_weights(heads), z.detach()
    group = 1 if setting.device.type == "cpu" else 6  # what `head_group: auto` takes
    drop, gamma, noise = (kind.sample(detached, None, 6) for kind in (ChannelDrop(), FeatureDrop(), FeatureNoise()))
    in_turn: list[Callable[[Tensor], Tensor]] = [
        *(partial(torch.mul, draw) for draw in drop),
        *[partial(cct.keep_objects, prediction=logits)] * 2,
        *[partial(cct.keep_context, prediction=logits)] * 2,
        *(partial(cct.feature_drop, gamma=float(one)) for one in gamma),
        *(partial(cct.feature_noise, noise=one) for one in noise),
    ]

    def factors() -> list[Perturbed]:
        if not perturbed:
            return [Perturbed(torch.ones(30, 1, 1, 1, 1, device=z.device))]
        guide = make_guide(logits.max(1).indices, torch.arange(21, device=z.device) > 0, (z.shape[-2], z.shape[-1]))
        keeps = [(kind, kind.sample(detached, guide, 2)) for kind in (KeepObjects(), KeepContext())]
        kinds = [(ChannelDrop(), drop), *keeps, (FeatureDrop(), gamma), (FeatureNoise(), noise)]
        return [Perturbed(kind.factor(detached, draws)) for kind, draws in kinds]

    def plain() -> Tensors:
        changes = in_turn if perturbed else [lambda z: z] * 30
        loss = cct.auxiliary_loss(z, weights, changes, logits.softmax(1))
        return loss.detach(), *torch.autograd.grad(loss, [z, *(weight for own in weights for weight in own)])

    def fast() -> Tensors:
        rows = heads.rows(logits).softmax(-1)
        everywhere = pixel_weight("mse", 21, torch.ones_like(rows[:, 0], dtype=torch.bool))
        loss = heads.loss(z, factors(), Objective("mse", rows, everywhere), group=group)[0]
        found = torch.autograd.grad(loss, [z, *heads.parameters()])
        of = {id(parameter): gradient for parameter, gradient in zip(heads.parameters(), found[1:], strict=True)}
        stacked = [of[id(view._base)].view(view.shape) for view in heads.stacked().values()]  # in a classifier's order
        return loss.detach(), found[0], *(row[number] for number in range(heads.count) for row in stacked)

    return Pair(plain, fast, close(atol=1e-5, rtol=1e-3), flops=not perturbed, graph=True)


def _vat(setting: Setting, dtype: torch.dtype) -> list[Measure]:
    """Compare the exact direction, with weights and z rounded to `dtype`, with a finite difference in float64."""
    heads, z, _ = _decoders(setting, 16, 1)
    z = z.detach()
    weights = [weight.detach().clone() for weight in _own_weights(heads)[0]]
    for weight in heads.weights.values():
        weight.data = weight.data.to(dtype).float()
    rounded, u, eps = z.to(dtype).float(), torch.rand(z.shape, generator=setting.generator()).to(z), 2.0
    wide = partial(cct.decode, [weight.double() for weight in weights])
    expected = (cct.adversarial(z.double(), wide, u.double(), xi=1e-4, eps=eps) - z).flatten(1)
    plain = partial(cct.adversarial, z, partial(cct.decode, weights), u, xi=0.1, eps=eps)
    fast = partial(Adversarial(eps).offset, rounded, heads.row_head(0), u)
    found = fast().double().flatten(1)
    cosine = (found * expected).sum(1) / (found.norm(dim=1) * expected.norm(dim=1))
    plain()
    times = [seconds(form, setting) for form in (plain, fast)]
    return [
        Measure("cosine", cosine.min().item(), unit=""),
        Measure("norm error", (found.norm(dim=1) / eps - 1).abs().max().item(), unit=""),
        Measure("time", times[0] / times[1], reference=times[0], fast=times[1]),
    ]


def builder_of(setting: Setting, encoder: dict[str, Any], decoder: dict[str, Any], classes: int = 21) -> Builder:
    """Describe a network of two parts."""
    section = ModelRecipe.model_validate({"encoder": encoder, "decoder": decoder})
    return Builder(section, task_of(classes), crop=setting.size(518, 28))


def network(setting: Setting, build: Builder) -> Model:
    """Build a network with random weights, the same for the same seed."""
    torch.manual_seed(setting.seed)
    return build().to(setting.device)


def task_of(classes: int) -> Task:
    """Name the classes of a segmentation task."""
    return Task("segmentation", tuple(f"class {number}" for number in range(classes)))


def dinov2(setting: Setting, size: str = "small") -> Builder:
    """Describe DINOv2 with the DPT decoder; a narrow one with `quick`."""
    narrow = {"dim": 24, "heads": 2} if setting.quick else {}
    return builder_of(setting, {"name": "dinov2", "size": size, **narrow}, {"name": "dpt"})


def _ema(setting: Setting) -> Pair:
    student = network(setting, dinov2(setting))
    looped, teacher = ema_copy(student), ema_copy(student)
    for parameter in student.parameters():
        parameter.data.add_(0.1)  # otherwise the average has nothing to do

    def plain() -> list[Tensor]:
        ema.ema_update(looped.model, student, 0.996)
        return list(looped.model.state_dict().values())

    def fast() -> list[Tensor]:
        teacher.update(student, 0.996)
        return list(teacher.model.state_dict().values())

    size = sum(tensor.nbytes for tensor in student.state_dict().values())
    return Pair(plain, fast, close(atol=1e-6), traffic=3 * size)  # both are read, one is written


_SPARK_SIZES = ((21, 2), (81, 1), (150, 1))  # K, B
_VAT_TARGETS = {"cosine": 0.995, "norm error": 0.01}

PARTS = [
    *(
        Row(
            "spark",
            f"K={classes}, B={images}, C=512, 289 tokens, dropout {dropout:g}",
            partial(_spark, classes=classes, images=images, dropout=dropout),
            "channel attention, forward and backward: whole score matrix, instance norm | moments, streamed",
            cpu={"time": 0.85, "saved": 3.0 if classes == 21 else 2.4},
            cuda={"time": 3.0},
        )
        for classes, images in _SPARK_SIZES
        for dropout in (0.1, 0.0)
    ),
    *(
        Row(
            "memory-enqueue",
            f"K={classes}, B={images}, {'one class' if one_class else 'random classes'}",
            partial(_enqueue, classes=classes, images=images, one_class=one_class),
            "write a batch into the memory: image by image, class by class | at once, without the host",
            cpu={"time": 1.8 if one_class else 4.0},
            cuda={"syncs": 0.0},
        )
        for classes, images in _SPARK_SIZES
        for one_class in (False, True)
    ),
    Row(
        "segformer-head",
        "E=768, crop 513, MiT-B2 widths, B=1",
        _segformer,
        "SegFormer's head, forward and backward: mix above | below the upsampling",
        cpu={"time": 3.5},
        cuda={"time": 3.0},
    ),
    *(
        Row(
            "cct-aux",
            f"B=2, {side}x{side} cells, K=21{', perturbed' if perturbed else ''}",
            partial(_auxiliary, side=side, perturbed=perturbed),
            "30 (22) auxiliary decoders, forward and backward: loop, each mask anew | groups, shared masks",
            cpu=targets,
            cuda={} if perturbed else {"time": 2.0},
        )
        for side, perturbed, targets in (
            (16, False, {"time": 1.0, "peak": 2.4}),
            (40, False, {"time": 1.0, "peak": 2.4}),
            (40, True, {"time": 1.25}),
        )
    ),
    *(
        Row(
            "vat",
            f"B=2, 16x16 cells, {str(dtype).removeprefix('torch.')}",
            partial(_vat, dtype=dtype),
            "direction of I-VAT: finite difference (time: in float32) | exact derivative",
            cpu=_VAT_TARGETS,
            cuda=_VAT_TARGETS,
        )
        for dtype in (torch.float32, torch.bfloat16)
    ),
    Row(
        "ema",
        "ViT-S + DPT, 25 M weights",
        _ema,
        "average of all weights: tensor by tensor | all at once",
        cpu={"time": 2.5},
        cuda={"launches": 10.0, "syncs": 0.0},
    ),
]


# --- whole training steps --------------------------------------------------------------------------------------


class _Inputs:
    """A batch, and the draws of the step, the same for both forms."""

    def __init__(self, setting: Setting, side: int, images: int) -> None:
        generator, device = setting.generator(), setting.device
        shape = (images, 3, side, side)
        self.labeled, self.weak, *self.strong = (torch.rand(shape, generator=generator).to(device) for _ in range(4))
        self.target = torch.randint(21, (images, side, side), generator=generator).to(device)
        self.valid = torch.ones(images, side, side, dtype=torch.bool, device=device)
        self.box = torch.zeros_like(self.valid)
        self.box[:, side // 4 : side // 2, side // 4 :] = True

    def batch(self) -> Batch:
        index = torch.arange(len(self.weak), device=self.weak.device)
        return Batch(Samples(self.labeled, self.valid, index, self.target), Samples(self.weak, self.valid, index))

    def mask(self, width: int) -> Tensor:
        """Channel factors of [view 1; view 2]: complementary halves."""
        first = (torch.arange(width, device=self.labeled.device) % 2 * 2.0).expand(len(self.labeled), -1)
        return torch.cat((first, 2 - first))


def _unimatch(setting: Setting, size: str, side: int, images: int, half: bool) -> Pair:
    inputs, progress = _Inputs(setting, setting.size(side, 28), images), Progress(1000, 2000, 100)
    batch = inputs.batch()

    build = dinov2(setting, size)
    torch.manual_seed(setting.seed)  # as `network` does
    method = UniMatchV2(task_of(21), build, threshold=0.0).to(setting.device).train()
    views = list(inputs.strong)

    def strong(_: Tensor) -> Tensor:
        views.append(views.pop(0))  # view 1, view 2, view 1, ...
        return views[-1]

    del method.strong  # a module's place takes no function
    method.strong = strong  # type: ignore[assignment]
    method.boxes = lambda *_, **__: inputs.box
    method.dropout = lambda _, widths, **__: [inputs.mask(width) for width in widths]
    student, teacher = network(setting, build).train(), network(setting, build).eval()

    def gradients(loss: Tensor, of: Model) -> list[Tensor]:
        found = torch.autograd.grad(loss, list(of.parameters()), allow_unused=True)
        return [gradient for gradient in found if gradient is not None][-6:]  # of the decoder and classifier

    def plain() -> Tensors:
        with plain_forms():  # of the layers; the rest is plain already
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
        found = gradients(loss, student)
        ema.ema_update(teacher, student, 0.996)
        return loss.detach(), *found

    def fast() -> Tensors:
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=half):
            loss = method.step(batch, progress).loss
        found = gradients(loss, method.student)
        method.after_update(progress)
        return loss.detach(), *found

    # bfloat16 has three digits; in float32 sums over joined and separate batches round differently.
    agree = _same_loss if half else close(atol=2e-4, rtol=1e-2)
    return Pair(plain, fast, agree, flops=True, graph=True, dtype=torch.bfloat16 if half else torch.float32)


def _same_loss(plain: Tensors, fast: Tensors) -> str:
    apart = (fast[0] / plain[0] - 1).abs().item()
    one, two = (torch.cat([gradient.double().flatten() for gradient in form[1:]]) for form in (plain, fast))
    cosine = F.cosine_similarity(one, two, dim=0).item()
    if apart > 0.02 or cosine < 0.99:
        raise Disagreement(f"losses differ by {apart:.1%}, allowed 2%; cosine of gradients {cosine:.3f}, least 0.99")
    return f"losses differ by {apart:.2%}, cosine of gradients {cosine:.4f}"


_STEP = "UniMatch V2, forward, backward, EMA: separate passes, layers as published, float32 | as it trains"
_NATIVE = torch.cpu._is_avx512_bf16_supported()

STEPS = [
    *(
        Row(
            "unimatch-step",
            f"ViT-S, {side} pixels, B=2+2, {'bfloat16' if half else 'float32'}",
            partial(_unimatch, size="small", side=side, images=2, half=half),
            _STEP,
            cpu={"time": least} if _NATIVE or not half else {},
            devices=("cpu",),
        )
        for side, half, least in ((126, False, 1.1), (252, False, 1.0), (126, True, 2.0))
    ),
    *(
        Row(
            "unimatch-step",
            f"ViT-{size[0].upper()}, 518 pixels, B=4+4, bfloat16",
            partial(_unimatch, size=size, side=518, images=4, half=True),
            _STEP,
            cuda={"time": 4.0, "syncs": 0.0},
            devices=("cuda",),
        )
        for size in ("small", "base")
    ),
]
