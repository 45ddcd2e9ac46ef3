"""Two processes on one CPU compute what one process computes."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from halfmask.run.checkpoint import read_checkpoint
from halfmask.run.fit import fit
from halfmask.run.loop.module import LitMethod
from tests.processes import Done, Started, group, wait_for_all
from tests.run.tiny import recipe, write_dataset

pytestmark = pytest.mark.slow

NETWORK = (
    "model.encoder={name: timm, model: test_convnext}",
    "model.decoder={name: 'plain_decoder:PlainDecoder'}",
)
RUN = """
import sys
from halfmask.run.fit import fit

if __name__ == "__main__":
    source, out, *overrides = sys.argv[1:]
    again = source == "resume"
    fit(None if again else source, out, resume=again, overrides=tuple(overrides), quiet=True)
"""


def train(source: str, out: Path, overrides: tuple[str, ...], kill_at: int | None, weights: Path | None) -> None:
    """Train in one process of the group; die at a step, or write the weights after each, if told to."""
    torch.set_num_threads(1)
    training_step = LitMethod.training_step

    def observed(self: LitMethod, batch: Any, index: int) -> None:
        training_step(self, batch, index)
        if self.step == kill_at:
            os._exit(9)
        if weights is not None:
            torch.save(self.state_dict(), f"{weights}/{self.global_rank}-{self.step}.pt")

    LitMethod.training_step = observed  # type: ignore[method-assign]
    fit(None if source == "resume" else source, out, resume=source == "resume", overrides=overrides, quiet=True)


def start(
    folder: Path, source: str, name: str, *overrides: str, kill_at: int | None = None, weights: Path | None = None
) -> list[Done]:
    """Train in two processes, from a recipe, or from what an earlier run left; return how they ended."""
    sys.path.insert(0, str(Path(__file__).parent))  # where the decoder and the methods are; forked processes have it
    try:
        arguments = (source, folder / name, overrides, kill_at, weights)
        started = [Started(train, *arguments, **variables) for variables in group()]
    finally:
        sys.path.pop(0)
    return wait_for_all(started)


def run(folder: Path, name: str, *overrides: str) -> Path:
    """Train in two processes to the end; return the folder of the run."""
    for done in start(folder, str(folder / "recipe.yaml"), name, *overrides):
        assert done.code == 0, done.err[-3000:]
    return folder / name


def run_alone(folder: Path, name: str, *overrides: str, resume: bool = False) -> Path:
    """Train in a process of its own, which starts the others if `run.devices` says so."""
    script = folder / "run.py"
    script.write_text(RUN)
    here = Path(__file__).parent
    paths = os.pathsep.join((str(here), str(here.parents[1])))  # of the tree that is tested, wherever it is installed
    everything = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    source = "resume" if resume else str(folder / "recipe.yaml")
    command = [sys.executable, str(script), source, str(folder / name), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=everything, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / name


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        # Crops never reach over the image, so every rank counts the same number of pixels.
        made = recipe(
            write_dataset(folder / "data"),
            *NETWORK,
            "optim.name=sgd",
            "data.batch={labeled: 4, unlabeled: 4}",
            "data.scale=[1.0, 1.0]",
            "run.steps=4",
            "run.eval_every=4",
        )
    finally:
        sys.path.pop(0)
    (folder / "recipe.yaml").write_text(made.to_yaml())
    return folder


def test_two_processes_train_the_weights_of_one(folder: Path) -> None:
    settings = ("method={name: supervised}", "run.log_every=1")
    one = run_alone(folder, "one", *settings)
    two = run_alone(folder, "two", *settings, "run.devices=2")
    # Gradients are summed in another order; 4 steps of float32 stay far below this.
    torch.testing.assert_close(losses(two), losses(one), rtol=1e-5, atol=1e-6)
    weights, others = (read_checkpoint(out / "checkpoints" / "last.ckpt")["state_dict"] for out in (one, two))
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-4, atol=1e-6)
    scores = [json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["val/miou"] for out in (one, two)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


@pytest.mark.parametrize(
    ("method", "predictors"), [("fixmatch", {"teacher", "student"}), ("patterns:Steering", {"net"})]
)
def test_killed_and_resumed_in_two_processes_equals_unbroken_in_two(
    folder: Path, method: str, predictors: set[str]
) -> None:
    name = method.partition(":")[0]
    settings = ("run.devices=2", "run.eval_every=2", "optim.name=adamw", f"method={{name: '{method}'}}")
    settings = (*settings, "data.balance=classes")
    whole = run(folder, f"whole-{name}", *settings)
    killed = start(folder, str(folder / "recipe.yaml"), f"killed-{name}", *settings, kill_at=3)
    assert [done.code for done in killed] == [9, 9]
    last = folder / f"killed-{name}" / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last)["halfmask"]["step"] == 2
    if name == "fixmatch":
        run_alone(folder, f"killed-{name}", resume=True)  # which starts the second process itself
    else:
        resumed = start(folder, "resume", f"killed-{name}")
        assert [done.code for done in resumed] == [0, 0], resumed[0].err[-3000:]
    saved = read_checkpoint(whole / "checkpoints" / "last.ckpt")
    assert set(saved["halfmask"]["best"]) == predictors
    assert saved["halfmask"]["sampling"] == read_checkpoint(last)["halfmask"]["sampling"]
    assert (saved["halfmask"]["sampling"] is not None) == (name == "patterns")
    assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())
    one, two = saved, read_checkpoint(last)
    assert one["halfmask"]["step"] == two["halfmask"]["step"] == 4
    assert [
        name for name, tensor in one["state_dict"].items() if not torch.equal(tensor, two["state_dict"][name])
    ] == []
    for left, right in zip(one["optimizer_states"], two["optimizer_states"], strict=True):
        for index, entry in left["state"].items():
            assert all(
                torch.equal(torch.as_tensor(entry[key]), torch.as_tensor(right["state"][index][key])) for key in entry
            )


def test_teachers_that_take_turns_stay_the_same_in_two_processes(folder: Path, tmp_path: Path) -> None:
    settings = ("run.devices=2", "optim.lr=0.05", "method={name: ps_mt, warmup_epochs: 1.0, ramp_epochs: 0.0}")
    out = folder / "turns"
    ended = start(folder, str(folder / "recipe.yaml"), "turns", *settings, weights=tmp_path)
    assert [done.code for done in ended] == [0, 0], ended[0].err[-3000:]
    states = [[torch.load(tmp_path / f"{rank}-{step}.pt") for step in range(1, 5)] for rank in range(2)]
    for one, two in zip(*states, strict=True):
        assert [name for name, tensor in one.items() if not torch.equal(tensor, two[name])] == []

    moved = []
    for before, after in pairwise(states[0]):
        changed = {name.split(".")[1] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
        moved.append(changed - {"student"})
        assert "student" in changed
    assert moved == [{"teacher_a"}, {"teacher_b"}, {"teacher_a"}]  # one batch is an epoch; labels alone come first
    saved = read_checkpoint(out / "checkpoints" / "last.ckpt")["state_dict"]
    assert saved.keys() == states[0][-1].keys()
    assert {name.partition(".")[0] for name in saved} == {"method"}
    assert all(torch.equal(tensor, saved[name]) for name, tensor in states[1][-1].items())
