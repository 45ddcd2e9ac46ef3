"""Scores on images of the training are said to be that."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfmask.data.splits.split import open_dataset
from halfmask.infer.evaluate import evaluate
from halfmask.infer.seen import Seen, seen_in_training
from halfmask.recipe.sections import DataRecipe
from halfmask.run.fit import fit
from tests.run.tiny import recipe, write_dataset


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images, six masks: five teach, one validates."""
    return write_dataset(tmp_path_factory.mktemp("seen") / "shapes")


@pytest.fixture
def lists(shapes: Path, tmp_path: Path) -> Path:
    path = tmp_path / "split.json"
    ids = [f"images/shape_{number:02d}.png" for number in range(10)]
    told = {"labeled": ids[:5], "val": ids[5:6], "unlabeled": ids[6:]}
    path.write_text(json.dumps({name: {"ids": some} for name, some in told.items()}))
    return path


def test_images_of_the_training_are_found_by_their_ids(shapes: Path, lists: Path) -> None:
    data = DataRecipe(root=str(shapes))
    dataset = open_dataset(data)
    ids = list(dataset.ids("train"))[:6]
    told = json.loads(lists.read_text())
    known = {name: entry["ids"] for name, entry in told.items()}
    assert set(known["labeled"]) | set(known["val"]) == set(ids)
    seen = seen_in_training(data, lists, dataset, ids)
    assert seen == Seen(tuple(known["labeled"]), (), 6)
    assert "5 (" in seen.describe()
    assert "[H605]" in seen.describe()
    held_out = seen_in_training(data, lists, dataset, known["val"])
    assert held_out == Seen((), (), 1)
    assert held_out.describe() == ""


@pytest.mark.parametrize("form", ["bytes", "pixels"])
def test_copies_with_other_names_are_found_in_another_folder(
    shapes: Path, lists: Path, tmp_path: Path, form: str
) -> None:
    other = tmp_path / "other"
    for folder in ("images", "masks"):
        (other / folder).mkdir(parents=True)
    (other / "classes.txt").write_text((shapes / "classes.txt").read_text())
    names = {"shape_01": "labeled", "shape_05": "val", "shape_08": "unlabeled"}
    for old, new in names.items():
        content = (shapes / "images" / f"{old}.png").read_bytes()
        target = other / "images" / f"{new}.png"
        target.write_bytes(content)
        if form == "pixels":
            Image.open(target).save(target, compress_level=1)
            assert target.read_bytes() != content
        Image.fromarray(np.zeros((48, 56), np.uint8)).save(other / "masks" / f"{new}.png")
    dataset = open_dataset(DataRecipe(root=str(other)))
    seen = seen_in_training(DataRecipe(root=str(shapes)), lists, dataset, list(dataset.ids("train")))
    assert [Path(id).stem for id in seen.labeled] == ["labeled"]
    assert [Path(id).stem for id in seen.unlabeled] == ["unlabeled"]


def test_without_lists_or_data_of_the_training_nothing_is_known(shapes: Path, lists: Path, tmp_path: Path) -> None:
    data = DataRecipe(root=str(shapes))
    dataset = open_dataset(data)
    assert seen_in_training(data, tmp_path / "none.json", dataset, dataset.ids("train")).describe() == ""
    gone = DataRecipe(root=str(tmp_path / "gone"))
    assert seen_in_training(gone, lists, dataset, dataset.ids("train")).describe() == ""


def test_evaluate_says_so_and_writes_it_down(shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "run"
    fit(recipe(shapes, "run.steps=1"), out, quiet=True)
    with caplog.at_level(logging.WARNING, logger="halfmask"):
        evaluate(out, device="cpu", quiet=True)
        assert "H605" not in caplog.text
        assert json.loads((out / "metrics.json").read_text())["seen_in_training"] == {"labeled": 0, "unlabeled": 0}
        evaluate(out, part="all", device="cpu", quiet=True)
    assert "5 (" in caplog.text
    assert "of 6 images are among those whose masks the model was trained on" in caplog.text
    assert json.loads((out / "metrics.json").read_text())["seen_in_training"] == {"labeled": 5, "unlabeled": 0}
