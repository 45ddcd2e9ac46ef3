"""Methods of every pattern train through the command line, and go on after a stop as if nothing had happened.

Most are those that docs/extend.md shows, as it shows them.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from halfmask.cli.app import app
from halfmask.infer.bundle import load_bundle
from halfmask.models.ensemble import Ensemble
from halfmask.run.checkpoint import open_predictors, read_checkpoint
from halfmask.run.loop.module import LitMethod
from tests.docs.pages import ROOT, blocks
from tests.run.tiny import recipe, write_dataset

NETWORK = (
    "model.encoder={name: 'halfmask.testing.tiny:TinyEncoder'}",
    "model.decoder={name: 'halfmask.testing.tiny:TinyDecoder'}",
)
STEPS = ("run.steps=5", "run.eval_every=2", "run.log_every=1", "data.val=auto")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture(autouse=True)
def _files_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Write the files of docs/extend.md where Python finds them."""
    for block in blocks(ROOT / "docs" / "extend.md"):
        if name := block.options.get("file"):
            path = tmp_path / "page" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code)
    monkeypatch.syspath_prepend(str(tmp_path / "page"))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[name]


def halfmask(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="halfmask")
    assert done.exit_code == code, done.output
    return str(done.output)


def saved(out: Path, name: str = "last") -> dict[str, Any]:
    return read_checkpoint(out / "checkpoints" / f"{name}.ckpt")


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(tensor, other["state_dict"][name]) for name, tensor in one["state_dict"].items())
    states = [[group for optimizer in each["optimizer_states"] for group in optimizer["param_groups"]] for each in
              (one, other)]  # fmt: skip
    assert states[0] == states[1]
    assert one["halfmask"]["sampling"] == other["halfmask"]["sampling"]


def train_twice(
    data: Path, out: Path, method: str, *extra: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path, str]:
    """Train unbroken, and with a power cut in the fourth step, after the checkpoint of step 2."""
    made = recipe(data, *NETWORK, *STEPS, *extra, method=method)
    (out / "recipe.yaml").write_text(made.to_yaml())
    said = halfmask("train", out / "recipe.yaml", "--out", out / "unbroken")
    whole = LitMethod.training_step

    def cut(self: LitMethod, batch: Any, index: int) -> None:
        if self.step == 3:
            raise RuntimeError("power cut")
        whole(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(LitMethod, "training_step", cut)
        assert "power cut" in halfmask("train", out / "recipe.yaml", "--out", out / "broken", code=1)
    halfmask("train", "--resume", out / "broken")
    assert_same(saved(out / "unbroken"), saved(out / "broken"))
    return out / "unbroken", out / "broken", said


def test_two_networks(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _, said = train_twice(data, tmp_path, "tests.run.patterns:TwoNets", monkeypatch=monkeypatch)
    assert "tests.run.patterns:TwoNets; 2 networks, " in said
    assert {path.stem for path in (run / "checkpoints").iterdir()} >= {"last", "best-net_a", "best-net_b"}
    assert load_bundle(run).meta["predictor"] == "net_a"


def test_the_mean_of_two_networks(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _, _ = train_twice(data, tmp_path, "mylab.pair:Pair", monkeypatch=monkeypatch)
    bundle = load_bundle(run)
    assert (bundle.meta["predictor"], type(bundle.model)) == ("mean", Ensemble)
    found = open_predictors(bundle, torch.device("cpu"))
    assert list(found) == ["mean", "first", "second"]
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(found["mean"](image), bundle.model(image))
    assert "mean" in halfmask("evaluate", run)
    halfmask("predict", run, "--input", data / "images", "--out", tmp_path / "masks", "--tile", 32)
    assert len(list((tmp_path / "masks").rglob("*.png"))) == 10
    assert "100.000%" in halfmask("export", run, "--format", "torch")
    assert "shape_" in halfmask("suggest", run, "--n", 2)
    halfmask("report", run)
    assert "second" in (run / "report.html").read_text()


def test_two_optimizers(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, broken, said = train_twice(
        data,
        tmp_path,
        "mylab.critic:Adversarial",
        "optim.name=sgd",
        "optim.optimizers.critic.lr=0.02",
        monkeypatch=monkeypatch,
    )
    assert "optimizer critic: name adam, lr 0.02, clip_norm 50, schedule constant" in said
    written = (run / "recipe.yaml").read_text()
    assert "    lr: 0.02  # file" in written
    assert "    name: adam  # method" in written
    main, critic = saved(broken)["optimizer_states"]
    assert "momentum_buffer" in main["state"][0]
    assert "exp_avg_sq" in critic["state"][0]
    assert {group["lr"] for group in critic["param_groups"]} == {0.02}  # its own schedule: constant
    assert all(group["lr"] == 0 for group in main["param_groups"])  # at the end of `poly`


def test_a_memory(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _, _ = train_twice(data, tmp_path, "mylab.memory:Remembering", monkeypatch=monkeypatch)
    assert saved(run)["state_dict"]["method.memory.pointer"].any()


def test_a_pool_of_earlier_networks(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, broken, _ = train_twice(data, tmp_path, "mylab.past:Past", monkeypatch=monkeypatch)
    held, resumed = (int(saved(out)["state_dict"]["method.pool._extra_state"]) for out in (run, broken))
    assert held == resumed > 0
    # The best checkpoint has the snapshot that its own validation added.
    best = saved(run, "best-net")
    step = best["halfmask"]["step"]
    count = int(best["state_dict"]["method.pool._extra_state"])
    assert step == best["halfmask"]["best_steps"]["net"]
    names = [name.removeprefix("method.net.") for name in best["state_dict"] if name.startswith("method.net.")]
    newest = f"method.pool.models.{count - 1}."
    assert all(torch.equal(best["state_dict"][f"method.net.{n}"], best["state_dict"][newest + n]) for n in names)


def test_classes_drawn_as_the_method_says(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _, _ = train_twice(
        data, tmp_path, "tests.run.patterns:Steering", "data.balance=classes", monkeypatch=monkeypatch
    )
    chances = saved(run)["halfmask"]["sampling"]
    assert len(chances) == 3
    assert len(set(np.round(chances, 3))) > 1
