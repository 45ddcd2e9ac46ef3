"""The page of one run: whole, offline, with the numbers that other commands give, for any kind of run."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import halfmask
from halfmask.cli.app import app
from halfmask.errors import CheckpointError, DataError, RecipeError
from halfmask.infer.bundle import load_bundle
from halfmask.infer.evaluate import DatasetItems, evaluate
from halfmask.infer.inference import probabilities
from halfmask.infer.runs import open_part, open_run
from halfmask.report import evidence
from halfmask.report.draw import percent
from halfmask.report.make import report
from halfmask.report.records import read_run
from halfmask.run.fit import fit
from tests.report.conftest import QUICK
from tests.report.pages import Page, assert_offline, read
from tests.run import tiny

CHAPTERS = ["result", "twin", "curves", "classes", "confusion", "images", "pseudo", "data", "cost", "recipe"]


def copied(run: Path, to: Path, *leave_out: str) -> Path:
    return shutil.copytree(run, to, ignore=shutil.ignore_patterns("report", "report.html", *leave_out))


@pytest.fixture(scope="module")
def page(fix) -> Page:
    report(fix, quiet=True)
    return read(fix / "report.html")


def test_every_chapter_is_there_and_the_page_opens_offline(page, fix):
    assert [name for name in page.ids if not name.endswith("-title")] == CHAPTERS
    assert_offline(page, fix)
    assert page.tags["img"] >= 3 * 5  # image, truth, prediction, twin, errors of three images
    assert page.tags["title"] == page.tags["h1"] == page.tags["main"] == 1
    assert "nan" not in re.split(r"\W+", page.text)
    assert "None" not in re.split(r"\W+", page.text)


def test_its_score_is_that_of_evaluate(page, fix):
    scores = evaluate(fix, quiet=True, write=False)
    assert f"mIoU{percent(scores.miou)} %" in page.text
    for name, iou in zip(scores.classes, scores.iou, strict=True):
        assert re.search(rf"{name}\s*{percent(iou)}", page.chapter("classes")), name


def test_beside_plain_supervised_training_no_gain_is_called_that_of_unlabeled_images(page, fix):
    result = report(fix, quiet=True).to_dict()
    run, twin = (evaluate(path, quiet=True, write=False).miou for path in (fix, fix / "twin"))
    assert result["gain"]["value"] == pytest.approx(run - twin, abs=1e-12)
    assert result["gain"]["low"] <= result["gain"]["value"] <= result["gain"]["high"]
    expected = {
        (True, True): "The run is better than plain supervised training",
        (False, False): "The run is worse than plain supervised training",
        (False, True): "The run is not measurably better than plain supervised training",
    }[result["gain"]["low"] > 0, result["gain"]["high"] >= 0]
    assert result["heading"] == expected
    assert result["control"] is False
    assert expected in page.chapter("twin")
    assert "only the control can tell" in " ".join(page.chapter("twin").split())
    assert "gain by unlabeled images" not in page.text


def test_the_control_tells_whether_unlabeled_images_helped(fix, shapes, tmp_path):
    run = shutil.copytree(fix, tmp_path / "run")
    fit(tiny.recipe(shapes, *QUICK, threshold=0.4, unlabeled_weight=0.0), run / "control", quiet=True)
    result = report(run, quiet=True).to_dict()
    ours, control, plain = (
        evaluate(path, quiet=True, write=False).miou for path in (run, run / "control", run / "twin")
    )
    assert result["gain"]["value"] == pytest.approx(ours - control, abs=1e-12)
    assert result["gain_over_supervised"]["value"] == pytest.approx(ours - plain, abs=1e-12)
    assert (result["control"], result["twin"]) == (True, str(run / "control"))
    expected = {
        (True, True): "The unlabeled images helped",
        (False, False): "The unlabeled images did harm",
        (False, True): "The unlabeled images did not measurably help",
    }[result["gain"]["low"] > 0, result["gain"]["high"] >= 0]
    page = read(run / "report.html")
    text = " ".join(page.chapter("twin").split())
    assert expected in text
    assert "same run without the loss of the unlabeled images" in text
    assert "Over plain supervised training" in text
    assert "gain by unlabeled images" in page.text


def test_one_image_gives_no_interval_and_none_is_spoken_of(fix, tmp_path):
    run = shutil.copytree(fix, tmp_path / "run")
    report(run, limit=1, quiet=True)
    page = read(run / "report.html")
    assert "A single image cannot show" in page.chapter("twin")
    assert "95 % interval" not in " ".join(page.chapter("twin").split())
    assert "no interval: one image" in page.text


def test_a_named_twin_wins_and_what_differs_is_said(fix, shapes, tmp_path):
    other = tmp_path / "other"
    fit(tiny.recipe(shapes, *QUICK, "run.steps=2", "optim.lr=1e-4", method="supervised"), other, quiet=True)
    report(fix, twin=other, out=tmp_path / "page.html", quiet=True)
    text = read(tmp_path / "page.html").chapter("twin")
    assert "the twin trained 2 steps, the run 4" in text
    assert "the twin's optimizer differs" in text
    assert "seed" not in text.partition("Both models")[0].replace("another seed", "")


def test_pseudo_labels_are_measured_against_held_out_masks(page, fix):
    """The same numbers by a plain loop over pixels."""
    bundle = load_bundle(fix)
    opened = open_run(fix, (), sections=("eval", "data"))
    dataset, ids = open_part(opened.data, None, "val", opened.recorded_val)
    kept = right = total = 0
    for image, target in DatasetItems(dataset, ids):
        found = probabilities(bundle.model, image[None].float() / 255, opened.protocol, bundle.crop)[0]
        confidence, label = found.max(0)
        known = target != 255
        kept += int((known & (confidence >= 0.4)).sum())
        right += int((known & (confidence >= 0.4) & (label == target)).sum())
        total += int(known.sum())
    assert kept > 0
    text = " ".join(page.chapter("pseudo").split())
    assert f"{percent(kept / total)} % of the pixels pass and {percent(right / kept)} % of these are right" in text


@pytest.mark.parametrize("family", ["share", "coverage", "confidence"])
def test_pseudo_labels_of_each_class_run_over_the_training(page, fix, family):
    curves = {name: points for name, points in read_run(fix).family(f"pseudo/{family}").items() if "." not in name}
    assert curves
    html = (fix / "report.html").read_text()
    for name, points in curves.items():
        first, last = (f"{100 * points[place][1]:.0f} %" for place in (0, -1))
        assert f'aria-label="{name}: from {first} to {last}"' in html


def test_networks_of_the_last_checkpoint_are_those_that_were_saved(fix):
    method, progress = evidence.load_method(read_run(fix), torch.device("cpu"))
    saved = torch.load(fix / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {f"method.{name}" for name in method.state_dict()} == saved.keys()
    assert all(torch.equal(value, saved[f"method.{name}"]) for name, value in method.state_dict().items())
    assert progress.step == 4


def test_results_are_kept_until_something_they_depend_on_changes(fix, shapes, tmp_path, monkeypatch):
    data, run = shutil.copytree(shapes, tmp_path / "data"), copied(fix, tmp_path / "run", "twin")
    first = report(run, data=data, quiet=True)
    html = first.page.read_text()

    def forbidden(*args, **kwargs):
        raise AssertionError("predicted again")

    with monkeypatch.context() as patched:
        patched.setattr(evidence, "count_each", forbidden)
        again = report(run, data=data, quiet=True)
        assert again.values == first.values
        timeless = re.compile(r"made in [^<]* from")
        assert timeless.sub("", again.page.read_text()) == timeless.sub("", html)
        changed = data / "masks" / Path(json.loads((run / "split.json").read_text())["val"]["ids"][0]).name
        mask = np.asarray(Image.open(changed)).copy()
        mask[:9] = 1
        Image.fromarray(mask).save(changed)
        with pytest.raises(AssertionError, match="again"):
            report(run, data=data, quiet=True)
    assert report(run, data=data, quiet=True).values["score"] != first.values["score"]


def test_a_broken_cache_is_computed_anew(fix, tmp_path):
    run = copied(fix, tmp_path / "run", "twin")
    first = report(run, quiet=True)
    for path in (run / "report").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    assert report(run, quiet=True).values == first.values


def test_without_images_the_recorded_curves_remain(fix, tmp_path):
    run = copied(fix, tmp_path / "run")
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(re.sub(r"  root: \S+", f"  root: {tmp_path}/gone", recipe))
    page = read(report(run, quiet=True).page)
    assert_offline(page, run)
    assert "--data DIR" in page.chapter("result")
    assert "Validation mIoU" in page.chapter("curves")
    assert "could not be compared" in page.chapter("twin")
    (run / "recipe.yaml").write_text(re.sub(r"  root: \S+", "  root: null", recipe))
    assert "does not say where data is" in read(report(run, quiet=True).page).chapter("result")
    with pytest.raises(DataError):
        report(run, data=tmp_path / "nowhere", quiet=True)
    assert read(report(run, data=read_run(fix).recipe["data"]["root"], quiet=True).page).tags["img"] > 9


def test_a_run_without_validation_says_what_to_name(shapes, tmp_path):
    fit(tiny.recipe(shapes, *QUICK, "data.val=none", threshold=0.4), tmp_path / "run", quiet=True)
    page = read(report(tmp_path / "run", quiet=True).page)
    assert_offline(page, tmp_path / "run")
    assert "--part val | test | all" in page.chapter("result")
    assert "There was no validation" in page.chapter("curves")
    assert "--twin" in page.chapter("twin")
    judged = report(tmp_path / "run", part="all", quiet=True)
    assert judged.values["images"] == 15


def test_a_supervised_run_has_no_chapter_on_what_it_does_not_do(fix):
    page = read(report(fix / "twin", quiet=True).page)
    assert_offline(page, fix / "twin")
    assert "used no unlabeled images" in page.chapter("twin")
    assert "no pseudo-labels" in page.chapter("pseudo")
    assert "gain by" not in page.text


def test_a_class_that_no_image_shows_is_named(shapes, tmp_path):
    data = shutil.copytree(shapes, tmp_path / "data")
    (data / "classes.txt").write_text(tiny.CLASSES + "3\tghost <b>\t0,255,0\n")
    fit(tiny.recipe(data, *QUICK, threshold=0.4), tmp_path / "run", quiet=True)
    page = read(report(tmp_path / "run", quiet=True).page)
    assert_offline(page, tmp_path / "run")
    assert "shows ghost <b>" in page.chapter("classes")
    assert re.search(r"ghost <b>\s*(n/a|0\.0)", page.chapter("classes"))
    assert "H121" in page.chapter("data")


def test_image_pairs_are_shown_with_both_dates(change):
    result = report(change, quiet=True)
    page = read(result.page)
    assert_offline(page, change)
    assert result.values["metric"] == "changed_iou"
    scores = evaluate(change, quiet=True, write=False)
    assert result.values["score"]["value"] == pytest.approx(scores.iou[1], abs=1e-12)
    assert page.chapter("images").count("before") == page.chapter("images").count("after") >= 3


def test_whole_images_are_shown_with_their_labels(labels):
    result = report(labels, quiet=True)
    page = read(result.page)
    assert_offline(page, labels)
    assert result.values["metric"] == "acc"
    assert result.values["score"]["value"] == pytest.approx(evaluate(labels, quiet=True, write=False).accuracy)
    assert "accuracy, %" in page.chapter("classes")
    assert "Predicted labels beside the true ones" in page.chapter("images")


def test_the_stages_of_a_run_are_drawn_together(staged):
    page = read(report(staged, quiet=True).page)
    assert_offline(page, staged)
    assert "each stage" in page.chapter("curves")
    assert "second" in page.chapter("curves")


def test_an_unfinished_run_is_reported_as_far_as_it_got(fix, tmp_path):
    run = copied(fix, tmp_path / "run", "model.*", "metrics.jsonl", "twin")
    result = report(run, quiet=True)
    page = read(result.page)
    assert_offline(page, run)
    assert "no model yet" in page.chapter("result")
    assert "Nothing is recorded yet" in page.chapter("curves")


def test_the_command_and_its_python_twin(fix, tmp_path):
    done = CliRunner().invoke(app, ["report", str(fix), "--out", str(tmp_path / "page.html"), "--json", "-q"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["page"] == str(tmp_path / "page.html")
    result = halfmask.report(fix, out=tmp_path, quiet=True)
    assert result.page == tmp_path / "report.html"
    assert json.loads(done.stdout)["score"] == result.to_dict()["score"]


@pytest.mark.parametrize(
    ("arguments", "code", "mending"),
    [
        (["NOWHERE"], 3, "halfmask train --out"),
        (["RUN", "--twin", "NOWHERE"], 3, "halfmask train --out"),
        (["RUN", "--part", "vall"], 2, "val, test, train, all"),
        (["RUN", "RUN", "--twin", "RUN"], 2, "a run of its own"),
        (["RUN", "--device", "quantum"], 2, "cpu"),
    ],
)
def test_mistakes_end_in_one_line_with_a_cure(fix, tmp_path, arguments, code, mending):
    named = [str(fix) if word == "RUN" else str(tmp_path / "no") if word == "NOWHERE" else word for word in arguments]
    done = CliRunner().invoke(app, ["report", *named, "--out", str(tmp_path), "-q"])
    assert done.exit_code == code, done.output
    assert mending in done.stderr
    assert "Traceback" not in done.stderr


def test_errors_of_the_python_twin_are_typed(fix, labels, tmp_path):
    with pytest.raises(RecipeError, match="Name its folder"):
        report(quiet=True)
    with pytest.raises(CheckpointError, match="other classes"):
        report(fix, twin=labels, quiet=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be written"):
        report(fix, out=tmp_path / "file" / "page.html", quiet=True)
