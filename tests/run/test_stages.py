"""Runs of several stages: each in its folder, and the run's folder stands for the last."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfmask.batch import Progress
from halfmask.errors import DataError, Interrupted, RecipeError
from halfmask.infer.bundle import load_bundle
from halfmask.infer.evaluate import evaluate
from halfmask.infer.predict.predict import predict
from halfmask.recipe.read import Recipe
from halfmask.run.checkpoint import read_checkpoint
from halfmask.run.fit import fit
from halfmask.run.predictor import bundle_of
from tests.run.staged import Staged
from tests.run.tiny import recipe, write_dataset


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return recipe(write_dataset(tmp_path_factory.mktemp("staged") / "data"), method="tests.run.staged:Staged")


@pytest.fixture(scope="module")
def finished(staged: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert fit(staged, out, quiet=True).out == out
    return out


def test_each_stage_has_its_folder_and_leaves_what_the_next_needs(finished: Path) -> None:
    steps = {name: read_checkpoint(finished / name / "checkpoints/last.ckpt") for name in ("second", "first")}
    assert {name: saved["halfmask"]["step"] for name, saved in steps.items()} == {"second": 2, "first": 3}
    assert (finished / "second/note.txt").read_text() == "second: Segmenter"


def test_the_folder_of_the_run_stands_for_its_last_stage(finished: Path, tmp_path: Path) -> None:
    assert load_bundle(finished).folder == finished / "first"
    scores = evaluate(finished, quiet=True)
    assert (finished / "first/metrics.json").is_file()
    assert scores.miou == evaluate(finished / "first", quiet=True).miou
    image = Image.fromarray(np.zeros((40, 50, 3), np.uint8))
    image.save(tmp_path / "a.png")
    assert predict(finished, tmp_path / "a.png", tmp_path / "out", quiet=True) == 1
    assert bundle_of(finished, "inner.student") == finished
    with pytest.raises(RecipeError, match=r"no predictor 'stranger'.*It has: inner\.student"):
        bundle_of(finished, "stranger")


def test_a_finished_run_resumes_to_itself_and_is_not_overwritten(staged: Recipe, finished: Path) -> None:
    assert fit(None, finished, resume=True, quiet=True).steps == 3
    with pytest.raises(DataError, match="not empty"):
        fit(staged, finished, quiet=True)


@pytest.mark.parametrize("step", [1, 2])
def test_an_interrupted_run_is_resumed_as_a_whole(
    staged: Recipe, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    after_update = Staged.after_update

    def stop(self: Staged, progress: Progress) -> None:
        after_update(self, progress)
        if progress.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Staged, "after_update", stop)
        with pytest.raises(Interrupted, match=rf"step {step} of 2.*--resume \S+/run$"):
            fit(staged, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "first").exists()
    fit(None, tmp_path / "run", resume=True, quiet=True)
    assert load_bundle(tmp_path / "run").meta["sha256"] == load_bundle(finished).meta["sha256"]


def test_a_dry_run_writes_nothing(staged: Recipe, tmp_path: Path) -> None:
    fit(staged, tmp_path / "run", dry_run=True, quiet=True)
    assert not (tmp_path / "run").exists()
