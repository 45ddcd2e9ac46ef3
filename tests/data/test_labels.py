"""Labels of whole images: folders of classes, CIFAR and STL-10."""

import pickle

import numpy as np
import pytest
import torch

from halfmask.data.datasets.cifar import CIFAR
from halfmask.data.datasets.class_folder import ClassFolder
from halfmask.data.datasets.stl10 import STL10
from halfmask.data.loading.loader import Source, to_batch, train_loader
from halfmask.data.splits.split import Split, make_split, open_dataset, resolve_split, verify
from halfmask.errors import DataError
from halfmask.testing.datasets import check_dataset
from tests.data import trees
from tests.data.trees import recipe


def test_labels_of_whole_images_reach_a_method_without_axes(tmp_path):
    data = ClassFolder(trees.classes(tmp_path, ("a", "b", "c"), per_class=4))
    ids = tuple(data.ids("train"))
    keys = recipe(tmp_path, "class_folder", crop=16, workers=0, batch={"labeled": 6, "unlabeled": 3})
    loader = train_loader(Source(keys, data, None, Split(ids, ids[:3], ())))
    loader.steps.start, loader.steps.stop = 0, 2
    for host in loader:
        batch = to_batch(host, "cpu", data.task)
        expected = [data.task.classes.index(ids[index].split("/")[1]) for index in batch.labeled.index.tolist()]
        assert batch.labeled.labels.tolist() == expected
        assert batch.labeled.labels.dtype == torch.int64
        assert batch.unlabeled.valid.tolist() == [True] * 3  # padding of a crop hides no label
        assert batch.unlabeled.target is None


def test_classes_are_sorted_numbers_by_their_value(tmp_path):
    assert ClassFolder(trees.classes(tmp_path / "a", ("10", "9", "100"))).task.classes == ("9", "10", "100")
    assert ClassFolder(trees.classes(tmp_path / "b", ("10", "9b"))).task.classes == ("10", "9b")


def test_images_beside_the_class_folders_have_no_label(tmp_path):
    trees.image(trees.classes(tmp_path) / "train/loose.png")
    data = ClassFolder(tmp_path)
    assert data.mask_path("train/loose.png") is None
    keys = recipe(tmp_path, "class_folder", val="none")
    assert resolve_split(keys, data).unlabeled == ("train/loose.png", "unlabeled/x.png")


def test_more_than_255_classes_are_possible(tmp_path):
    data = check_dataset(ClassFolder, trees.classes(tmp_path, [f"c{number}" for number in range(300)], 1))
    assert int(data.read_target("train/c99/0.png")) == 299
    verify(data, Split(tuple(data.ids("train")), (), ()))


def test_a_draw_of_few_labels_takes_as_many_of_each_class(tmp_path):
    trees.classes(tmp_path, ("a", "b", "c"), per_class=6)
    made = make_split(ClassFolder(tmp_path), out=tmp_path / "splits", count=9, seeds=(0, 1))
    chosen = [[id.split("/")[1] for id in split.labeled] for split in made]
    assert all(names.count(name) == 3 for names in chosen for name in "abc")
    assert made[0].labeled != made[1].labeled
    keys = recipe(tmp_path, "class_folder", split="9_seed1")
    assert resolve_split(keys, open_dataset(keys)).labeled == made[1].labeled


def test_a_folder_without_classes_is_refused(tmp_path):
    trees.image(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"0 folders of classes.*train/CLASS"):
        ClassFolder(tmp_path)


def test_both_forms_of_cifar_hold_the_same_images(tmp_path):
    binary, python = CIFAR(trees.cifar10_binary(tmp_path)), CIFAR(trees.cifar10_python(tmp_path / "p"))
    assert binary.ids("train") == python.ids("train")
    assert len(binary.ids("train")) == 8
    for id in ("train/00000", "train/00005", "test/00003"):
        assert np.array_equal(binary.read_image(id), python.read_image(id))
        assert binary.read_target(id) == python.read_target(id)
    assert int(binary.read_target("train/00005")) == 2  # the second image of the second file
    stored = (tmp_path / "cifar-10-batches-bin/data_batch_1.bin").read_bytes()[1:3073]
    assert binary.read_image("train/00000")[3, 7].tolist() == [stored[1024 * c + 3 * 32 + 7] for c in range(3)]


@pytest.mark.parametrize("plant", [trees.cifar100_binary, trees.cifar100_python])
def test_cifar_100_has_fine_and_coarse_labels(plant, tmp_path):
    fine, coarse = CIFAR(plant(tmp_path)), CIFAR(tmp_path, labels="coarse")
    assert (int(fine.read_target("train/00000")), int(coarse.read_target("train/00000"))) == (70, 3)
    assert (fine.task.n_classes, coarse.task.classes[19]) == (100, "coarse19")


def test_a_pickle_that_would_run_a_program_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    trees.cifar10_python(tmp_path)
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps({b"data": Evil()}, protocol=2))
    with pytest.raises(DataError, match=r"not a file of the CIFAR release.*print"):
        CIFAR(tmp_path)


def test_a_cut_file_is_noticed(tmp_path):
    path = trees.cifar10_binary(tmp_path) / "cifar-10-batches-bin/data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_2\.bin: .*cut short"):
        CIFAR(tmp_path)


def test_stl10_is_stored_by_columns_and_a_fold_limits_the_labels(tmp_path):
    data = STL10(trees.stl10(tmp_path))
    stored = np.frombuffer((tmp_path / "stl10_binary/train_X.bin").read_bytes(), np.uint8).reshape(4, 3, 96, 96)
    image = data.read_image("train/00002")
    assert image[10, 20].tolist() == stored[2, :, 20, 10].tolist()
    assert [int(data.read_target(id)) for id in data.ids("train")] == [0, 9, 1, 2]
    assert data.mask_path("unlabeled/000001") is None
    fold = STL10(tmp_path, fold=1)
    assert [fold.mask_path(id) is not None for id in fold.ids("train")] == [True, False, True, False]
