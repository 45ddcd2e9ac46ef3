"""`run.recompute` and `run.compile`: the same training, with the same names in the state dict."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from halfmask.batch import Progress
from halfmask.errors import RecipeError
from halfmask.method import Method
from halfmask.models.build import Builder
from halfmask.plugins import resolve
from halfmask.recipe.sections import ModelRecipe, RunRecipe
from halfmask.run.loop import trainer
from halfmask.run.loop.trainer import prepare_networks, recompute_blocks, synchronize_batch_norm
from halfmask.testing import tiny_batch, tiny_builder, tiny_task

NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    # Dropped paths (MiT) must be drawn again as they were; batch norm (ResNet) must move once. Blocks by hand:
    "mit": ({"name": "mit", "size": "b0"}, {"name": "segformer", "embedding": 8}, 8),
    "resnet": (
        {"name": "resnet", "depth": 18, "width": 8, "blocks": [2, 2, 2, 2]},
        {"name": "deeplabv3plus", "aspp": 8, "low": 4, "embedding": 8},
        8,
    ),
    "dinov2": ({"name": "dinov2", "dim": 12, "heads": 2}, {"name": "dpt", "features": 8}, 12),
}
SIDE = 56


def method_on(network: str, name: str = "fixmatch") -> Method:
    encoder, decoder, _ = NETWORKS[network]
    torch.manual_seed(3)
    section = ModelRecipe.model_validate({"encoder": encoder, "decoder": decoder})
    task = tiny_task()
    return resolve("methods", name)(task, Builder(section, task, crop=SIDE)).double().train()


def trained(method: Method) -> tuple[list[Tensor], dict[str, Tensor]]:
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for step in range(2):
        batch = tiny_batch(method.task, seed=step, dtype=torch.float64)
        for samples in (batch.labeled, batch.unlabeled):
            samples.image = torch.nn.functional.interpolate(samples.image, size=SIDE)
            samples.valid = torch.ones(len(samples.image), SIDE, SIDE, dtype=torch.bool)
        batch.labeled.target = torch.randint(0, 3, (2, SIDE, SIDE), generator=torch.Generator().manual_seed(step))
        torch.manual_seed(1000 + step)
        (update,) = method.updates(batch, Progress(step, 8, 4))
        optimizer.zero_grad(set_to_none=True)
        update.output.loss.backward()
        optimizer.step()
        method.after_update(Progress(step, 8, 4))
        losses.append(update.output.loss.detach())
    return losses, method.state_dict()


@pytest.mark.parametrize("network", [pytest.param(one, marks=[pytest.mark.slow] * (one == "mit")) for one in NETWORKS])
def test_recomputed_blocks_train_alike(network: str) -> None:
    plain, changed = method_on(network), method_on(network)
    prepare_networks(changed, RunRecipe(recompute=True))
    (losses, weights), (again, others) = trained(plain), trained(changed)
    assert list(weights) == list(others)
    assert_close(torch.stack(again), torch.stack(losses), rtol=1e-12, atol=0)
    for name, tensor in weights.items():
        assert_close(others[name], tensor, rtol=1e-9, atol=1e-12, msg=name)  # statistics and counters, too


@pytest.mark.parametrize("network", NETWORKS)
def test_recomputed_blocks_store_less(network: str) -> None:
    def stored(recompute: bool) -> int:
        model = method_on(network, "supervised").student
        if recompute:
            assert recompute_blocks(model.encoder) == NETWORKS[network][2]
        seen: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            features = model.encode(torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64))
        kept = sum(size for place, size in seen.items() if place not in weights)
        assert features[0].requires_grad
        return kept

    assert stored(recompute=True) < 0.8 * stored(recompute=False)  # stem and norms keep what they kept


def test_an_encoder_without_blocks_says_so() -> None:
    method = resolve("methods", "supervised")(tiny_task(), tiny_builder(tiny_task()))
    method.student.encoder = torch.nn.Conv2d(3, 3, 1)
    with pytest.raises(RecipeError, match=r"run\.recompute.*no list of blocks"):
        prepare_networks(method, RunRecipe(recompute=True))


@pytest.mark.slow
def test_compiled_networks_train_alike(monkeypatch) -> None:
    """Traced and differentiated by torch.compile; not translated to C++, which takes minutes and is torch's affair."""
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: original(self, backend="aot_eager", **how))
    monkeypatch.setenv("CXX", sys.executable)  # looked for, not called

    def method() -> Method:
        torch.manual_seed(3)
        return resolve("methods", "supervised")(tiny_task(), tiny_builder(tiny_task())).double().train()

    plain, compiled = method(), method()
    prepare_networks(compiled, RunRecipe(compile=True))
    counters = torch._dynamo.utils.counters
    counters.clear()
    (losses, weights), (again, others) = trained(plain), trained(compiled)
    assert counters["stats"]["unique_graphs"] > 0
    assert list(weights) == list(others)
    assert_close(torch.stack(again), torch.stack(losses), rtol=1e-9, atol=0)
    for name, tensor in weights.items():
        assert_close(others[name], tensor, rtol=1e-7, atol=1e-10, msg=name)


def test_compiling_without_a_compiler_says_what_is_missing(monkeypatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RecipeError, match=r"run\.compile=true needs .* no-such-compiler is not installed.* CXX"):
        prepare_networks(method_on("dinov2"), RunRecipe(accelerator="cpu", compile=True))


def test_recomputing_and_compiling_exclude_each_other() -> None:
    with pytest.raises(RecipeError, match=r"run\.recompute and run\.compile"):
        prepare_networks(method_on("dinov2"), RunRecipe(compile=True, recompute=True))


def test_synchronized_batch_norm_keeps_the_activations() -> None:
    torch.manual_seed(0)
    task = tiny_task()
    section = {"encoder": {"name": "efficientnet_lite"}, "decoder": {"name": "segformer", "embedding": 8}}
    method = resolve("methods", "fixmatch")(task, Builder(ModelRecipe.model_validate(section), task, crop=64)).eval()
    names, image = list(method.state_dict()), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = method.student(image)
        synchronize_batch_norm(method)
        after = method.student(image)
    assert list(method.state_dict()) == names
    assert any(isinstance(part, torch.nn.SyncBatchNorm) for part in method.modules())
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize(("system", "name"), [("win32", "cl"), ("darwin", r"clang\+\+"), ("linux", r"g\+\+")])
def test_the_compiler_of_each_system_is_looked_for(system, name, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(trainer.sys, "platform", system)
    monkeypatch.setattr(trainer.shutil, "which", lambda _: None)  # the real one asks Windows there
    with pytest.raises(RecipeError, match=f"but {name} is not installed"):
        trainer.check_compiler()
