"""Readers of public datasets, on tiny trees in their real layouts."""

from pathlib import Path

import numpy as np
import pytest

from halfmask import plugins
from halfmask.data.datasets.ade20k import ADE20K
from halfmask.data.datasets.camvid import CamVid
from halfmask.data.datasets.cityscapes import Cityscapes
from halfmask.data.datasets.coco import COCO
from halfmask.data.datasets.folder import Folder
from halfmask.data.datasets.pascal import Pascal
from halfmask.data.datasets.sun_rgbd import SunRGBD
from halfmask.data.splits.split import open_dataset, resolve_split, unlabeled_dataset, verify
from halfmask.errors import DataError
from halfmask.recipe.read import DataRecipe
from halfmask.testing.datasets import check_dataset
from tests.data import trees

# Every file of halfmask/data that is a dataset needs a tree here: at least one, under its own name.
TREES = {
    "pascal": [trees.pascal],
    "cityscapes": [trees.cityscapes, lambda root: trees.cityscapes(root, train_ids=True)],
    "ade20k": [trees.ade20k, lambda root: trees.ade20k(root, shifted=True)],
    "coco": [trees.coco, lambda root: trees.coco(root, png=False)],
    "camvid": [trees.camvid_segnet, trees.camvid_full, trees.camvid_folders],
    "sun_rgbd": [trees.sun_rgbd],
    "folder": [trees.folder],
    "change_folder": [trees.change, trees.change_parts_inside, trees.change_parts, trees.change_lists],
    "levir": [trees.levir, trees.change_lists, trees.change_parts],
    "whu": [trees.change_lists, trees.change],
    "class_folder": [trees.classes, lambda root: trees.classes(root, parts=False)],
    "cifar": [trees.cifar10_binary, trees.cifar10_python, trees.cifar100_binary, trees.cifar100_python],
    "stl10": [trees.stl10],
}


@pytest.mark.parametrize("name", plugins.names("datasets"))
def test_every_dataset_keeps_the_contract(name: str, tmp_path: Path) -> None:
    assert name in TREES, f"halfmask/data/{name}.py is a dataset without a tree in tests/data: add one"
    for number, plant in enumerate(TREES[name]):
        check_dataset(plugins.resolve("datasets", name), plant(tmp_path / str(number)))


def test_the_contract_check_finds_unsorted_ids(tmp_path: Path) -> None:
    class Unsorted(Folder):
        def ids(self, part: str) -> list[str]:
            return super().ids(part)[::-1]

    with pytest.raises(AssertionError, match="sorted"):
        check_dataset(Unsorted, trees.folder(tmp_path))


def test_the_contract_check_finds_values_that_are_no_class(tmp_path: Path) -> None:
    class Wild(Folder):
        def read_target(self, id: str) -> np.ndarray:
            return super().read_target(id) + np.uint8(7)

    with pytest.raises(AssertionError, match="classes"):
        check_dataset(Wild, trees.folder(tmp_path))


def test_pascal_reads_palette_and_gray_masks_and_finds_the_augmented_list(tmp_path: Path) -> None:
    data = Pascal(trees.pascal(tmp_path / "VOCdevkit/VOC2012").parents[1])
    assert data.ids("train") == ["JPEGImages/2007_000032.jpg", "JPEGImages/2008_000002.jpg"]
    assert data.ids("val") == ["JPEGImages/2009_000003.jpg"]
    # The finer mask wins where both exist, and its 255 borders are kept.
    assert set(np.unique(data.read_target(data.ids("train")[0]))) == {0, 15, 255}
    assert set(np.unique(data.read_target(data.ids("train")[1]))) == {0, 20}
    assert data.mask_path("JPEGImages/2010_000004.jpg") is None


def test_pascal_colors_follow_the_published_table(tmp_path: Path) -> None:
    task = Pascal(trees.pascal(tmp_path)).task
    table = {"aeroplane": (128, 0, 0), "car": (128, 128, 128), "dog": (64, 0, 128), "tvmonitor": (0, 64, 128)}
    assert task.palette is not None
    assert {name: task.palette[task.classes.index(name)] for name in table} == table


def test_a_list_chooses_between_two_masks_of_one_image(tmp_path: Path) -> None:
    data = Pascal(trees.pascal(tmp_path))
    data.mask_overrides["JPEGImages/2007_000032.jpg"] = "SegmentationClassAug/2007_000032.png"
    assert set(np.unique(data.read_target("JPEGImages/2007_000032.jpg"))) == {0, 15}
    data.mask_overrides["JPEGImages/2007_000032.jpg"] = "SegmentationClass/absent.png"
    assert set(np.unique(data.read_target("JPEGImages/2007_000032.jpg"))) == {0, 15, 255}


def test_cityscapes_maps_label_ids_and_trusts_train_ids(tmp_path: Path) -> None:
    data = Cityscapes(trees.cityscapes(tmp_path / "a"))
    (id,) = data.ids("train")
    # 7 road, 24 person, 33 bicycle; 0, 1, 29 and the license plate (255) are void.
    assert data.read_target(id).ravel()[:7].tolist() == [255, 255, 0, 11, 18, 255, 255]
    assert len(data.ids("unlabeled")) == 1
    assert data.mask_path(data.ids("test")[0]) is None
    data = Cityscapes(trees.cityscapes(tmp_path / "b", train_ids=True))
    assert data.read_target(id).ravel()[:4].tolist() == [0, 11, 18, 255]


def test_cityscapes_tells_encodings_of_other_file_names_by_value(tmp_path: Path) -> None:
    data = Cityscapes(trees.cityscapes(tmp_path))
    (id,) = data.ids("train")
    data.mask_overrides[id] = "own/a.png"
    trees.mask(tmp_path / "own/a.png", (7, 26))
    assert set(np.unique(data.read_target(id))) == {0, 13}
    trees.mask(tmp_path / "own/a.png", (7, 255))
    assert set(np.unique(data.read_target(id))) == {7, 255}
    trees.mask(tmp_path / "own/a.png", (7, 8))
    with pytest.raises(DataError, match=r"_labelIds\.png or _labelTrainIds\.png"):
        data.read_target(id)


def test_label_ids_under_the_name_of_train_ids_are_refused(tmp_path: Path) -> None:
    data = Cityscapes(trees.cityscapes(tmp_path, train_ids=True))
    (id,) = data.ids("train")
    trees.mask(data.mask_path(id) or tmp_path, (7, 26))
    with pytest.raises(DataError, match=r"26 \(24 px\)"):
        data.read_target(id)


def test_ade20k_is_shifted_exactly_once(tmp_path: Path) -> None:
    official, shifted = ADE20K(trees.ade20k(tmp_path / "a")), ADE20K(trees.ade20k(tmp_path / "b", shifted=True))
    (id,) = official.ids("train")
    assert official.read_target(id).ravel()[:3].tolist() == [255, 0, 149]
    assert shifted.read_target(id).ravel()[:3].tolist() == [255, 0, 149]
    wrong = ADE20K(shifted.root, shifted=False)
    with pytest.raises(DataError, match="255"):
        wrong.read_target(id)


def test_ade20k_does_not_open_sealed_masks_to_find_the_encoding(tmp_path: Path) -> None:
    data = ADE20K(trees.ade20k(tmp_path))
    (id,) = data.ids("train")
    (tmp_path / "annotations/training/ADE_train_00000001.png").write_bytes(b"not a mask")
    data.sealed = frozenset({id})
    assert data.read_target(data.ids("val")[0]).ravel()[:3].tolist() == [255, 0, 149]


@pytest.mark.parametrize(
    ("name", "classes", "things"),
    [("pascal", 21, 20), ("cityscapes", 19, 8), ("coco", 81, 80), ("camvid", 11, 6), ("sun_rgbd", 37, 32)],
)
def test_class_tables_are_complete(name: str, classes: int, things: int, tmp_path: Path) -> None:
    task = plugins.resolve("datasets", name)(TREES[name][0](tmp_path)).task
    assert len(set(task.classes)) == len(set(task.palette)) == classes
    assert sum(task.foreground) == things


def test_two_ade20k_classes_share_a_color(tmp_path: Path) -> None:
    task = ADE20K(trees.ade20k(tmp_path)).task
    assert len(task.classes) == len(task.palette) == 150
    assert [name for name, color in zip(task.classes, task.palette, strict=True) if color == (140, 140, 140)] == [
        "road",
        "skyscraper",
    ]


def test_coco_json_equals_the_drawing(tmp_path: Path) -> None:
    data = COCO(trees.coco(tmp_path, png=False))
    expected = np.where(trees.COCO_EXPECTED == 2, 17, trees.COCO_EXPECTED)  # "dog" is class 17 of 81, category 18
    assert np.array_equal(data.read_target(data.ids("train")[0]), expected)
    assert data.mask_path(data.ids("unlabeled")[0]) is None


def test_camvid_forms_agree_on_void(tmp_path: Path) -> None:
    for number, plant in enumerate((trees.camvid_segnet, trees.camvid_folders)):
        data = CamVid(plant(tmp_path / str(number)))
        assert data.read_target(data.ids("train")[0]).ravel()[:3].tolist() == [0, 10, 255]
    data = CamVid(trees.camvid_full(tmp_path / "full"))
    # Animal -> Pedestrian, MotorcycleScooter -> Bicyclist, Void, Sky.
    assert data.read_target(data.ids("train")[0]).ravel()[:4].tolist() == [9, 10, 255, 0]


def test_sun_rgbd_classes_begin_at_1_and_its_test_images_validate(tmp_path: Path) -> None:
    data = SunRGBD(trees.sun_rgbd(tmp_path))
    assert data.ids("val") == ["images/test/img-000001.jpg"]
    assert data.read_target(data.ids("val")[0]).ravel()[:4].tolist() == [255, 0, 21, 36]
    assert [data.task.classes[id] for id in (0, 21, 36)] == ["wall", "ceiling", "bag"]
    trees.mask(tmp_path / "masks/train/img-000001.png", (0, 38))
    with pytest.raises(DataError, match="38"):
        data.read_target(data.ids("train")[0])


@pytest.mark.parametrize("name", ["pascal", "cityscapes", "ade20k", "coco", "camvid", "sun_rgbd"])
def test_a_wrong_root_says_what_was_expected(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected .*data\.dataset=folder"):
        plugins.resolve("datasets", name)(tmp_path)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "counts", "classes"),
    [
        ("camvid", (367, 101, 233, 0), 11),
        ("aerial_dubai", (45, 9, 18, 0), 5),
        ("facades", (60, 0, 19, 0), 7),
        ("clothing_weak", (60, 0, 90, 210), 11),
    ],
)
def test_real_folders_open(shared: Path, name: str, counts: tuple[int, ...], classes: int) -> None:
    data = check_dataset(Folder, shared / "data" / name, limit=3)
    assert tuple(len(data.ids(part)) for part in ("train", "val", "test", "unlabeled")) == counts
    assert data.task.n_classes == classes
    recipe = DataRecipe(root=str(shared / "data" / name))
    split = resolve_split(recipe, data)
    verify(data, split, unlabeled_dataset(recipe, data))


@pytest.mark.shared
def test_class_shares_of_real_masks_are_the_published_ones(shared: Path) -> None:
    data = open_dataset(DataRecipe(root=str(shared / "data" / "aerial_dubai")))
    pixels = np.zeros(256, dtype=np.int64)
    for id in data.ids("val"):
        pixels += np.bincount(data.read_target(id).ravel(), minlength=256)
    shares = 100 * pixels[:5] / pixels[:5].sum()
    assert np.allclose(shares, [1.79, 25.05, 0.77, 32.51, 39.88], atol=0.006)
