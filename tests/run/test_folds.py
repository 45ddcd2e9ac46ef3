"""Cross-validation over few masks, and the run on all of them that follows."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import halfmask
from halfmask.cli.app import app
from halfmask.errors import CheckpointError, DataError, Interrupted, RecipeError
from halfmask.infer.bootstrap import scored
from halfmask.infer.bundle import load_bundle
from halfmask.methods.fixmatch import FixMatch
from halfmask.run import folds as module
from halfmask.run.folder import RunDir
from halfmask.run.folds import FoldsResult, train_folds
from halfmask.run.train import predicted
from halfmask.run.twin import Estimate
from tests.run.same import differences
from tests.run.tiny import recipe, write_dataset

KEYS = ("run.steps=2", "run.eval_every=1", "run.average_last=0.5")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "shapes", images=8, masks=5)


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FoldsResult]:
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, train_folds(recipe(data, *KEYS, "run.twin=control"), out, 2, quiet=True)[1]


def lists(run: Path) -> dict[str, list[str]]:
    return RunDir(run).recorded_lists()


def test_each_mask_is_held_out_once_and_the_last_run_has_all(made: tuple[Path, FoldsResult]) -> None:
    out, _ = made
    whole, folds = lists(out), [lists(out / "fold-1"), lists(out / "fold-2")]
    assert (len(whole["labeled"]), whole["val"]) == (5, [])
    assert sorted(folds[0]["val"] + folds[1]["val"]) == sorted(whole["labeled"])
    for fold in folds:
        assert sorted(fold["val"] + fold["labeled"]) == sorted(whole["labeled"])
        assert fold["unlabeled"] == whole["unlabeled"]  # no held-out image teaches, not even without its mask
        assert not set(fold["val"]) & set(fold["unlabeled"])


def test_the_score_is_of_all_images_by_networks_that_have_not_seen_them(made: tuple[Path, FoldsResult]) -> None:
    out, found = made
    own = np.concatenate([predicted(out / fold, out / fold).counts for fold in ("fold-1", "fold-2")])
    assert len(own) == found.images == 5
    expected = scored(own, "segmentation", "skip").main
    assert found.score == Estimate(*expected)
    assert found.kind == "control"
    assert found.difference is not None
    assert found.other is not None
    assert found.score.value is not None
    assert found.other.value is not None
    assert found.difference.value == pytest.approx(found.score.value - found.other.value)
    kept = json.loads((out / "folds.json").read_text())["result"]
    assert kept["score"] == {"value": found.score.value, "low": found.score.low, "high": found.score.high}


def test_what_the_folds_found_better_is_trained_on_all_masks(made: tuple[Path, FoldsResult]) -> None:
    out, found = made
    weight = RunDir(out).load_recipe().method.params["unlabeled_weight"]
    assert weight == (0.0 if found.ships == "other" else 1.0)
    assert load_bundle(out).meta["step"] == found.steps
    assert RunDir(out).load_recipe().run.twin is None


@pytest.mark.parametrize(
    ("low", "high", "ships", "words"),
    [
        (0.01, 0.2, "run", "The images without masks helped here: the network trained with them is shipped"),
        (-0.2, -0.01, "other", "did not help here: the network trained without their loss is shipped"),
        (-0.1, 0.2, "run", "cannot be told, the interval holds 0: the network trained with them is shipped"),
    ],
)
def test_the_verdict_is_a_plain_sentence(low: float, high: float, ships: Any, words: str) -> None:
    one, change = Estimate(0.7, 0.6, 0.8), Estimate(0.05, low, high)
    assert words in FoldsResult("miou", 12, 4, 100, 100, one, one, change, "control", ships).describe()
    plain = FoldsResult("miou", 12, 4, 100, 100, one, one, change, "supervised", ships).describe()
    assert "images without masks" not in plain  # a gain over masks alone may have other reasons
    few = FoldsResult("miou", 4, 4, 9, 9, one, one, change, "control", ships).describe()
    assert "cannot be told, 4 masks are too few" in few
    alike = FoldsResult("miou", 12, 4, 9, 9, one, one, Estimate(0.0, 0.0, 0.0), "control").describe()
    assert "both score alike" in alike
    alone = FoldsResult("miou", 12, 4, 60, 100, one).describe()
    assert "miou 70.0 % (95 % interval 60.0 to 80.0), on 12 masks" in alone
    assert "60 of 100 steps were clearly better" in alone


def test_a_shorter_training_is_taken_only_where_it_is_clearly_better(tmp_path: Path) -> None:
    def curves(*scores: tuple[float, ...]) -> int:
        runs = []
        for number, curve in enumerate(scores):
            runs.append(tmp_path / f"fold-{number}")
            runs[-1].mkdir(exist_ok=True)
            rows = [{"step": 10 * step, "val/miou": score} for step, score in enumerate(curve, 1)]
            (runs[-1] / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return module._steps(runs, [3, 1], "miou", 30)

    assert curves((0.5, 0.6, 0.7), (0.6, 0.2, 0.2)) == 30
    assert curves((0.5, 0.7, 0.6), (0.2, 0.2, 0.2)) == 20
    assert curves((0.5, 0.7, 0.6), (0.0, 0.0, 0.3)) == 30  # one image against three: 52.5 and 52.5
    assert curves((0.5, 0.605, 0.6), (0.2, 0.2, 0.2)) == 30


@pytest.mark.slow
@pytest.mark.parametrize(("step", "begun"), [(5, 2), (4, 1)], ids=["in the second fold", "at the end of the first"])
def test_stopped_anywhere_it_goes_on_to_the_same_result(
    data: Path, made: tuple[Path, FoldsResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, begun: int
) -> None:
    out, whole = tmp_path / "run", FixMatch.after_update
    calls = []

    def stop(self: Any, progress: Any) -> None:
        whole(self, progress)
        calls.append(progress.step)
        if len(calls) == step:  # of fold, its control, the next fold
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(FixMatch, "after_update", stop, raising=False)
    with pytest.raises(Interrupted, match=rf"halfmask train --resume {out}$"):
        train_folds(recipe(data, *KEYS, "run.twin=control"), out, 2, quiet=True)
    assert len(list(out.glob("fold-*"))) == begun
    monkeypatch.setattr(FixMatch, "after_update", whole)
    done = CliRunner().invoke(app, ["train", "--resume", str(out), "-q"])
    assert done.exit_code == 0, done.output
    first, second = (json.loads((run / "folds.json").read_text())["result"] for run in (made[0], out))
    assert not differences(first, second)
    assert (made[0] / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    halfmask.train(recipe(data, "run.steps=1"), out, overwrite=True, quiet=True)
    assert not list(out.glob("fold*"))


def test_folds_are_forgotten_with_their_run_once_the_new_one_is_checked(
    data: Path, made: tuple[Path, FoldsResult], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(made[0], out)
    names = ("folds.json", "lists", "fold-1", "fold-2")
    with pytest.raises(DataError):
        halfmask.train(recipe(tmp_path / "nowhere"), out, overwrite=True, quiet=True)
    assert all((out / name).exists() for name in names)
    RunDir(out).create(overwrite="but_folds")
    assert all((out / name).exists() for name in names)
    assert not (out / "model.json").exists()
    halfmask.train(None, out, resume_from=made[0], overwrite=True, quiet=True)
    assert not any((out / name).exists() for name in names)


def test_what_stopped_goes_on_with_the_same_masks_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = write_dataset(tmp_path / "shapes", images=8, masks=5), tmp_path / "run"

    def broken(self: Any, batch: Any, progress: Any) -> None:
        raise DataError("a file cannot be read.")

    monkeypatch.setattr(FixMatch, "step", broken)
    with pytest.raises(DataError, match=rf"Continue with: halfmask train --resume {out}$"):
        train_folds(recipe(data, *KEYS), out, 2, quiet=True)
    with pytest.raises(DataError, match=rf"Continue it: halfmask train --resume {out}; start anew in it: --overwrite"):
        RunDir(out).check_free()
    kept = json.loads((out / "folds.json").read_text())
    assert sorted(id for ids in kept["held_out"] for id in ids) == [f"images/shape_{n:02d}.png" for n in range(5)]
    mask, other = (data / "masks" / f"shape_{number:02d}.png" for number in (1, 6))
    mask.rename(other)
    with pytest.raises(CheckpointError, match=r"missing \(\S+_01.png\), 1 new \(\S+_06.png\)\n.*--overwrite") as caught:
        train_folds(None, out, resume=True, quiet=True)
    assert caught.value.code == "H405"
    other.rename(mask)
    # What was dealt then is held out now, whatever another version would deal.
    kept["held_out"].reverse()
    shutil.rmtree(out / "fold-1")
    (out / "folds.json").write_text(json.dumps(kept))
    with pytest.raises(DataError, match="Continue with"):
        train_folds(None, out, resume=True, quiet=True)
    assert lists(out / "fold-1")["val"] == kept["held_out"][0]
    del kept["held_out"]
    (out / "folds.json").write_text(json.dumps(kept))
    with pytest.raises(CheckpointError, match="cannot be read"):
        train_folds(None, out, resume=True, quiet=True)


@pytest.mark.parametrize(
    ("folds", "keys", "words"),
    [
        (6, (), r"--folds 6, but 5 masks are in use\. Give at most --folds 5"),
        (1, (), "at least two"),
        (2, ("data.labeled=1",), "1 is in use"),
        (2, ("data.val=val.txt",), "Give one of both"),
        (2, ("run.devices=2",), "one process"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    data: Path, tmp_path: Path, folds: int, keys: tuple[str, ...], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        train_folds(recipe(data, *keys), tmp_path / "run", folds, quiet=True)
    assert not (tmp_path / "run").exists()


def test_flags_that_contradict_folds_are_refused(data: Path, tmp_path: Path) -> None:
    command = ["train", "fixmatch/folder", "--data", str(data), "--out", str(tmp_path / "run"), "--folds", "2"]
    done = CliRunner().invoke(app, [*command, "--seeds", "0,1"])
    assert done.exit_code == 2
    assert "--folds and --seeds" in done.stderr


def test_the_end_names_score_model_and_next_command_and_evaluate_the_score(
    made: tuple[Path, FoldsResult], tmp_path: Path
) -> None:
    out, score = tmp_path / "run", made[1].score
    shutil.copytree(made[0], out)
    done = CliRunner().invoke(app, ["train", "--resume", str(out), "-q"])
    assert done.exit_code == 0, done.output
    first, told, *_, last = done.stdout.splitlines()
    assert first == f"{out}  2 steps on all 5 masks; its model is shipped"
    assert score.value is not None
    assert told.startswith(f"folds    miou {100 * score.value:.1f} %")
    assert last == f"next     halfmask predict {out} --input DIR --out masks; halfmask report {out}"
    shipped = made[1].other if made[1].ships == "other" else score
    assert shipped is not None
    assert shipped.value is not None
    done = CliRunner().invoke(app, ["evaluate", str(out), "-q"])
    assert done.exit_code == 3
    assert f"its folds tell: miou {100 * shipped.value:.1f} %, 95 % interval" in done.stderr
    assert "--part train" not in done.stderr
    kept = json.loads((out / "folds.json").read_text())
    del kept["result"]
    (out / "folds.json").write_text(json.dumps(kept))
    done = CliRunner().invoke(app, ["evaluate", str(out), "-q"])
    assert f"its folds are not finished: halfmask train --resume {out}" in done.stderr


def test_the_report_names_the_cross_validated_score(made: tuple[Path, FoldsResult], tmp_path: Path) -> None:
    out, found = tmp_path / "run", made[1]
    shutil.copytree(made[0], out)
    text = (out / "recipe.yaml").read_text().replace("unlabeled_weight: 1.0", "unlabeled_weight: 0.0")
    (out / "recipe.yaml").write_text(text)  # as where the folds find the control better
    logs = list(out.glob("**/log.txt"))
    for log in logs:  # an hour each: the folds, their controls, the run on all masks
        log.write_text("2026-01-01T10:00:00  data x\n2026-01-01T11:00:00  end\n")
    report = halfmask.report(out, quiet=True)
    page = " ".join(report.page.read_text(encoding="utf-8").split())
    assert found.score.value is not None
    assert f"{100 * found.score.value:.1f} % by cross-validation" in report.heading
    assert f"<b>Cross-validated:</b> mIoU {100 * found.score.value:.1f} %" in page
    assert "By cross-validation, the run minus the control" in page
    assert report.values["cross_validated"]["images"] == 5
    assert len(logs) > 3
    assert f"<dd>{len(logs)}.0 h</dd>" in page
    assert "for the folds, then 2 steps on all masks" in page
    assert "The loss of the unlabeled images has no weight in this run" in page
    assert "No sign of a collapse" not in page
    assert "its folds tell: miou" in page
    assert "--part train" not in page
