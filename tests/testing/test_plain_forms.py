"""The textbook forms train to the same losses and weights as the fast ones."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tests.oracles
from halfmask.batch import Progress
from halfmask.losses.cross_entropy import Ohem
from halfmask.method import Method
from halfmask.models.build import Builder
from halfmask.plugins import names, resolve
from halfmask.recipe.sections import ModelRecipe
from halfmask.run.checkpoint import read_checkpoint
from halfmask.run.fit import fit
from halfmask.testing import tiny_batch, tiny_builder, tiny_task
from halfmask.views import mixing
from tests.oracles.forms import PLAIN, plain_forms
from tests.run.tiny import recipe, write_dataset

FOLDER = str(Path(tests.oracles.__file__).parent)
PIXELS = {"pseudo_label", "pseudo_logs", "paste", "boxes_to_mask", "strong_view", "masked_cross_entropy"}
LABELED = {"cross_entropy"}
# What each method's step computes by `tests.oracles` (cct: also its own plain loop, `head_group: 0`).
USED: dict[str, tuple[dict[str, Any], set[str]]] = {
    "supervised": ({"loss": Ohem(min_kept=50)}, {"ohem_cross_entropy", "hard_pixels"}),
    "fixmatch": ({"threshold": 0.3, "cutmix": 1.0}, PIXELS | LABELED | {"lerp_"}),
    "pseudo_label": ({}, LABELED | {"pseudo_label", "masked_cross_entropy", "strong_view"}),
    "mean_teacher": ({"ramp_up": 0.0}, LABELED | {"lerp_", "strong_view"}),
    "unimatch": ({"threshold": 0.3, "cutmix": 1.0}, PIXELS | LABELED),
    "unimatch_v2": ({"threshold": 0.3, "cutmix": 1.0}, PIXELS | LABELED | {"lerp_", "complementary_mask"}),
    "allspark": (
        {"warmup_epochs": 0.0},
        LABELED | {"pseudo_label", "channel_attention", "enqueue", "channel_classes"},
    ),
    "cct": ({"heads": "lite", "loss": "ab_ce"}, {"pseudo_label", "bootstrapped_cross_entropy"}),
    "multi_domain": ({"method": {"name": "fixmatch", "threshold": 0.3}}, PIXELS | LABELED | {"lerp_"}),
    "cam": ({}, set()),
    "cutmix_seg": ({"threshold": 0.3}, LABELED | {"lerp_", "pseudo_label", "pseudo_logs", "paste"}),
    "cps": ({}, LABELED | {"pseudo_label", "paste", "masked_cross_entropy"}),
    "fpl": ({}, LABELED | {"pseudo_label", "paste"}),
    "augseg": ({"threshold": 0.3}, LABELED | {"lerp_", "pseudo_label", "paste", "masked_cross_entropy"}),
    "prevmatch": ({"threshold": 0.3, "cutmix": 1.0}, PIXELS | LABELED),
    "rankmatch": ({"threshold": 0.3, "cutmix": 1.0, "agents": 8}, PIXELS | LABELED),
    "pixcon": ({"threshold": 0.3, "cutmix": 1.0, "width": 8}, PIXELS | LABELED | {"lerp_", "complementary_mask"}),
    "u2pl": ({"warmup_epochs": 0.0, "queue": 20, "width": 8}, LABELED | {"lerp_", "pseudo_label", "paste"}),
    "gta_seg": ({"warmup_epochs": 0.0}, LABELED | {"lerp_", "pseudo_label", "paste"}),
    "st_plus_plus": ({}, LABELED | {"strong_view"}),
    "ps_mt": ({"warmup_epochs": 0.0, "threshold": 0.3}, LABELED | {"lerp_", "pseudo_label", "paste"}),
    "ccvc": ({"augment": True}, LABELED | {"pseudo_label", "paste", "strong_view"}),
}


@contextmanager
def recorded() -> Iterator[set[str]]:
    """Names of the functions of `tests/oracles/` that run."""
    found: set[str] = set()

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(FOLDER):
            found.add(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)


def trained(name: str, norm: bool, params: dict[str, Any], one_pass: bool) -> tuple[list[Tensor], Method, set[str]]:
    """Three steps in float64, so that only the formulas can differ."""
    torch.manual_seed(1)
    task = tiny_task()
    method = resolve("methods", name)(task, tiny_builder(task, norm=norm), **params).double().train()
    if not one_pass and hasattr(method, "one_pass"):
        method.one_pass = False
    groups = method.parameter_groups()
    optimizers = {
        key: torch.optim.SGD([p for group in groups[key] for p in group.params], lr=0.05, momentum=0.9)
        for key in groups
    }
    losses = []
    with recorded() as found:
        for step in range(3):
            batch = tiny_batch(
                task, draws=method.draws, share_images=method.draws_share_images, seed=step, dtype=torch.float64
            )
            torch.manual_seed(1000 + step)
            for update in method.updates(batch, Progress(step, 8, 4)):
                optimizers[update.group].zero_grad(set_to_none=True)
                update.output.loss.backward()
                optimizers[update.group].step()
                losses.append(update.output.loss.detach())
            method.after_update(Progress(step, 8, 4))
    return losses, method, found


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("name", names("methods"))
def test_every_method_trains_alike_in_both_forms(name: str, norm: bool) -> None:
    params, expected = USED[name]
    fast, one, _ = trained(name, norm, params, one_pass=True)
    params = params | ({"head_group": 0} if name == "cct" else {})
    with plain_forms():
        plain, other, found = trained(name, norm, params, one_pass=False)
    assert expected <= found
    torch.testing.assert_close(torch.stack(plain), torch.stack(fast), rtol=1e-6, atol=1e-8)
    weights = other.state_dict()
    for key, tensor in one.state_dict().items():
        torch.testing.assert_close(weights[key], tensor, rtol=1e-5, atol=1e-7, msg=key)


NETWORKS = {
    "mit": ({"name": "mit", "size": "b0"}, {"name": "segformer", "embedding": 8}, {"attention", "fused_map"}),
    "dinov2": (
        {"name": "dinov2", "dim": 24, "heads": 2},
        {"name": "dpt", "features": 8},
        {"attention", "upsampled_mix"},
    ),
}


@pytest.mark.parametrize("kind", ["segmentation", "change"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_alike_in_both_forms(name: str, kind: str) -> None:
    encoder, decoder, expected = NETWORKS[name]
    section = ModelRecipe.model_validate({"encoder": encoder, "decoder": decoder})

    def gradients() -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(0)
        network = Builder(section, tiny_task(kind), crop=56)().double().eval()
        logits = network(tiny_image)
        logits.square().mean().backward()
        return logits.detach(), {key: p.grad for key, p in network.named_parameters() if p.grad is not None}

    times = (2,) if kind == "change" else ()
    tiny_image = torch.rand(2, *times, 3, 56, 56, dtype=torch.float64)
    logits, fast = gradients()
    with plain_forms(), recorded() as found:
        plain_logits, plain = gradients()
    assert expected <= found
    torch.testing.assert_close(plain_logits, logits, rtol=1e-5, atol=1e-7)  # positions are interpolated in float32
    for key, gradient in fast.items():
        torch.testing.assert_close(plain[key], gradient, rtol=1e-4, atol=1e-7, msg=key)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "shapes")


def test_a_run_of_a_recipe_can_use_the_plain_forms_from_disk_to_weights(data: Path, tmp_path: Path) -> None:
    # Crops are not scaled here, so that both ways of cutting give the same bytes.
    settings = ("run.steps=2", "run.eval_every=2", "data.scale=[1.0, 1.0]", "optim.name=sgd")
    fit(recipe(data, *settings), tmp_path / "fast", quiet=True)
    with plain_forms(), recorded() as found:
        fit(recipe(data, *settings), tmp_path / "plain", quiet=True)
    assert PIXELS | LABELED | {"cut_whole", "lerp_", "fused_map"} <= found
    states = [read_checkpoint(tmp_path / out / "checkpoints" / "last.ckpt")["state_dict"] for out in ("fast", "plain")]
    for key, tensor in states[0].items():
        torch.testing.assert_close(states[1][key], tensor, rtol=1e-3, atol=1e-5, msg=key)


def test_the_fast_forms_come_back_in_modules_that_were_imported_meanwhile_too(monkeypatch) -> None:
    fast = mixing.paste
    monkeypatch.delitem(sys.modules, "halfmask.methods.fixmatch")
    with plain_forms():
        assert mixing.paste is PLAIN[fast]
        meanwhile = importlib.import_module("halfmask.methods.fixmatch")
        assert meanwhile.paste is PLAIN[fast]
    assert mixing.paste is meanwhile.paste is fast


def test_no_two_fast_forms_share_a_plain_one() -> None:
    assert len({*PLAIN.values()}) == len(PLAIN)  # or the way back would be lost
