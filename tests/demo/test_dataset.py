"""The demo's folder is a dataset like any user's, and gives nothing away."""

import numpy as np
import pytest
from PIL import Image

from halfmask.data.datasets.folder import Folder
from halfmask.demo.dataset import Size, write_dataset
from halfmask.demo.scene import CLASSES, PALETTE
from halfmask.errors import DataError

SIZE = Size(labeled=2, unlabeled=3, val=1, test=1, side=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "data"
    write_dataset(path, SIZE, seed=0)
    return path


def test_it_opens_as_a_folder_dataset_with_names_and_colors(folder):
    dataset = Folder(folder)
    assert dataset.task.classes == CLASSES
    assert dataset.task.palette == PALETTE
    assert [len(dataset.ids(part)) for part in ("train", "unlabeled", "val", "test")] == [2, 3, 1, 1]
    id = dataset.ids("train")[0]
    assert dataset.read_image(id).shape == (32, 32, 3)
    assert set(np.unique(dataset.read_target(id))) <= set(range(len(CLASSES)))


def test_no_mask_of_an_unlabeled_image_is_written(folder):
    assert len(list((folder / "unlabeled").glob("*"))) == 3
    assert len(list(folder.rglob("masks/*.png"))) == SIZE.total - SIZE.unlabeled


def test_masks_are_palette_images_in_the_display_colors(folder):
    mask = Image.open(next((folder / "train" / "masks").glob("*.png")))
    assert mask.mode == "P"
    assert tuple(mask.getpalette()[3:6]) == PALETTE[1]


def test_equal_arguments_give_equal_files_and_nothing_is_overwritten_unasked(folder, tmp_path):
    write_dataset(tmp_path / "data", SIZE, seed=0)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(files) == 2 * (2 + 1 + 1) + 3 + 1
    assert all((folder / path).read_bytes() == (tmp_path / "data" / path).read_bytes() for path in files)
    with pytest.raises(DataError, match="--overwrite"):
        write_dataset(folder, SIZE, seed=0)


def test_every_class_has_a_mask_in_the_default_size():
    from halfmask.demo.dataset import _kinds_of

    assert {kind for number in range(Size().labeled) for kind in _kinds_of(number)} == set(range(1, len(CLASSES)))
