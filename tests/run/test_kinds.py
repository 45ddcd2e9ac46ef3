"""Change detection and classification from recipe to result: real image pairs, scikit-learn's digits, command line."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from halfmask.data.datasets.change_folder import ChangeFolder
from halfmask.errors import CheckpointError, DataError, RecipeError
from halfmask.infer.bundle import load_bundle
from halfmask.infer.evaluate import evaluate
from halfmask.infer.inference import probabilities
from halfmask.infer.predict.predict import predict
from halfmask.models.model import ChangeSegmenter, Classifier
from halfmask.recipe.read import Recipe
from halfmask.run.fit import fit
from tests import processes
from tests.data import trees
from tests.run import tiny

# Each method keeps the contract on these kinds of data by default; one of them goes all the way from recipe to result.
_MORE = ("supervised", "unimatch", "unimatch_v2")
METHODS = ["fixmatch", *(pytest.param(name, marks=pytest.mark.slow) for name in _MORE)]


def few_pairs(source: Path, root: Path, *, train_pairs: int = 6, test_pairs: int = 2) -> Path:
    """Copy some pairs of one scene per part, at a third of their size."""
    data = ChangeFolder(source)
    for part, count in (("train", train_pairs), ("val", 2), ("test", test_pairs)):
        for id in data.ids(part)[:count]:
            before, after = data.image_files(id)
            for path in (before, after, data.mask_path(id)):
                target = root / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                image = Image.open(path)
                image.resize((image.width // 3, image.height // 3), Image.Resampling.NEAREST).save(target)
    return root


def digits(root: Path, *, train_images: int = 160, test_images: int = 60) -> Path:
    """Write digits of scikit-learn as 32x32 gray images, one folder per class."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    for part, start, count in (("train", 0, train_images), ("test", 1000, test_images)):
        for number in range(start, start + count):
            path = root / part / str(bunch.target[number]) / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = Image.fromarray((bunch.images[number] * (255 / 16)).astype(np.uint8))
            pixels.resize((32, 32), Image.Resampling.BILINEAR).save(path)
    return root


def change_recipe(root: Path, method: str, *overrides: str) -> Recipe:
    return tiny.recipe(root, "data.dataset=change_folder", "data.labeled=3", "data.crop=32", *overrides, method=method)


def label_recipe(root: Path, method: str, *overrides: str) -> Recipe:
    small = "model.encoder={name: resnet, depth: 18, stem: plain, output_stride: 32, width: 8}"
    batches = ("data.batch.labeled=16", "data.batch.unlabeled=16")
    keys = ("data.dataset=class_folder", "data.flip=0", "data.scale=[0.9, 1.1]", "optim.lr=3e-3", *batches)
    return tiny.recipe(root, small, "model.decoder=pool", *keys, *overrides, method=method)


@pytest.fixture(scope="module")
def pairs(shared, tmp_path_factory) -> Path:
    return few_pairs(shared / "data/change_sbi", tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def numbers(tmp_path_factory) -> Path:
    pytest.importorskip("sklearn", reason="scikit-learn holds the images")
    return digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def change_run(pairs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "change"
    result = fit(change_recipe(pairs, "fixmatch"), out, quiet=True)
    assert result.metric == "changed_iou"
    assert set(result.best) == {"teacher", "student"}
    return out


@pytest.fixture(scope="module")
def label_run(numbers, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "labels"
    # A run of a few steps needs a quick teacher.
    overrides = ("data.labeled=100", "method.ema_decay=0.8", "run.steps=60", "run.eval_every=60")
    result = fit(label_recipe(numbers, "fixmatch", *overrides), out, quiet=True)
    assert result.metric == "acc"
    return out


# --- image pairs ------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("method", METHODS)
def test_methods_train_on_real_pairs(method, pairs, tmp_path):
    fit(
        change_recipe(pairs, method, "run.steps=4", "run.eval_every=2", "run.log_every=1"), tmp_path / "run", quiet=True
    )
    bundle = load_bundle(tmp_path / "run")
    assert isinstance(bundle.model, ChangeSegmenter)
    assert all(value.isfinite().all() for value in bundle.model.state_dict().values())
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [record["train/loss"] for record in records if "train/loss" in record]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
    scored = [record for record in records if "val/changed_iou" in record]
    assert [record["step"] for record in scored] == [2, 4]
    assert 0 <= scored[-1]["val/changed_iou"] <= scored[-1]["val/f1"] <= 1


@pytest.mark.shared
def test_a_run_on_pairs_is_evaluated_by_its_counts(change_run, pairs):
    scores = evaluate(change_run, part="test", quiet=True)
    bundle = load_bundle(change_run)
    data, hits, union, right, known = ChangeFolder(pairs), 0, 0, 0, 0
    for id in data.ids("test"):
        pair = torch.from_numpy(np.moveaxis(data.read_image(id), -1, -3).copy())[None] / 255
        guess = probabilities(bundle.model, pair, bundle.protocol, bundle.crop).argmax(1)[0].numpy()
        target = data.read_target(id)
        seen = target != 255
        hits += int(((guess == 1) & (target == 1)).sum())
        union += int((((guess == 1) | (target == 1)) & seen).sum())
        right += int(((guess == target) & seen).sum())
        known += int(seen.sum())
    metrics = json.loads((change_run / "metrics.json").read_text())["metrics"]
    assert metrics["test/changed_iou"] == pytest.approx(hits / union)
    assert metrics["test/f1"] == pytest.approx(2 * hits / (hits + union))
    assert metrics["test/acc"] == pytest.approx(right / known)
    assert scores.main == ("changed_iou", pytest.approx(hits / union))


@pytest.mark.shared
def test_masks_of_pairs_are_predicted_from_a_and_b_alone(change_run, pairs, tmp_path):
    inputs = tmp_path / "in"
    for folder in ("A", "B"):
        shutil.copytree(pairs / folder / "test", inputs / folder)
    out = tmp_path / "out"
    assert predict(change_run, inputs, out, overlay=True, probabilities=True, quiet=True) == 2
    after = sorted((inputs / "B").iterdir())
    for path in after:
        mask = Image.open(out / f"{path.stem}.png")
        assert mask.size == Image.open(path).size
        assert set(np.unique(np.asarray(mask))) <= {0, 1}
        shares = np.load(out / "probabilities" / f"{path.stem}.npy").astype(np.float32)
        assert shares.shape == (2, *np.asarray(mask).shape)
        assert (out / "overlays" / f"{path.stem}.jpg").exists()
    assert predict(change_run, inputs, out, quiet=True) == 0
    with pytest.raises(DataError, match=r"two dates.*A/ and B/"):
        predict(change_run, after[0], out, quiet=True)
    with pytest.raises(RecipeError, match="holds the images themselves"):
        predict(change_run, inputs, inputs, quiet=True)
    trees.image(inputs / "A" / "hall.png", (9, 9))
    trees.image(inputs / "B" / "hall_1.png", (9, 8))
    with pytest.raises(DataError, match=r"1 of 3 images(.|\n)*both dates must show"):
        predict(change_run, inputs, tmp_path / "other", quiet=True)
    assert len(list((tmp_path / "other").glob("*.png"))) == 2


@pytest.mark.shared
def test_a_model_of_pairs_is_not_evaluated_on_single_images(change_run, tmp_path):
    with pytest.raises(CheckpointError, match="trained for change"):
        evaluate(change_run, data=tiny.write_dataset(tmp_path), overrides=["data.dataset=folder"], part="all")


# --- labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["supervised", "fixmatch", "unimatch_v2"])
def test_methods_train_on_labels(method, numbers, tmp_path):
    fit(
        label_recipe(numbers, method, "data.labeled=20", "run.steps=3", "run.log_every=1"), tmp_path / "run", quiet=True
    )
    bundle = load_bundle(tmp_path / "run")
    assert isinstance(bundle.model, Classifier)
    assert bundle.task.classes == tuple("0123456789")
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "train/loss" in record] == [1, 2, 3]
    assert all(name in records[-1] for name in ("val/acc", "val/f1", "val/class_acc"))
    assert "val/miou" not in records[-1]


def test_digits_are_learned_far_beyond_chance(label_run):
    scores = evaluate(label_run, part="test", quiet=True)
    assert scores.accuracy > 0.35  # chance: 0.1
    metrics = json.loads((label_run / "metrics.json").read_text())["metrics"]
    assert metrics["test/acc"] == scores.accuracy
    assert metrics["test/acc/7"] == scores.recall[7]
    assert sum(scores.support) == 60


def test_labels_are_written_as_tables_and_completed_by_a_second_call(label_run, numbers, tmp_path):
    inputs = tmp_path / "in"
    shutil.copytree(numbers / "test", inputs)
    out = tmp_path / "out"
    assert predict(label_run, inputs, out, limit=25, quiet=True) == 25
    assert predict(label_run, inputs, out, quiet=True) == 35
    assert predict(label_run, inputs, out, quiet=True) == 0
    rows = list(csv.DictReader((out / "labels.csv").open()))
    content = json.loads((out / "labels.json").read_text())
    assert [row["image"] for row in rows] == sorted(
        path.relative_to(inputs).as_posix() for path in inputs.rglob("*.png")
    )
    right = [row["label"] == row["image"].partition("/")[0] for row in rows]
    assert np.mean(right) == pytest.approx(evaluate(label_run, part="test", write=False, quiet=True).accuracy)
    assert {row["image"]: row["label"] for row in rows} == {
        name: row["label"] for name, row in content["images"].items()
    }
    # Probabilities were not asked for before: now every image is labeled again.
    assert predict(label_run, inputs, out, probabilities=True, quiet=True) == 60
    first = next(iter(json.loads((out / "labels.json").read_text())["images"].values()))
    assert len(first["probabilities"]) == 10
    assert max(first["probabilities"]) == first["confidence"]


def test_a_broken_image_costs_only_its_own_label(label_run, numbers, tmp_path):
    inputs = tmp_path / "in"
    shutil.copytree(numbers / "test/3", inputs)
    (inputs / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of \d+ images could not be read(.|\n)*\[H201\].*bad\.png"):
        predict(label_run, inputs, tmp_path / "out", quiet=True)
    rows = list(csv.DictReader((tmp_path / "out/labels.csv").open()))
    assert len(rows) == len(list(inputs.glob("*.png"))) - 1


def test_what_makes_no_sense_for_labels_is_refused(label_run, numbers, tmp_path):
    with pytest.raises(RecipeError, match="leave out --overlay"):
        predict(label_run, numbers / "test", tmp_path, overlay=True, quiet=True)
    with pytest.raises(RecipeError, match=r"eval\.mode=slide cuts windows"):
        fit(label_recipe(numbers, "supervised", "eval.mode=slide"), tmp_path / "a", quiet=True)
    with pytest.raises(RecipeError, match="does not work for classification"):
        fit(label_recipe(numbers, "unimatch"), tmp_path / "b", quiet=True)
    with pytest.raises(RecipeError, match=r"model\.decoder\.name=pool"):
        fit(label_recipe(numbers, "supervised", "model.name=smp"), tmp_path / "c", quiet=True)


# --- the command line -------------------------------------------------------------------------------------------


def halfmask(*arguments: object) -> str:
    done = processes.run(Path.cwd(), *map(str, arguments))
    assert done.code == 0, done.err
    return done.out


QUICK = ("run.steps=2", "run.accelerator=cpu", "run.logger=none", "data.workers=0", "--quiet")


@pytest.mark.slow
@pytest.mark.shared
def test_the_command_line_goes_from_pairs_to_masks(pairs, tmp_path):
    run = tmp_path / "run"
    small = (
        "data.crop=48",
        "data.labeled=3",
        "data.batch.labeled=2",
        "data.batch.unlabeled=2",
        "model.encoder.width=8",
    )
    trained = halfmask("train", "fixmatch/change_folder", "--data", pairs, "--out", run, *small, *QUICK)
    assert "val changed IoU at the end" in trained
    table = halfmask("evaluate", run, "--part", "test", "--quiet")
    assert "changed IoU" in table
    assert "overall accuracy" in table
    scores = json.loads(halfmask("evaluate", run, "--part", "test", "--quiet", "--json"))
    assert {"test/changed_iou", "test/f1", "test/acc"} <= scores.keys()
    assert halfmask("predict", run, "--input", pairs, "--out", tmp_path / "masks", "--quiet").endswith("10 masks\n")


@pytest.mark.slow
def test_the_command_line_goes_from_class_folders_to_labels(numbers, tmp_path):
    run = tmp_path / "run"
    small = (
        "data.crop=32",
        "data.labeled=30",
        "data.batch.labeled=8",
        "data.batch.unlabeled=8",
        "model.encoder.width=8",
    )
    trained = halfmask("train", "fixmatch/classify_folder", "--data", numbers, "--out", run, *small, *QUICK)
    assert "best teacher val accuracy" in trained
    assert "accuracy" in halfmask("evaluate", run, "--part", "test", "--quiet")
    done = halfmask("predict", run, "--input", numbers / "test", "--out", tmp_path / "out", "--quiet")
    assert done.endswith("60 labels\n")
    assert (tmp_path / "out/labels.csv").read_text().startswith("image,label,confidence\n")
