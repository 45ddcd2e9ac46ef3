"""Three training steps of both published forms of FixMatch, from recorded weights, views and boxes.

Everything runs in float64, as recorded; stored float32 tensors carry 6e-8 relative.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from halfmask.batch import Batch, Progress, Samples
from halfmask.engine.optim import make_optimizers, rate_factor, set_rates
from halfmask.methods.fixmatch import FixMatch
from halfmask.models.decoders.deeplabv3plus import DeepLabV3Plus
from halfmask.models.decoders.dpt import DPT
from halfmask.models.encoders.dinov2 import DINOv2
from halfmask.models.encoders.resnet import ResNet
from halfmask.models.model import Model, Segmenter
from halfmask.recipe import OptimRecipe
from halfmask.task import Task
from tests.methods import official_names

TASK = Task("segmentation", tuple(f"class {number}" for number in range(7)))
IDENTITY = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # recorded images are already normalized
STEPS, TOTAL = 3, 20


class Recorded(nn.Module):
    """Stands for the color augmentation: looks up the strong view of a weak one."""

    def __init__(self) -> None:
        super().__init__()
        self.view_of: dict[int, Tensor] = {}

    def forward(self, image: Tensor) -> Tensor:
        return self.view_of[id(image)]


class Trained(NamedTuple):
    method: FixMatch
    logs: dict[str, list[Tensor]]
    rates: list[list[float]]
    gradient_norms: list[list[Tensor]]


class RoundedRows(DINOv2):
    """The recording rounded the whole resized position table to float32, the class token's row included."""

    def position_embedding(self, height: int, width: int) -> Tensor:
        table = super().position_embedding(height, width)
        return table.float().to(table.dtype)


def _tiny_dpt() -> Segmenter:
    encoder = RoundedRows(dim=24, heads=2)
    return Segmenter(
        encoder, DPT(encoder.channels, encoder.strides, features=12, projections=(8, 8, 12, 16)), 7, **IDENTITY
    )


def _tiny_deeplab() -> Segmenter:
    encoder = ResNet(depth=50, width=4, blocks=(2, 2, 2, 2), output_stride=16)
    decoder = DeepLabV3Plus(encoder.channels, encoder.strides, aspp=16, low=6, embedding=24)
    return Segmenter(encoder, decoder, 7, **IDENTITY)


def _builder(make: Callable[[], Model], state: dict[str, Tensor]) -> Callable[..., Model]:
    class Build:
        crop = 56

        def __call__(self, **overrides: object) -> Model:
            model = make()
            model.load_state_dict({**state, "mean": model.mean, "std": model.std})
            return model.double()

    return Build()


def _batch(data: dict[str, Tensor]) -> Batch:
    def samples(image: str, padding: str | None = None, target: str | None = None) -> Samples:
        pixels = data[image].double()
        valid = data[padding] != 255 if padding else torch.ones(len(pixels), *pixels.shape[-2:], dtype=torch.bool)
        index = torch.arange(len(pixels))
        return Samples(pixels, valid, index, None if target is None else data[target].long())

    labeled = samples("img_x", target="mask_x")
    partner = samples("img_u_w_mix", "ignore_mask_mix") if "img_u_w_mix" in data else None
    return Batch(labeled, samples("img_u_w", "ignore_mask"), partner)


def _train(method: FixMatch, inputs: dict[str, Tensor], optim: OptimRecipe) -> Trained:
    strong = Recorded()
    method.strong = strong
    method.double().train()
    optimizer = make_optimizers(method, optim, optim.lr)
    result = Trained(method, {}, [], [])
    for step in range(STEPS):
        data = official_names.part(inputs, f"step{step}.")
        batch = _batch(data)
        strong.view_of = {id(batch.unlabeled.image): data["img_u_s1"].double()}
        if batch.partner is not None:
            strong.view_of[id(batch.partner.image)] = data["img_u_s1_mix"].double()
        method.boxes = lambda shape, device, box=data["cutmix_box1"]: box.bool()
        set_rates(optimizer, rate_factor(step, TOTAL, optim))
        groups = optimizer["main"].param_groups
        result.rates.append([group["lr"] for group in groups])

        progress = Progress(step, TOTAL, 10)
        (update,) = method.updates(batch, progress)
        optimizer["main"].zero_grad()
        update.output.loss.backward()
        norms = [torch.stack([p.grad.norm() for p in group["params"] if p.grad is not None]) for group in groups]
        result.gradient_norms.append([norm.norm() for norm in norms])
        optimizer["main"].step()
        method.after_update(progress)
        for name, value in {"loss": update.output.loss, **update.output.logs}.items():
            result.logs.setdefault(name, []).append(value.detach())
    return result


def _check_trajectory(trained: Trained, expected: dict[str, Tensor]) -> None:
    names = {"loss": "loss_all", "loss_sup": "loss_x", "loss_unsup": "loss_s"}
    for ours, official in names.items():
        assert_close(torch.stack(trained.logs[ours]), expected[f"scalar.{official}"], rtol=0, atol=1e-8, msg=ours)
    coverage = torch.stack(trained.logs["pseudo/coverage"])  # a ratio of counts in float32
    assert_close(coverage, expected["scalar.mask_ratio"].float(), rtol=1e-6, atol=0)
    assert_close(torch.tensor(trained.rates, dtype=torch.float64), expected["lr_used"], rtol=1e-12, atol=0)
    norms = torch.stack([torch.stack(step) for step in trained.gradient_norms])
    assert_close(norms, expected["grad_norm_per_group"], rtol=1e-8, atol=0)


def _check_weights(model: Model, expected: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert expected.keys() == state.keys() - {"mean", "std"}
    for key, value in expected.items():
        assert_close(state[key].double(), value.double(), rtol=1e-6, atol=1e-7, msg=key)


def _sums(model: Model, extra: dict[str, Tensor]) -> tuple[float, float]:
    tensors = [*(p.detach() for p in model.parameters()), *(value.double() for value in extra.values())]
    return sum(float(t.sum()) for t in tensors), sum(float(t.abs().sum()) for t in tensors)


def test_fixmatch_with_a_teacher_repeats_the_published_run(golden):
    inputs, expected = golden("unimatch/v2_train_inputs"), golden("unimatch/v2_train_fixmatch")
    initial = official_names.part(inputs, "init.")
    method = FixMatch(TASK, _builder(_tiny_dpt, official_names.dpt(initial)), threshold=0.8)
    optim = OptimRecipe(lr=2e-4, decoder_lr_scale=5.0, schedule_lag=1, weight_decay=0.01)
    trained = _train(method, inputs, optim)

    _check_trajectory(trained, expected)
    teacher, student = method.predictors()["teacher"], method.predictors()["student"]
    _check_weights(student, official_names.dpt(official_names.part(expected, "final.")))
    _check_weights(teacher, official_names.dpt(official_names.part(expected, "final_ema.")))
    unused = {key: value for key, value in initial.items() if key.startswith(official_names.UNUSED)}
    for name, model in (("student", student), ("ema", teacher)):
        total, absolute = _sums(model, unused)
        assert total == pytest.approx(expected[f"checksum.{name}_sum"].item(), rel=1e-9)
        assert absolute == pytest.approx(expected[f"checksum.{name}_abs"].item(), rel=1e-9)


def test_fixmatch_without_a_teacher_repeats_the_published_run(golden):
    inputs, expected = golden("unimatch/v1_train_inputs"), golden("unimatch/v1_train_fixmatch")
    initial = official_names.deeplab(official_names.part(inputs, "init."))
    build = _builder(_tiny_deeplab, initial)
    method = FixMatch(TASK, build, threshold=0.5, teacher="student", cutmix_partner="same_view")
    assert (method.draws, method.draws_share_images) == (2, True)
    optim = OptimRecipe(name="sgd", lr=1e-3, decoder_lr_scale=10.0, schedule_lag=1, weight_decay=1e-4, momentum=0.9)
    trained = _train(method, inputs, optim)

    _check_trajectory(trained, expected)
    # Weights and running statistics of every batch norm.
    _check_weights(method.student, official_names.deeplab(official_names.part(expected, "final.")))
    total, absolute = _sums(method.student, {})
    assert total == pytest.approx(expected["checksum.student_sum"].item(), rel=1e-9)
    assert absolute == pytest.approx(expected["checksum.student_abs"].item(), rel=1e-9)
