"""The demonstration end to end, small: equal budgets, figures from the run's own files, one page without a network."""

import json
import re

import pytest
import yaml
from PIL import Image

from halfmask.demo.dataset import Size
from halfmask.demo.run import RUNS, recipe_of, run_demo
from halfmask.demo.scene import CLASSES
from halfmask.errors import DataError
from halfmask.recipe.read import load
from tests.report.pages import assert_offline, read

SIZE = Size(labeled=3, unlabeled=4, val=1, test=2, side=48)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return run_demo(tmp_path_factory.mktemp("demo"), steps=2, seed=3, size=SIZE, quiet=True)


@pytest.mark.parametrize("pretrained", [False, True])
def test_both_runs_differ_in_the_weight_of_unlabeled_images_alone(tmp_path, pretrained):
    recipes = [load(recipe_of(name, tmp_path, 10, 0, pretrained=pretrained)) for name in RUNS]
    first, second = (recipe.model_dump(mode="json") for recipe in recipes)
    assert [run["method"].pop("unlabeled_weight") for run in (first, second)] == [0.0, 1.0]
    assert first == second
    assert (first["model"]["encoder"].get("weights") == "imagenet") == pretrained


def test_scores_on_the_page_and_in_the_files_are_those_of_the_runs(result):
    stored = json.loads((result.out / "result.json").read_text())
    for name in RUNS:
        measured = json.loads((result.out / name / "metrics.json").read_text())
        assert measured["part"] == "test"
        assert measured["metrics"]["test/miou"] == stored["scores"][name]["test/miou"] == result.scores[name].miou
        assert f"{100 * result.scores[name].miou:.1f} %" in result.page.read_text()
    assert stored["gain"] == pytest.approx(result.scores["fixmatch"].miou - result.scores["control"].miou)
    assert f"{100 * result.gain:+.1f}" in result.table()
    assert all(name in result.table() for name in CLASSES)


def test_both_runs_took_equal_steps_with_equal_images(result):
    recipes = [yaml.safe_load((result.out / name / "recipe.yaml").read_text()) for name in RUNS]
    assert [recipe["run"]["steps"] for recipe in recipes] == [2, 2]
    lists = [json.loads((result.out / name / "split.json").read_text()) for name in RUNS]
    for part in ("labeled", "unlabeled"):
        assert lists[0][part]["sha256"] == lists[1][part]["sha256"]


def test_the_page_needs_nothing_but_itself(result):
    page = read(result.page)
    assert_offline(page, result.out)
    assert page.tags["img"] == 3
    assert all(source.startswith("data:image/png;base64,") for source in page.references if len(source) > 6)
    assert page.tags["polyline"] == 2 * 3  # three curves, named in the legend
    assert all(page.ids.count(name) == 1 for name in ("scenes", "data", "classes", "training", "origin"))
    assert "nan" not in re.split(r"\W+", page.text.lower())
    assert f"--seed {result.seed}" in page.text


def test_the_curves_are_those_of_the_records(result):
    page = result.page.read_text()
    records = [json.loads(line) for line in (result.out / "fixmatch" / "metrics.jsonl").read_text().splitlines()]
    scores = [100 * record["val/miou"] for record in records if "val/miou" in record]
    assert f"with unlabeled images: from {scores[0]:.1f} % to {scores[-1]:.1f} %" in page


def test_the_figure_shows_scenes_truth_and_both_predictions(result):
    figure = Image.open(result.out / "predictions.png")
    assert figure.width > 2 * 192
    assert figure.height > 4 * 192


def test_an_earlier_demonstration_is_not_overwritten_unasked(result):
    with pytest.raises(DataError, match="--overwrite"):
        run_demo(result.out, steps=1, size=SIZE, quiet=True)
