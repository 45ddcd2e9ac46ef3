"""`data.cache=jpeg95`: lossy images, masks as they are, one entry per state of a file, a disk that fills up."""

import multiprocessing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from halfmask.data.contract import Dataset
from halfmask.data.loading import cache as module
from halfmask.data.loading.cache import cached
from halfmask.data.splits.split import open_dataset
from halfmask.errors import DataError, RecipeError
from halfmask.recipe.sections import DataRecipe
from halfmask.run.fit import fit
from tests.run.tiny import recipe, write_dataset


def smooth(height: int = 60, width: int = 90) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    bands = [rows * 4 % 256, 255 - columns * 2, 128 + 60 * np.sin(columns / 9 + rows / 7)]
    return np.stack(bands, axis=-1).astype(np.uint8)


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    root = write_dataset(tmp_path / "data", images=3, masks=2)
    Image.fromarray(smooth()).save(root / "images" / "smooth.png")
    Image.fromarray(smooth()).save(root / "images" / "photo.jpg", quality=60)
    return open_dataset(DataRecipe(root=str(root)))


def id_of(data: Dataset, stem: str) -> str:
    return next(id for id in data.ids("train") + data.ids("unlabeled") if stem in id)


def test_images_are_kept_as_jpeg_and_read_from_there(data: Dataset, tmp_path: Path) -> None:
    id, folder = id_of(data, "smooth"), tmp_path / "cache"
    first = cached(data.read_image, data, folder, form="jpeg95")(id)
    (kept,) = folder.rglob("*.jpg")
    with Image.open(kept) as picture:
        np.testing.assert_array_equal(np.asarray(picture), first)  # from the first time on, not from the second
    difference = np.abs(first.astype(int) - data.read_image(id))
    # Level jumps of the first band ring a little; elsewhere quality 95 stays within a few levels.
    assert 0 < difference.mean() < 1.5
    assert kept.stat().st_size < data.read_image(id).nbytes

    def refuse(id: str) -> np.ndarray:
        raise AssertionError("decoded again")

    np.testing.assert_array_equal(cached(refuse, data, folder, form="jpeg95")(id), first)


def test_masks_are_never_lossy_and_jpeg_files_are_read_as_they_are(data: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    read = cached(data.read_target, data, folder, masks=True, form="jpeg95")
    for _ in range(2):
        np.testing.assert_array_equal(read(id_of(data, "shape_00")), data.read_target(id_of(data, "shape_00")))
    photo = id_of(data, "photo")
    np.testing.assert_array_equal(cached(data.read_image, data, folder, form="jpeg95")(photo), data.read_image(photo))
    assert [path.suffix for path in folder.rglob("*.*")] == [".npy"]


def test_an_edited_file_is_compressed_anew(data: Dataset, tmp_path: Path) -> None:
    id, read = id_of(data, "smooth"), cached(data.read_image, data, tmp_path / "cache", form="jpeg95")
    read(id)
    Image.fromarray(np.full((60, 90, 3), 77, dtype=np.uint8)).save(data.root / "images" / "smooth.png")
    assert (np.abs(read(id).astype(int) - 77) <= 1).all()
    assert len(list((tmp_path / "cache").rglob("*.jpg"))) == 2


def test_both_dates_of_a_pair_are_kept(tmp_path: Path) -> None:
    for folder, picture in (("A", smooth()), ("B", smooth()[::-1])):
        (tmp_path / "pairs" / folder).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(np.ascontiguousarray(picture)).save(tmp_path / "pairs" / folder / f"{number}.png")
    (tmp_path / "pairs" / "label").mkdir()
    for number in range(3):
        Image.fromarray(np.zeros((60, 90), dtype=np.uint8)).save(tmp_path / "pairs" / "label" / f"{number}.png")
    data = open_dataset(DataRecipe.model_validate({"root": str(tmp_path / "pairs"), "dataset": "change_folder"}))
    read = cached(data.read_image, data, tmp_path / "cache", form="jpeg95")
    id = data.ids("train")[0]
    pair = read(id)
    assert pair.shape == (2, 60, 90, 3)
    assert np.abs(pair.astype(int) - data.read_image(id)).mean() < 1.5
    np.testing.assert_array_equal(read(id), pair)
    assert len(list((tmp_path / "cache").rglob("*.jpg"))) == 2


def _read_all(root: str, folder: str, barrier: "multiprocessing.synchronize.Barrier") -> None:
    data = open_dataset(DataRecipe(root=root))
    read = cached(data.read_image, data, Path(folder), form="jpeg95")
    barrier.wait()
    for id in data.ids("train") * 3:
        read(id)


def test_processes_share_a_folder(data: Dataset, tmp_path: Path) -> None:
    context, folder = multiprocessing.get_context("fork"), tmp_path / "cache"
    barrier = context.Barrier(2)
    both = [context.Process(target=_read_all, args=(str(data.root), str(folder), barrier)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert {path.suffix for path in folder.rglob("*.*")} == {".jpg"}  # no half-written file is left


@pytest.mark.parametrize("form", ["memmap", "jpeg95"])
def test_a_disk_that_is_nearly_full_is_left_alone(data: Dataset, tmp_path: Path, monkeypatch, form) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**29))
    id, folder = id_of(data, "smooth"), tmp_path / "cache"
    with pytest.warns(UserWarning, match="nearly full.*data.cache=none"):
        np.testing.assert_array_equal(cached(data.read_image, data, folder, form=form)(id), data.read_image(id))
    assert not list(folder.rglob("*.*"))


def test_a_full_disk_is_one_clear_error(data: Dataset, tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_compress", full)
    with pytest.raises(DataError, match=r"No space left.*Free some disk space or set data\.cache=none"):
        cached(data.read_image, data, tmp_path / "cache", form="jpeg95")(id_of(data, "smooth"))
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_a_run_trains_from_it_and_is_not_resumed_with_other_pixels(tmp_path: Path) -> None:
    root, out = write_dataset(tmp_path / "data"), tmp_path / "run"
    fit(recipe(root, "data.cache=jpeg95", "run.steps=2", "run.eval_every=2"), out, quiet=True)
    assert list((out / "cache").rglob("*.jpg"))
    with pytest.raises(RecipeError, match="different pixels"):
        fit(None, out, resume=True, overrides=("data.cache=memmap",), quiet=True)
