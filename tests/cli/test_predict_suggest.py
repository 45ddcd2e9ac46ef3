"""`halfmask predict`, `suggest` and `train --resume-from` on the command line: what they pass on, print and refuse."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from halfmask.cli.app import app
from halfmask.run.train import train
from tests.run.tiny import recipe, write_dataset

LONG_AGO = 10**18  # nanoseconds: in 2001


def call(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="halfmask")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run, and its data, to which nobody may write."""
    folder = tmp_path_factory.mktemp("place")
    data = write_dataset(folder / "shapes")
    for path in (*data.rglob("*"), data):
        path.chmod(0o555 if path.is_dir() else 0o444)
        os.utime(path, ns=(LONG_AGO, LONG_AGO))
    train(recipe(data, "run.steps=2", method="mean_teacher"), folder / "run", quiet=True)
    return folder


def test_data_that_cannot_be_written_is_enough_and_is_left_as_it_is(place, tmp_path):
    data = place / "shapes"
    assert call("check", "--data", data).exit_code == 0
    assert call("predict", place / "run", "--input", data / "images", "--out", tmp_path / "masks").exit_code == 0
    # To root nothing is forbidden; but what made a file here, even for a moment, changed the time of its folder.
    assert {path.stat().st_mtime_ns for path in (*data.rglob("*"), data)} == {LONG_AGO}


def test_names_of_all_languages_and_with_spaces_from_training_to_masks(place, tmp_path):
    data = write_dataset(tmp_path / "Süd  fläche (路面)")
    for path in sorted(data.glob("*/*.png")):
        path.rename(path.with_name(f"{path.stem} тест ß.png"))
    dry = call("train", place / "run/recipe.yaml", "--data", data, "--out", tmp_path / "mein Lauf", "--dry-run")
    assert dry.exit_code == 0, dry.output
    done = call("predict", place / "run", "--input", data / "images", "--out", tmp_path / "Masken ü")
    assert done.exit_code == 0, done.output
    names = {path.name for path in (data / "images").iterdir()}
    assert len(names) == 10
    assert {path.name for path in (tmp_path / "Masken ü").glob("*.png")} == names


def test_tiles_and_nodata_are_options_of_predict(place, tmp_path):
    found = call(
        "predict", place / "run", "--input", place / "shapes/images/shape_00.png", "--out", tmp_path / "out",
        "--tile", 32, "--overlap", 8, "--nodata", 0, "--json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["images"] == 1
    assert np.asarray(Image.open(tmp_path / "out" / "shape_00.png")).shape == (48, 56)
    wrong = call(
        "predict", place / "run", "--input", place / "shapes/images", "--out", tmp_path / "no", "--tile", 32,
        "--overlap", 31,
    )  # fmt: skip
    assert wrong.exit_code == 2
    assert "at most 16" in wrong.stderr


def test_predict_says_how_many_masks_it_kept(place, tmp_path):
    def predicted(*options):
        found = call("predict", place / "run", "--input", place / "shapes/images", "--out", tmp_path / "out", *options)
        assert found.exit_code == 0, found.output
        return found.stdout.strip().partition("  ")[2]

    assert predicted("--limit", 2) == "2 masks"
    assert predicted("--limit", 3) == "1 mask written, 2 already there (--overwrite replaces them)"


def test_suggest_prints_scores_and_says_what_is_missing(place, tmp_path):
    found = call("suggest", place / "run", "--n", 2, "--out", tmp_path / "next", "--disagreement", 2)
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.split("  ")[1].startswith("images/shape_0") for line in lines)
    assert json.loads((tmp_path / "next" / "suggest.json").read_text())["weights"]["disagreement"] == 2
    table = call("suggest", place / "run", "--n", 2, "--out", tmp_path / "sub/best.csv", "--disagreement", 2)
    assert table.exit_code == 0, table.output
    rows = [line.split(",") for line in (tmp_path / "sub/best.csv").read_text().splitlines()]
    assert rows[0] == ["rank", "image", "score"]
    assert [f"{float(score):.3f}  {id}" for _, id, score in rows[1:]] == lines
    assert (tmp_path / "sub/best/index.html").exists()
    assert not (place / "run" / "suggest").exists()
    again = call("suggest", place / "run", "--n", 2, "--out", tmp_path / "sub/best.csv")
    assert again.exit_code == 3
    assert f"{tmp_path / 'sub/best'} holds a suggestion. Replace it with --overwrite" in again.stderr
    for name in ("model.json", "model.safetensors"):
        (tmp_path / "bundle").mkdir(exist_ok=True)
        (tmp_path / "bundle" / name).write_bytes((place / "run" / name).read_bytes())
    alone = call("suggest", tmp_path / "bundle", "--data", place / "shapes", "--json")
    assert alone.exit_code == 0, alone.output
    assert "only one network" in json.loads(alone.stdout)["remarks"][0]
    assert "only one network" in alone.stderr


def test_a_run_that_begins_with_weights_needs_a_place_and_no_recipe(place, tmp_path):
    assert call("train", "--resume-from", place / "run").exit_code == 2
    both = call("train", "fixmatch/folder", "--resume-from", place / "run", "--out", tmp_path / "x")
    assert both.exit_code == 2
    assert "leave out RECIPE" in both.stderr
    begun = call("train", "--resume-from", place / "run", "--out", tmp_path / "new", "--limit", 1)
    assert begun.exit_code == 0, begun.output
    assert "5 then, 5 now (0 new)" in begun.stderr
    assert Path(tmp_path / "new" / "model.json").exists()
