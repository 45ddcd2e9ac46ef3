"""Masks that number objects are no classes; masks of classes are not taken for them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfmask.data.check.check import check
from halfmask.data.datasets.folder import Folder
from halfmask.errors import DataError
from tests.data.trees import image

SIZE = (40, 40)


def cells(root: Path, counts: tuple[int, ...], halves: bool = False) -> Path:
    """Masks with so many squares each, numbered from 1; with `halves`, each number is two squares."""
    (root / "masks").mkdir(parents=True)
    for number, count in enumerate(counts):
        image(root / f"images/{number}.png", SIZE, seed=number)
        ids = np.zeros(SIZE, np.uint8)
        for one in range(count):
            row, column = divmod(one, 4)
            ids[row * 10 : row * 10 + 6, column * 10 : column * 10 + 6] = one + 1
            if halves:
                ids[30 + row : 31 + row, column * 10 : column * 10 + 6] = one + 1
        Image.fromarray(ids).save(root / f"masks/{number}.png")
    return root


def test_numbered_objects_are_offered_as_background_and_object(tmp_path: Path) -> None:
    cells(tmp_path, (2, 5, 3, 9))
    with pytest.raises(DataError, match=r"number single objects, 1 to 9, anew in each image.*--fix") as caught:
        _ = Folder(tmp_path).task
    assert caught.value.code == "H217"
    report = check(tmp_path, fix=True, workers=1)
    assert report.usable
    data = Folder(tmp_path)
    assert data.task.classes == ("background", "object")
    assert np.bincount(data.read_target("images/3.png").ravel()).tolist() == [1600 - 9 * 36, 9 * 36]


@pytest.mark.parametrize(("counts", "halves"), [((3, 3, 3, 3), False), ((1, 2, 3), False), ((2, 5, 3, 8), True)])
def test_classes_are_not_taken_for_objects(counts: tuple[int, ...], halves: bool, tmp_path: Path) -> None:
    assert Folder(cells(tmp_path, counts, halves)).task.n_classes == max(counts) + 1


def test_numbers_that_run_on_from_mask_to_mask_count_objects(tmp_path: Path) -> None:
    cells(tmp_path, (3, 3, 3, 3))
    for number in range(4):
        path = tmp_path / f"masks/{number}.png"
        ids = np.array(Image.open(path))
        Image.fromarray(np.where(ids > 0, ids + 3 * number, 0).astype(np.uint8)).save(path)
    with pytest.raises(DataError, match="number single objects, 1 to 12"):
        _ = Folder(tmp_path).task


def test_few_objects_may_have_been_removed(tmp_path: Path) -> None:
    cells(tmp_path, (11, 12, 5, 13))
    path = tmp_path / "masks/3.png"
    ids = np.array(Image.open(path))
    ids[ids == 7] = 0
    Image.fromarray(ids).save(path)
    with pytest.raises(DataError, match="number single objects, 1 to 13"):
        _ = Folder(tmp_path).task
