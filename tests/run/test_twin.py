"""Control and supervised twin: what they share with their run, the comparison, resuming, and runs without."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

import halfmask
from halfmask.cli import flags
from halfmask.cli.app import app
from halfmask.errors import Interrupted, RecipeError
from halfmask.infer.bundle import load_bundle, own_bundle
from halfmask.infer.runs import open_run
from halfmask.method import Method
from halfmask.methods.fixmatch import FixMatch
from halfmask.methods.supervised import Supervised
from halfmask.recipe.read import load
from halfmask.run import train as training
from halfmask.run.checkpoint import read_checkpoint
from halfmask.run.fit import fit as train_alone
from halfmask.run.predictor import bundle_of
from halfmask.run.twin import Estimate, TwinResult, check_comparable, kinds_of, twin_recipe
from tests import processes
from tests.run.tiny import recipe, write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Twelve masks: two of them validate.
    return write_dataset(tmp_path_factory.mktemp("data") / "shapes", images=16, masks=12)


@pytest.fixture(scope="module")
def pair(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TwinResult, TwinResult]:
    out = tmp_path_factory.mktemp("runs") / "both"
    result = halfmask.train(recipe(data, "run.twin=both", loss={"name": "ohem", "min_kept": 50}), out, quiet=True)
    assert result.twin is not None
    assert result.plain is not None
    return out, result.twin, result.plain


def state(out: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(out / "checkpoints" / "last.ckpt")["state_dict"]  # type: ignore[no-any-return]


def result(low: float | None, high: float | None, images: int = 40, kind: Any = "control") -> TwinResult:
    one = Estimate(0.7, 0.6, 0.8)
    change = Estimate(0.01, low, high)
    return TwinResult("miou", "val", images, 100, "fixmatch", one, one, change, {}, Path("r/control"), kind)


def test_the_control_differs_in_the_weight_of_the_unlabeled_loss_alone(pair: tuple[Path, Any, Any]) -> None:
    run, control = (yaml.safe_load((folder / "recipe.yaml").read_text()) for folder in (pair[0], pair[0] / "control"))
    assert control["method"] == run["method"] | {"unlabeled_weight": 0.0}
    assert run["method"]["unlabeled_weight"] == 1.0
    assert control["run"] == run["run"] | {"twin": None}
    for section in ("model", "data", "optim", "eval"):
        assert control[section] == run[section]
    assert "unlabeled_weight: 0.0  # twin" in (pair[0] / "control" / "recipe.yaml").read_text()
    # Both have an average of their weights, and ship it.
    shipped = [json.loads((pair[0] / folder / "model.json").read_text())["predictor"] for folder in ("", "control")]
    assert shipped == ["teacher", "teacher"]


def test_what_a_run_is_compared_with(data: Path) -> None:
    assert kinds_of(recipe(data)) == ()
    assert kinds_of(recipe(data, "run.twin=true")) == ("control",)  # as recipes of earlier versions have it
    assert kinds_of(recipe(data, "run.twin=false")) == ()
    assert kinds_of(recipe(data, "run.twin=both")) == ("control", "supervised")
    assert kinds_of(recipe(data, "run.twin=supervised")) == ("supervised",)
    assert Method.control_params() is None
    uncontrolled = recipe(data, "run.twin=both", method=f"{Uncontrolled.__module__}:Uncontrolled")
    assert kinds_of(uncontrolled) == ("supervised",)


class Uncontrolled(Supervised):
    """A method of one's own without a weight of the unlabeled loss."""

    draws = 1


def test_the_supervised_twin_shares_everything_but_the_method(pair: tuple[Path, Any, Any]) -> None:
    run, twin = (yaml.safe_load((folder / "recipe.yaml").read_text()) for folder in (pair[0], pair[0] / "twin"))
    loss = {"name": "ohem", "threshold": 0.7, "min_kept": 50}
    assert twin["method"] == {"name": "supervised", "labeled_color": False, "loss": loss}
    assert (twin["run"]["steps"], twin["run"]["eval_every"]) == (6, 3)
    for section in ("model", "data", "optim", "eval"):
        assert twin[section] == run[section]
    for key in ("seed", "precision", "accelerator"):
        assert twin["run"][key] == run["run"][key]
    assert "steps: 6  # twin" in (pair[0] / "twin" / "recipe.yaml").read_text()
    lists = [json.loads((folder / "split.json").read_text()) for folder in (pair[0], pair[0] / "twin")]
    assert lists[0]["labeled"] == lists[1]["labeled"]
    assert lists[0]["val"] == lists[1]["val"]


def test_an_epoch_of_the_run_is_not_an_epoch_of_the_twin(data: Path) -> None:
    # 6 labeled images in the twin's pass, 10 unlabeled in the run's.
    prepared = check_comparable(recipe(data, "run.steps=null", "run.epochs=3", "run.eval_every=null", "data.labeled=6"))
    assert prepared.total_steps == 3 * 5
    for kind in ("control", "supervised"):
        twin = twin_recipe(prepared, kind)
        assert (twin.run.steps, twin.run.epochs, twin.run.eval_every) == (15, None, prepared.eval_every)


@pytest.mark.parametrize("place", [1, 2], ids=["control", "supervised"])
def test_the_comparison_is_that_of_the_two_best_models_on_the_same_images(
    pair: tuple[Path, TwinResult, TwinResult], place: int
) -> None:
    out, twin = pair[0], (pair[1], pair[2])[place - 1]
    assert (twin.kind, twin.folder.name) == (("control", "control"), ("supervised", "twin"))[place - 1]
    for folder, estimate in ((out, twin.run), (twin.folder, twin.twin)):
        scores = halfmask.evaluate(folder, device="cpu", write=False, quiet=True)
        assert estimate.value == pytest.approx(scores.miou)
    assert twin.difference.value == pytest.approx(twin.run.value - twin.twin.value)
    assert twin.difference.low <= twin.difference.value <= twin.difference.high
    assert (twin.images, twin.part, twin.metric, twin.steps) == (2, "val", "miou", 6)
    assert set(twin.by_class) == {"background", "disc", "bar"}


@pytest.mark.parametrize(("score", "images", "shipped"), [(0.9, 40, "twin"), (0.5, 40, ""), (0.9, 4, "")])
def test_the_better_is_shipped_and_both_are_at_hand(
    pair: tuple[Path, TwinResult, TwinResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    score: float,
    images: int,
    shipped: str,
) -> None:
    out = tmp_path / "run"
    shutil.copytree(pair[0], out)
    text = (out / "recipe.yaml").read_text()
    assert "ship: first" in text
    (out / "recipe.yaml").write_text(text.replace("ship: first", "ship: overall"))

    def scripted(run: Path, kind: Any) -> TwinResult:
        change = Estimate(0.7 - score, -0.1, 0.1)
        one = Estimate(score, None, None)
        return replace(
            pair[2], twin=one, run=Estimate(0.7, None, None), difference=change, images=images, folder=run / "twin"
        )

    monkeypatch.setattr(training, "_compare", scripted)
    (found,) = training.compare(out, ["supervised"])
    assert json.loads((out / "twin.json").read_text()).get("shipped", "") == shipped
    assert load_bundle(out).folder == out / shipped
    assert open_run(out, (), ("eval",)).folder == out / shipped
    assert load_bundle(own_bundle(out)).meta["method"] == "fixmatch"
    assert load_bundle(bundle_of(out, "teacher")).meta["predictor"] == "teacher"
    assert bundle_of(out, "student") == out / "predictors" / "student"
    flags.chosen(out, None, quiet=True)
    with monkeypatch.context() as other_rank:
        other_rank.setenv("LOCAL_RANK", "1")
        flags.chosen(out, None)
    assert not capsys.readouterr().err
    flags.chosen(out, None)
    assert capsys.readouterr().err.startswith(f"model    {out / 'twin'}: ") == bool(shipped)
    told = CliRunner().invoke(app, ["evaluate", str(out), "--quiet", "--device", "cpu"]).stdout
    assert f"{out / shipped}onval" in "".join(told.split())
    assert f"Shipped: {'the network trained with masks alone' if shipped else 'that of'}" in found.describe()
    assert ("validation cannot tell which is better" in found.describe()) == (images < 5)
    assert (f"`predict {out}` and others take it" in found.describe()) == bool(shipped)


def test_the_file_holds_what_the_result_says(pair: tuple[Path, TwinResult, TwinResult]) -> None:
    stored = json.loads((pair[0] / "twin.json").read_text())
    plain = stored.pop("supervised")
    assert stored == json.loads(json.dumps(pair[1].to_dict(), default=str))
    assert plain == json.loads(json.dumps(pair[2].to_dict(), default=str))
    assert stored["verdict"] in {"helps", "hurts", "unclear"}
    assert stored["difference"].keys() == {"value", "low", "high"}


@pytest.mark.parametrize(
    ("low", "high", "verdict", "words"),
    [
        (0.002, 0.03, "helps", "help here"),
        (-0.03, -0.001, "hurts", "do harm here: the model in r/control is the better one"),
        (-0.01, 0.03, "unclear", "do not help measurably"),
        (None, None, "unclear", "no interval"),
    ],
)
def test_the_verdict_is_the_interval_in_plain_words(low: Any, high: Any, verdict: str, words: str) -> None:
    assert result(low, high).verdict == verdict
    assert words in result(low, high).describe()
    assert "rough" not in result(low, high).describe()
    assert ("With 7 val images the interval itself is rough" in result(low, high, images=7).describe()) == (
        low is not None
    )
    few = result(low, high, images=4)  # a bootstrap of so few knows a handful of outcomes
    assert few.verdict == "unclear"
    assert "4 images cannot show" in few.describe()
    # A gain over plain supervised training is never called one of the unlabeled images.
    plain = result(low, high, kind="supervised").describe()
    assert "The unlabeled images" not in plain
    assert verdict == "hurts" or low is None or "only the control can tell" in plain


def test_without_an_interval_nothing_is_said_of_one() -> None:
    text = result(None, None, images=1).describe()
    assert "no interval: one image" in text
    assert "One image cannot show whether the unlabeled images help" in text
    assert "holds 0" not in text
    assert "rough" not in text


STOPS = [("run", 4), ("run", 6), ("control", 4), ("control", 6), ("twin", 4)]  # the sixth step is the last


def test_stopped_again_and_again_in_the_run_and_its_twins_all_are_continued(
    data: Path, pair: tuple[Path, TwinResult, TwinResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    begun = {"run": [], "control": ["control"], "twin": ["control", "twin"]}
    first: Any = recipe(data, "run.twin=both", loss={"name": "ohem", "min_kept": 50})
    for where, last in STOPS:
        with monkeypatch.context() as patch:
            stop_at(patch, where, last)
            with pytest.raises(Interrupted, match=rf"halfmask train --resume {out}$"):
                halfmask.train(first, out, resume=first is None, quiet=True)
        first = None
        assert not (out / "twin.json").exists()
        assert [name for name in ("control", "twin") if (out / name).exists()] == begun[where]
        folder = out if where == "run" else out / where
        assert read_checkpoint(folder / "checkpoints" / "last.ckpt")["halfmask"]["step"] == last
    again = halfmask.train(None, out, resume=True, quiet=True)
    for name in ("", "control", "twin"):
        unbroken, continued = state(pair[0] / name), state(out / name)
        assert all(torch.equal(tensor, continued[key]) for key, tensor in unbroken.items())
    assert again.twin is not None
    assert again.twin.difference == pair[1].difference
    assert again.plain is not None
    assert again.plain.difference == pair[2].difference


def stop_at(patch: pytest.MonkeyPatch, where: str, last: int) -> None:
    """Let the run, its control or its plain twin be told to stop after a step."""
    cls: Any = Supervised if where == "twin" else FixMatch
    after_update = cls.after_update

    def stop(self: Any, progress: Any) -> None:
        after_update(self, progress)
        if progress.step + 1 == last and (where != "control" or self.unlabeled_weight == 0):
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(cls, "after_update", stop, raising=False)


def test_ctrl_c_while_both_are_compared_says_how_to_go_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(run: Path, kinds: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "compare", interrupted)
    with pytest.raises(Interrupted, match=rf"halfmask train --resume {tmp_path / 'run'}$"):
        halfmask.train(recipe(data, "run.twin=supervised", "run.steps=1"), tmp_path / "run", quiet=True)


def test_a_finished_run_gets_its_twin_later_and_a_new_run_removes_it(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_alone(recipe(data), out, quiet=True)
    later = halfmask.train(None, out, resume=True, quiet=True, overrides=["run.twin=true"])
    assert later.twin is not None
    assert (out / "control" / "model.safetensors").exists()
    train_alone(recipe(data, "run.steps=2"), out, overwrite=True, quiet=True)
    assert not (out / "twin.json").exists()
    assert not (out / "control").exists()


def test_a_run_of_an_earlier_version_keeps_its_supervised_twin(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    halfmask.train(recipe(data, "run.twin=supervised", "run.steps=2"), out, quiet=True)
    text = (out / "recipe.yaml").read_text()
    assert "twin: supervised  # override" in text
    (out / "recipe.yaml").write_text(text.replace("twin: supervised", "twin: true"))
    again = halfmask.train(None, out, resume=True, quiet=True)
    assert again.twin is not None
    assert (again.twin.kind, again.plain) == ("supervised", None)
    assert not (out / "control").exists()


@pytest.mark.parametrize(
    ("overrides", "method", "advice"),
    [
        ((), "supervised", "its own control"),
        (("data.val=none",), "fixmatch", r"data\.val=LIST"),
        (("run.devices=2",), "fixmatch", r"--resume RUN --twin run\.devices=1"),
    ],
)
def test_a_run_without_a_twin_says_so_before_it_trains(
    data: Path, tmp_path: Path, overrides: tuple[str, ...], method: str, advice: str
) -> None:
    with pytest.raises(RecipeError, match=advice):
        halfmask.train(recipe(data, "run.twin=true", *overrides, method=method), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_supervised_does_not_know_is_left_out(data: Path) -> None:
    plain = recipe(data, method="cct", heads={"f_noise": 1}, loss="ab_ce").model_dump(mode="json")
    twin = twin_recipe(check_comparable(load(plain)), "supervised")
    assert twin.method.params["loss"] == "ce"


@pytest.mark.slow
def test_the_command_line_prints_the_difference(data: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(recipe(data).to_yaml())
    done = processes.run(tmp_path, "train", "r.yaml", "--out", "run", "--twin", "--limit", "2", "-q")
    assert done.code == 0, done.err
    assert "control  miou" in done.out
    assert "2 steps each" in done.out
    assert "points, 95 % interval" in done.out
