"""Bad input, given to the command as a user would: one clear error with its cure, the right exit code, no traceback."""

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml
from PIL import Image

from halfmask.cli.app import main
from halfmask.codes import CODES
from halfmask.run.checkpoint import read_checkpoint
from halfmask.run.fit import fit
from tests.processes import Started, run
from tests.run.tiny import recipe, write_dataset


@dataclass(frozen=True)
class Place:
    """A folder with `data/` (ten images, six masks), `recipe.yaml` and, where asked for, a finished `run/`."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    def images(self) -> list[Path]:
        return sorted((self.data / "images").glob("*.png"))

    def masks(self) -> list[Path]:
        return sorted((self.data / "masks").glob("*.png"))

    def write(self, name: str, *lines: str) -> None:
        (self.root / name).write_text("".join(f"{line}\n" for line in lines))


@dataclass(frozen=True)
class Case:
    """A command, what it exits with, what its message must say (parts apart by ` | `), and what is spoiled before.

    The first part is the code.
    """

    code: int
    command: str
    says: str
    spoil: Callable[[Place], object] = lambda place: None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def save(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(path)


def paint(place: Place, number: int, value: int) -> None:
    target = np.array(Image.open(place.masks()[number]))
    target[:3, :3] = value
    save(place.masks()[number], target)


def to_jpeg(place: Place) -> None:
    path = place.images()[8]
    Image.open(path).save(path.with_suffix(".jpg"))
    path.unlink()
    cut(path.with_suffix(".jpg"))


def four_classes(place: Place) -> None:
    shutil.copytree(place.data, place.root / "four")
    (place.root / "four/classes.txt").write_text("background\ndisc\nbar\nring\n")


def other_classes_in_checkpoint(place: Place) -> None:
    (place.data / "classes.txt").write_text("background\ndisc\nbar\nring\n")


def edit_recipe(place: Place, **sections: dict[str, object]) -> None:
    path = place.root / "recipe.yaml"
    content = yaml.safe_load(path.read_text())
    for name, keys in sections.items():
        content.setdefault(name, {}).update(keys)
    path.write_text(yaml.safe_dump(content))


def empty(place: Place) -> None:
    shutil.rmtree(place.data)
    place.data.mkdir()


def spoil_values(place: Place) -> None:
    edit_recipe(place, data={"flip": 2, "crop": "big"})


def write_latin1(place: Place) -> None:
    (place.data / "list.txt").write_bytes("images/stra\u00dfe.png\n".encode("latin1"))


def binary_masks(place: Place) -> None:
    for path in place.masks():
        save(path, np.array(Image.open(path)).clip(0, 1) * 255)
    (place.data / "classes.txt").write_text("background\ndisc\n")


def overlapping_lists(place: Place) -> None:
    place.write("data/unlabeled.txt", "images/shape_05.png", "images/shape_09.png")
    place.write("data/val.txt", "images/shape_05.png")


def zipped(place: Place) -> None:
    shutil.make_archive(str(place.root / "photos"), "zip", place.data)


def foreign_checkpoint(place: Place) -> None:
    torch.save({"state_dict": {"conv.weight": torch.zeros(3)}}, place.root / "run/checkpoints/last.ckpt")


def tampered_weights(place: Place) -> None:
    path = place.root / "run/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit_meta(place: Place, **keys: object) -> None:
    path = place.root / "run/model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def other_labels(place: Place) -> None:
    place.masks()[0].unlink()


def deep_image(place: Place) -> None:
    save(place.root / "deep.png", np.full((40, 40), 999, np.uint16))


def nan_geotiff(place: Place) -> None:
    profile = {"driver": "GTiff", "count": 3, "height": 9, "width": 9, "dtype": "float32", "nodata": np.nan}
    where = {"crs": "EPSG:32640", "transform": rasterio.Affine(1, 0, 330_000, 0, -1, 2_780_000)}
    with rasterio.open(place.root / "field.tif", "w", **profile, **where) as out:
        out.write(np.full((3, 9, 9), np.nan, np.float32))


def resize_mask(place: Place) -> None:
    save(place.masks()[2], np.zeros((9, 9), np.uint8))


def same_stem(place: Place) -> None:
    shutil.copy(place.images()[0], place.images()[0].with_suffix(".jpg"))


TRY = "train recipe.yaml --out out --dry-run"
PLAN = "train --data data --out out"
SMALL = "data.crop=32 data.batch.labeled=2 data.batch.unlabeled=2"
CASES = {
    "missing folder": Case(3, TRY, "H208 | data: no such folder | --data DIR", lambda place: shutil.rmtree(place.data)),
    "empty folder": Case(3, TRY, "H208 | no images found | into images/", empty),
    "corrupt jpeg": Case(3, TRY, "H201 | shape_08.jpg | truncated | Copy it again", to_jpeg),
    "empty mask": Case(3, TRY, "H201 | shape_00.png | 0 bytes", lambda place: place.masks()[0].write_bytes(b"")),
    "mask of another size": Case(3, TRY, "H202 | 9x9 | 56x48 | resize_masks=true", resize_mask),
    "unknown value": Case(
        3, TRY, "H203 | 7 (9 px) | Known: 0 to 2 | map='{7: 255}'", lambda place: paint(place, 1, 7)
    ),
    "masks of 0 and 255": Case(3, TRY, "H204 | binary: true | map: {255: 255}", binary_masks),
    "duplicate stems": Case(3, TRY, "H208 | same stem | rename or remove", same_stem),
    "absent files in a list": Case(
        3, f"{TRY} data.labeled=list.txt", "H211 | list.txt | images/absent.png | 1 of 2",
        lambda place: place.write("data/list.txt", "images/shape_00.png", "images/absent.png"),
    ),
    "list of another encoding": Case(3, f"{TRY} data.labeled=list.txt", "H211 | not UTF-8 | iconv", write_latin1),
    "unknown split": Case(3, f"{TRY} data.split=92", "H211 | '92' | not found | data.labeled=COUNT"),
    "no labeled image": Case(
        3, TRY, "H210 | no labeled image | masks/", lambda place: shutil.rmtree(place.data / "masks")
    ),
    "more labels than masks": Case(3, f"{TRY} --labeled 9", "H210 | only 6 images have a mask | data.labeled=6"),
    "zero labels wanted": Case(2, f"{TRY} --labeled 0", "H303 | 1 problem | data.labeled=0 | int in [1, inf)"),
    "unlabeled overlaps validation": Case(
        3, f"{TRY} data.unlabeled=unlabeled.txt data.val=val.txt",
        "H211 | both unlabeled and for validation (1): images/shape_05.png", overlapping_lists,
    ),
    "recipe typo": Case(
        2, TRY, "H303 | recipe.yaml | data.crp | Did you mean `crop`",
        lambda place: edit_recipe(place, data={"crp": 32}),
    ),
    "values out of range": Case(2, TRY, "H303 | 2 problems | float in [0, 1] | data.crop='big'", spoil_values),
    "no yaml": Case(
        2, TRY, "H304 | recipe.yaml | not valid YAML", lambda place: place.write("recipe.yaml", "data: [1")
    ),
    "missing recipe": Case(2, "train nothing.yaml --out out", "H304 | nothing.yaml | halfmask list recipes"),
    "batch of one": Case(2, f"{TRY} data.batch.unlabeled=1", "H301 | batch normalization | data.batch.unlabeled to 2"),
    "logger not installed": Case(5, f"{TRY} run.logger=mlflow", "H213 | pip install mlflow | run.logger=none"),
    "run folder not writable": Case(3, "train recipe.yaml --out /proc/x --dry-run", "H502 | /proc/x | writ | --out"),
    "run folder below a file": Case(3, "train recipe.yaml --out recipe.yaml/run", "H502 | is a file | --out"),
    "run folder in use": Case(3, "train recipe.yaml --out .", "H408 | not empty | --overwrite"),
    "split not writable": Case(3, "split --data data --count 2 --out /proc/x", "H502 | /proc/x | writ | --out"),
    "demo not writable": Case(3, "demo --out /proc/x", "H502 | /proc/x | writ | --out"),
    "zip instead of a folder": Case(3, "train fixmatch/folder --data photos.zip --out out", "H208 | Unpack", zipped),
    "time that is none": Case(2, f"{PLAN} --time soon", "H303 | --time soon | 30m"),
    "memory that is none": Case(2, f"{PLAN} --memory much", "H303 | --memory much | 8GB"),
    "no time": Case(2, f"{PLAN} --time 0m", "H303 | --time 0m | 30m"),
    "memory without a unit": Case(2, f"{PLAN} --memory 8", "H303 | --memory 8: name the unit | 8GB"),
    "no memory": Case(2, f"{PLAN} --memory 0", "H303 | --memory 0 | 8GB"),
    "endless memory": Case(2, f"{PLAN} --memory infGB", "H303 | --memory infGB | 8GB"),
    "less time than any plan takes": Case(2, f"{PLAN} {SMALL} --time 1s", "H305 | 1.0 s is too short | at least"),
    "less memory than any plan takes": Case(2, f"{PLAN} {SMALL} --memory 10MB", "H305 | is too little | at least"),
    "recipe and a budget": Case(2, f"{TRY} --time 30m", "H301 | --time | leave out recipe.yaml"),
    "a run of an unknown method": Case(2, f"{TRY} --method fixmach", "H303 | Did you mean `fixmatch`"),
    "crop the network cannot take": Case(
        2, f"{TRY} model.encoder.name=dinov2 model.encoder.weights=null data.crop=50", "H302 | 14 | data.crop=42 or 56"
    ),
    "resume of nothing": Case(3, "train --resume nowhere", "H407 | nowhere | not a run folder"),
}  # fmt: skip

WITH_RUN = {
    "checkpoint of another class count": Case(
        3, "train --resume run",
        "H405 | 3 classes (background, disc, bar), | has 4 (background, disc, bar, ring) | new run",
        other_classes_in_checkpoint,
    ),
    "model of another class count": Case(
        3, "evaluate run --data four --part train", "H405 | predicts 3 classes | have 4 | --data", four_classes
    ),
    "damaged checkpoints": Case(
        3, "train --resume run", "H402 | last.ckpt | damaged | another checkpoint",
        lambda place: [cut(path) for path in (place.root / "run/checkpoints").iterdir()],
    ),
    "damaged weights": Case(
        3, "evaluate run", "H402 | model.safetensors | damaged | Copy it again",
        lambda place: cut(place.root / "run/model.safetensors"),
    ),
    "foreign checkpoint": Case(
        3, "train --resume run", "H403 | last.ckpt | not a halfmask checkpoint | halfmask import", foreign_checkpoint
    ),
    "tampered weights": Case(
        3, "predict run --input data/images --out masks", "H406 | SHA-256 differs | Copy both files", tampered_weights
    ),
    "bundle of a later format": Case(
        3, "evaluate run", "H404 | bundle format 9 | install that version",
        lambda place: edit_meta(place, format_version=9),
    ),
    "bundle of something else": Case(
        3, "evaluate run", "H403 | not a halfmask bundle", lambda place: edit_meta(place, format="other")
    ),
    "bundle without classes": Case(
        3, "evaluate run", "H402 | model.json | incomplete",
        lambda place: edit_meta(place, task={"kind": "segmentation"}),
    ),
    "masks that went since the run began": Case(
        3, "train --resume run", "H405 | list | differs | new run", other_labels
    ),
    "deep image for a model of 8 bits": Case(
        3, "predict run --input deep.png --out masks", "H207 | uint16 | trained on 3 of 8 bits | Convert",
        deep_image,
    ),
    "GeoTIFF of nothing but NaN": Case(
        3, "predict run --input field.tif --out masks", "H207 | float32 | trained on 3 of 8 bits", nan_geotiff
    ),
    "HEIC to predict": Case(
        3, "predict run --input phone.heic --out masks", "H201 | phone.heic | cannot be decoded",
        lambda place: (place.root / "phone.heic").write_bytes(b"ftypheic"),
    ),
    "array without pixels": Case(
        3, "predict run --input none.npy --out masks", "H201 | none.npy | without pixels",
        lambda place: np.save(place.root / "none.npy", np.zeros((0, 9, 3), np.uint8)),
    ),
    "format to export to that is none": Case(2, "export run --format onxx", "H303 | unknown | Did you mean `onnx`"),
    "device that is not there": Case(2, "evaluate run --device cuda:99", "H503 | cuda:99 | this machine has"),
    "import of a file of another program": Case(
        3, "import run/checkpoints/last.ckpt --out bundle", "H403 | none of the formats | conv.weight",
        foreign_checkpoint,
    ),
    "import of a cut file": Case(
        3, "import run/checkpoints/last.ckpt --out bundle", "H402 | Is the download complete",
        lambda place: cut(place.root / "run/checkpoints/last.ckpt"),
    ),
    "predictions among the images": Case(
        2, "predict run --input data --out data", "H301 | --out data is the input folder | Choose another"
    ),
    "no run to report": Case(3, "report data", "H407 | not a run folder | --out"),
    "no run to suggest from": Case(3, "suggest data --n 2 --out next", "H407 | no model.json"),
    "nothing to predict": Case(
        3, "predict run --input nowhere --out masks", "H201 | nowhere does not exist | Give a folder"
    ),
    "one corrupt image to predict": Case(
        3, "predict run --input data/images --out masks", "H201 | 1 of 10 images | shape_00.png",
        lambda place: cut(place.images()[0]),
    ),
    "predictions not writable": Case(
        3, "predict run --input data/images --out /proc/x", "H502 | /proc/x | writ | --out"
    ),
}  # fmt: skip


def check(place: Place, case: Case) -> None:
    case.spoil(place)
    done = run(place.root, *case.command.split())
    assert done.code == case.code, done
    assert "Traceback" not in done.out + done.err
    assert done.out == ""
    assert [text for text in case.says.split(" | ") if text not in done.err] == [], done.err
    (head,) = [line for line in done.err.splitlines() if "Error" in line.partition(":")[0]]
    code = re.match(r"\w+Error\[(H\d{3})\]: ", head)
    assert code is not None, done.err
    assert code[1] in CODES
    assert case.says.startswith(code[1]), done.err


@pytest.fixture
def place(tmp_path: Path) -> Place:
    write_dataset(tmp_path / "data")
    made = recipe(Path("data"), "run.steps=2", "run.eval_every=2")
    (tmp_path / "recipe.yaml").write_text(made.to_yaml())
    return Place(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    made = recipe(write_dataset(root / "data"), "run.steps=2", "run.eval_every=2")
    fit(made, root / "run", quiet=True)
    return root / "run"


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_error_with_its_cure(name: str, place: Place) -> None:
    check(place, CASES[name])


@pytest.mark.parametrize("name", WITH_RUN)
def test_bad_input_to_a_finished_run_is_one_error_with_its_cure(name: str, place: Place, finished: Path) -> None:
    shutil.copytree(finished, place.root / "run")
    stored = place.root / "run/recipe.yaml"
    stored.write_text(stored.read_text().replace(str(finished.parent / "data"), str(place.data)))
    check(place, WITH_RUN[name])


def train_on_a_full_disk(folder: Path) -> None:
    """Run the command; the second write of the last checkpoint finds no space."""
    real, calls = torch.save, []

    def full(content: object, path: Any, *args: Any, **kwargs: Any) -> None:
        calls.append(path)
        if "last" in str(path) and sum("last" in str(one) for one in calls) == 2:
            Path(path).write_bytes(b"half of a checkp")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(content, path, *args, **kwargs)

    torch.save = full  # type: ignore[assignment]
    os.chdir(folder)
    sys.argv = ["halfmask", "train", "recipe.yaml", "--out", "run"]
    main()


@pytest.mark.slow
def test_a_full_disk_while_saving_leaves_the_earlier_checkpoint_and_the_run_continues(place: Place) -> None:
    edit_recipe(place, run={"steps": 4, "eval_every": 2})
    done = Started(train_on_a_full_disk, place.root).wait()
    assert done.code == 3, done.err
    assert "Traceback" not in done.err
    assert "disk is full" in done.err
    assert "Free some space" in done.err
    assert read_checkpoint(place.root / "run/checkpoints/last.ckpt")["halfmask"]["step"] == 2
    again = run(place.root, "train", "--resume", "run", "--json")
    assert again.code == 0, again.err
    assert '"steps": 4' in again.out
