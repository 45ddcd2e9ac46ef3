"""`run.stream_loss`: training on coarse logits repeats training on upsampled ones, and never holds the latter."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from halfmask.batch import Progress
from halfmask.losses import cross_entropy as losses
from halfmask.losses.upsampled import summed_cross_entropy
from halfmask.method import Method
from halfmask.models.coarse_logits import CoarseLogits, full
from halfmask.plugins import names, resolve
from halfmask.recipe.sections import RunRecipe
from halfmask.run.checkpoint import read_checkpoint
from halfmask.run.fit import fit
from halfmask.run.loop.trainer import prepare_networks
from halfmask.teaching.pseudo_label import agreement, pseudo_label
from halfmask.testing import no_host_sync, tiny_batch, tiny_builder, tiny_task
from tests.methods.test_contract import VARIANTS
from tests.run.tiny import recipe, write_dataset

CASES = [(name, params) for name in names("methods") for params in ({}, *VARIANTS.get(name, [])[:2])]


def trained(name: str, params: dict[str, Any], stream: bool) -> tuple[Tensor, Method]:
    torch.manual_seed(1)
    task = tiny_task()
    method = resolve("methods", name)(task, tiny_builder(task), **params).double().train()
    prepare_networks(method, RunRecipe(stream_loss=stream))
    optimizers = {
        key: torch.optim.SGD([p for group in groups for p in group.params], lr=0.05)
        for key, groups in method.parameter_groups().items()
    }
    found = []
    for step in range(2):
        share = method.draws_share_images
        batch = tiny_batch(task, draws=method.draws, share_images=share, seed=step, dtype=torch.float64)
        batch.class_weights = torch.tensor((0.5, 1.0, 1.5), dtype=torch.float64)
        torch.manual_seed(1000 + step)
        for update in method.updates(batch, Progress(step, 8, 4)):
            optimizers[update.group].zero_grad(set_to_none=True)
            update.output.loss.backward()
            optimizers[update.group].step()
            found += [
                update.output.loss.detach(),
                *(value.detach().double().nansum() for value in update.output.logs.values()),
            ]
        method.after_update(Progress(step, 8, 4))
    return torch.stack(found), method


@pytest.mark.parametrize(("name", "params"), CASES)
def test_every_method_trains_alike_on_coarse_logits(name: str, params: dict[str, Any], monkeypatch) -> None:
    calls: list[int] = []

    def counted(*arguments: Any) -> Tensor:
        calls.append(1)
        return summed_cross_entropy(*arguments)

    monkeypatch.setattr(losses, "summed_cross_entropy", counted)
    plain, one = trained(name, params, stream=False)
    assert not calls
    streamed, other = trained(name, params, stream=True)
    # These have no plain cross-entropy of dense logits.
    only_others = name == "cam" or (name in ("supervised", "cct") and params.get("loss", "ce") != "ce")
    assert bool(calls) != only_others
    assert_close(streamed, plain, rtol=1e-9, atol=1e-9)
    weights = other.state_dict()
    for key, tensor in one.state_dict().items():
        assert_close(weights[key], tensor, rtol=1e-7, atol=1e-9, msg=key)


def scene(grad: bool = True) -> tuple[CoarseLogits, Tensor, Tensor]:
    values = torch.randn(2, 5, 6, 7, dtype=torch.float64, requires_grad=grad)
    target = torch.randint(0, 5, (2, 20, 23))
    target[0, :4] = 255
    return CoarseLogits(values, (20, 23), False), target, torch.rand(2, 20, 23) < 0.6


@pytest.mark.parametrize("name", ["ce", "weighted", "masked", "ohem", "bootstrapped", "squared"])
def test_each_loss_and_its_gradient_are_those_of_upsampled_logits(name: str) -> None:
    logits, target, keep = scene()
    weight, teacher = torch.rand(5, dtype=torch.float64), torch.randn(2, 5, 20, 23, dtype=torch.float64)
    loss = {
        "ce": lambda z: losses.cross_entropy(z, target),
        "weighted": lambda z: losses.cross_entropy(z, target, weight=weight),
        "masked": lambda z: losses.masked_cross_entropy(z, target.clamp(max=4), keep, target != 255),
        "ohem": lambda z: losses.ohem_cross_entropy(z, target, threshold=0.3, min_kept=20),
        "bootstrapped": lambda z: losses.bootstrapped_cross_entropy(z, target, threshold=0.3),
        "squared": lambda z: losses.squared_error(z, teacher, keep),
    }[name]
    results = [loss(logits), loss(full(logits))]
    gradients = [torch.autograd.grad(result, logits.values)[0] for result in results]
    assert_close(*results, rtol=1e-12, atol=0)
    assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_pseudo_labels_of_coarse_logits() -> None:
    logits, target, keep = scene()
    for ours, whole in zip(pseudo_label(logits), pseudo_label(full(logits)), strict=True):
        assert_close(ours, whole)
        assert not ours.requires_grad
    assert agreement(logits, target, keep) == agreement(full(logits), target, keep)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.elements = max(self.elements, tensor.numel())
        return result


def test_the_upsampled_logits_never_exist() -> None:
    logits = CoarseLogits(torch.randn(2, 150, 8, 8, requires_grad=True), (256, 256), True)
    target = torch.randint(0, 150, (2, 256, 256))
    with Largest() as largest, no_host_sync():
        losses.cross_entropy(logits, target).backward()
    assert largest.elements * 4 <= 3 * 2**20  # a band; all upsampled logits take 79 MB
    with Largest() as largest:
        losses.cross_entropy(full(logits), target).backward()
    assert largest.elements == 2 * 150 * 256 * 256


def test_autocast_does_not_reach_the_bands() -> None:
    logits = CoarseLogits(torch.randn(2, 5, 6, 7, requires_grad=True), (20, 23), False)
    target = torch.randint(0, 5, (2, 20, 23))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        streamed = losses.cross_entropy(logits, target)
    whole = F.interpolate(logits.values, size=(20, 23), mode="bilinear", align_corners=False)
    assert_close(streamed, F.cross_entropy(whole, target), rtol=1e-5, atol=0)


def test_a_run_streams_its_losses_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    for out, switch in (("plain", "false"), ("streamed", "true")):
        settings = ("run.steps=2", "run.eval_every=2", "optim.name=sgd", f"run.stream_loss={switch}")
        fit(recipe(data, *settings, method="unimatch_v2"), tmp_path / out, quiet=True)
    plain, streamed = (
        read_checkpoint(tmp_path / out / "checkpoints" / "last.ckpt")["state_dict"] for out in ("plain", "streamed")
    )
    for key, tensor in plain.items():
        assert_close(streamed[key], tensor, rtol=1e-4, atol=1e-6, msg=key)
