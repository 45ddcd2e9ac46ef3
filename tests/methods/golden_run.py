"""A training run from recorded weights and batches, and its comparison with the published code's run."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from halfmask.batch import Batch, Progress, Samples
from halfmask.method import Method
from halfmask.models.decoders.deeplabv3plus import DeepLabV3Plus
from halfmask.models.decoders.dpt import DPT
from halfmask.models.encoders.dinov2 import DINOv2
from halfmask.models.encoders.resnet import ResNet
from halfmask.models.model import Model, Segmenter
from halfmask.recipe.read import OptimRecipe
from halfmask.run.loop.optim import make_optimizers, rate_factor, set_rates
from halfmask.task import Task
from tests.methods import official_names

TASK = Task("segmentation", tuple(f"class {number}" for number in range(7)))
IDENTITY = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # recorded images are already normalized
STEPS, TOTAL = 3, 20
# Of the published code of UniMatch and of UniMatch V2.
OPTIM_V1 = OptimRecipe(name="sgd", lr=1e-3, decoder_lr_scale=10.0, schedule_lag=1, weight_decay=1e-4, momentum=0.9)
OPTIM_V2 = OptimRecipe(lr=2e-4, decoder_lr_scale=5.0, schedule_lag=1, weight_decay=0.01)


class Recorded(nn.Module):
    """Stands for the color augmentation: gives the strong views of a weak image one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.views_of: dict[int, list[Tensor]] = {}

    def forward(self, image: Tensor) -> Tensor:
        return self.views_of[id(image)].pop(0)


class Trained(NamedTuple):
    method: Method
    logs: dict[str, list[Tensor]]
    rates: list[list[float]]
    gradient_norms: list[list[Tensor]]


class RoundedRows(DINOv2):
    """The recording rounded the whole resized position table to float32, the class token's row included."""

    def position_embedding(self, height: int, width: int) -> Tensor:
        table = super().position_embedding(height, width)
        return table.float().to(table.dtype)


def tiny_dpt(frozen: bool = False) -> Segmenter:
    encoder = RoundedRows(dim=24, heads=2, frozen=frozen)
    decoder = DPT(encoder.channels, encoder.strides, features=12, projections=(8, 8, 12, 16))
    return Segmenter(encoder, decoder, 7, **IDENTITY)


def tiny_deeplab() -> Segmenter:
    encoder = ResNet(depth=50, width=4, blocks=(2, 2, 2, 2), output_stride=16)
    decoder = DeepLabV3Plus(encoder.channels, encoder.strides, aspp=16, low=6, embedding=24)
    return Segmenter(encoder, decoder, 7, **IDENTITY)


def builder(
    make: Callable[[], Model], state: dict[str, Tensor], dtype: torch.dtype = torch.float64
) -> Callable[..., Model]:
    class Build:
        crop = 56

        def __call__(self, **overrides: object) -> Model:
            model = make()
            model.load_state_dict({**state, "mean": model.mean, "std": model.std})
            return model.to(dtype)

    return Build()


def batch_of(data: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> Batch:
    def samples(image: str, padding: str | None = None, target: str | None = None) -> Samples:
        pixels = data[image].to(dtype)
        valid = data[padding] != 255 if padding else torch.ones(len(pixels), *pixels.shape[-2:], dtype=torch.bool)
        index = torch.arange(len(pixels))
        return Samples(pixels, valid, index, None if target is None else data[target].long())

    partner = samples("img_u_w_mix", "ignore_mask_mix") if "img_u_w_mix" in data else None
    return Batch(samples("img_x", target="mask_x"), samples("img_u_w", "ignore_mask"), partner)


def train(
    method: Method,
    inputs: dict[str, Tensor],
    optim: OptimRecipe,
    prepare: Callable[[int, dict[str, Tensor]], Batch],
) -> Trained:
    """Train as the engine does; `prepare` gives a step's batch and puts its recorded draws into the method."""
    method.train()
    optimizer = make_optimizers(method, optim, optim.lr)
    result = Trained(method, {}, [], [])
    for step in range(STEPS):
        batch = prepare(step, official_names.part(inputs, f"step{step}."))
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


class Tolerance(NamedTuple):
    """Of a precision: losses (absolute), pseudo-label coverage and gradient norms (relative)."""

    loss: float
    coverage: float
    norm: float


# Coverage is a ratio of counts in float32; in a float32 run a few pixels near the threshold may change sides.
FLOAT64, FLOAT32 = Tolerance(1e-8, 1e-6, 1e-8), Tolerance(2e-4, 1e-3, 2e-4)


def check_trajectory(
    trained: Trained, expected: dict[str, Tensor], names: dict[str, str], tolerance: Tolerance = FLOAT64
) -> None:
    for ours, official in names.items():
        losses = torch.stack(trained.logs[ours]).double()
        assert_close(losses, expected[f"scalar.{official}"], rtol=0, atol=tolerance.loss, msg=ours)
    coverage = torch.stack(trained.logs["pseudo/coverage"])
    assert_close(coverage, expected["scalar.mask_ratio"].float(), rtol=tolerance.coverage, atol=0)
    assert_close(torch.tensor(trained.rates, dtype=torch.float64), expected["lr_used"], rtol=1e-12, atol=0)
    norms = torch.stack([torch.stack(step) for step in trained.gradient_norms]).double()
    assert_close(norms, expected["grad_norm_per_group"], rtol=tolerance.norm, atol=0)


def check_weights(
    method: Method, expected: dict[str, Tensor], renamed: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    """Weights and buffers of every network after the last step; `renamed` turns published names into ours."""
    for name, model in method.predictors().items():
        _check_state(model, renamed(official_names.part(expected, "final_ema." if name == "teacher" else "final.")))


def _check_state(model: Model, expected: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert expected.keys() == state.keys() - {"mean", "std"}
    exact = state["mean"].dtype == torch.float64
    rtol, atol = (1e-6, 1e-7) if exact else (0, 2e-4)
    for key, value in expected.items():
        ours, theirs = state[key].double(), value.double()
        if not exact and key.endswith("qkv.bias"):
            # Keys' biases have no gradient in exact arithmetic; AdamW makes whole steps of the rounding.
            ours, theirs = (torch.cat((x.chunk(3)[0], x.chunk(3)[2])) for x in (ours, theirs))
        assert_close(ours, theirs, rtol=rtol, atol=atol, msg=key)


def check_sums(method: Method, inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Sums over all parameters of a network, and over those of the published one that no forward pass uses."""
    initial = official_names.part(inputs, "init.")
    unused = [value.double() for key, value in initial.items() if key.startswith(official_names.UNUSED)]
    for name, model in method.predictors().items():
        tensors = [*(p.detach() for p in model.parameters()), *unused]
        total, absolute = sum(float(t.sum()) for t in tensors), sum(float(t.abs().sum()) for t in tensors)
        recorded = "checksum.ema" if name == "teacher" else "checksum.student"
        assert total == pytest.approx(expected[f"{recorded}_sum"].item(), rel=1e-9)
        assert absolute == pytest.approx(expected[f"{recorded}_abs"].item(), rel=1e-9)
