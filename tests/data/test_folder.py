"""The user's own folder: every layout, and the refusal to guess."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfmask.data.annotations.coco.read import part_of
from halfmask.data.datasets.folder import Folder
from halfmask.data.folder.pairing import pair
from halfmask.errors import DataError
from tests.data import trees
from tests.data.trees import image, mask


def test_images_and_masks_pair_by_stem_and_suffix(tmp_path: Path) -> None:
    for name in ("a.JPG", "b c.jpeg", "ä.png", "d.tif"):
        image(tmp_path / "images" / name)
    for name in ("a_gt.png", "b c_mask.png", "ä.png"):
        mask(tmp_path / "masks" / name, (0, 1))
    for junk in ("images/Thumbs.db", "images/._a.JPG", "images/.hidden.png", "masks/.DS_Store", "masks/._a_gt.png"):
        (tmp_path / junk).write_bytes(b"x")
    image(tmp_path / "unlabeled/u.png")
    data = Folder(tmp_path)
    assert (data.layout.name, data.layout.reason) == ("images+masks", "images/ and masks/")
    assert data.ids("train") == ["images/a.JPG", "images/b c.jpeg", "images/d.tif", "images/ä.png"]
    assert data.ids("unlabeled") == ["unlabeled/u.png"]
    names = [path.name if (path := data.mask_path(id)) else None for id in data.ids("train")]
    assert names == ["a_gt.png", "b c_mask.png", None, "ä.png"]


def test_parts_as_folders_and_inside_folders(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        for pattern in (f"outer/{part}/images/{part}.png", f"inner/images/{part}/{part}.png"):
            image(tmp_path / pattern)
        for pattern in (f"outer/{part}/masks/{part}.png", f"inner/masks/{part}/{part}_label.png"):
            mask(tmp_path / pattern, (0, 1))
    image(tmp_path / "outer/unlabeled/u.png")
    image(tmp_path / "inner/images/weak/u.png")
    for name, layout in (("outer", "parts"), ("inner", "parts inside")):
        data = Folder(tmp_path / name)
        assert data.layout.name == layout
        assert [len(data.ids(part)) for part in ("train", "val", "test", "unlabeled")] == [1, 1, 1, 1]
        assert all(data.mask_path(id) for part in ("train", "val", "test") for id in data.ids(part))


def test_several_folders_with_images_and_masks_are_training_images(tmp_path: Path) -> None:
    for tile in ("Tile 1", "Tile 2"):
        image(tmp_path / tile / "images/part_1.png")
        mask(tmp_path / tile / "masks/part_1.png", (0, 1))
    data = Folder(tmp_path)
    assert data.ids("train") == ["Tile 1/images/part_1.png", "Tile 2/images/part_1.png"]
    assert str(data.mask_path("Tile 2/images/part_1.png")).endswith("Tile 2/masks/part_1.png")


def test_voc_layout_reads_the_class_names_of_a_labeling_tool(tmp_path: Path) -> None:
    image(tmp_path / "JPEGImages/a.jpg")
    image(tmp_path / "JPEGImages/b.jpg")
    mask(tmp_path / "SegmentationClass/a.png", (0, 1, 255), palette=True)
    (tmp_path / "class_names.txt").write_text("_background_\ncrack\n")
    data = Folder(tmp_path)
    assert (data.layout.name, data.task.classes) == ("voc", ("_background_", "crack"))
    assert set(np.unique(data.read_target("JPEGImages/a.jpg"))) == {0, 1, 255}


def test_color_masks_with_a_label_map(tmp_path: Path) -> None:
    image(tmp_path / "JPEGImages/a.jpg")
    (tmp_path / "SegmentationClass").mkdir()
    colors = np.resize(np.array([[0, 0, 0], [250, 50, 83]], dtype=np.uint8), (trees.H, trees.W, 3))
    Image.fromarray(colors).save(tmp_path / "SegmentationClass/a.png")
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:250,50,83::\n")
    data = Folder(tmp_path)
    assert data.task.classes == ("background", "road")
    assert data.read_target("JPEGImages/a.jpg").ravel()[:2].tolist() == [0, 1]


@pytest.mark.parametrize("name", ["pascal", "cityscapes", "ade20k"])
def test_public_layouts_are_recognized_and_bring_their_classes(name: str, tmp_path: Path) -> None:
    data = Folder(getattr(trees, name)(tmp_path))
    assert data.task.n_classes == {"pascal": 21, "cityscapes": 19, "ade20k": 150}[name]
    target = data.read_target(data.ids("train")[0])
    assert set(np.unique(target)) <= {*range(data.task.n_classes), 255}


@pytest.mark.parametrize("place", ["annotations/instances_default.json", "train/_annotations.coco.json"])
def test_coco_json_from_any_tool(place: str, tmp_path: Path) -> None:
    base = "train" if place.startswith("train") else "images"
    for name in ("a.png", "b.png", "c.png"):
        image(tmp_path / base / name)
    path = trees.coco_json(tmp_path / place, ["a.png", "b.png"], categories=((0, "weed"), (7, "crop")))
    content = json.loads(path.read_text())
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] == 0]
    path.write_text(json.dumps(content))
    data = Folder(tmp_path)
    assert data.task.classes == ("background", "weed", "crop")
    assert np.array_equal(data.read_target(f"{base}/a.png"), trees.COCO_EXPECTED)
    # Listed without annotation, and not listed: both unlabeled.
    assert data.mask_path(f"{base}/b.png") is None
    assert data.ids("unlabeled") == [f"{base}/c.png"]


@pytest.mark.parametrize(
    ("place", "part"),
    [
        ("latest.json", "train"),
        ("annotations/intervals.json", "train"),
        ("annotations/instances_val2017.json", "val"),
        ("annotations/instancesTest.json", "test"),
        ("valid/_annotations.coco.json", "val"),
        ("contest/test/annotations.json", "test"),
        ("test-site/train.json", "train"),
        ("train_val.json", "train"),
    ],
)
def test_the_part_of_a_coco_json_is_told_by_whole_words(place: str, part: str) -> None:
    assert part_of(Path("root") / place, Path("root")) == part


def test_annotations_called_latest_are_for_training(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png")
    trees.coco_json(tmp_path / "latest.json", ["a.png"])
    assert Folder(tmp_path).ids("train") == ["images/a.png"]


def test_a_category_that_only_groups_others_is_no_class(tmp_path: Path) -> None:
    image(tmp_path / "train/a.png")
    path = trees.coco_json(tmp_path / "train/_annotations.coco.json", ["a.png"], categories=((1, "weed"), (2, "crop")))
    content = json.loads(path.read_text())
    content["categories"] = [{"id": 0, "name": "x", "supercategory": "none"}, *content["categories"]]
    path.write_text(json.dumps(content))
    assert Folder(tmp_path).task.classes == ("background", "weed", "crop")


def test_boxes_without_outlines_are_refused(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png")
    path = trees.coco_json(tmp_path / "annotations.json", ["a.png"])
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="a box but no outline: export polygons or masks"):
        Folder(tmp_path)


def test_masks_beside_their_images(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    image(tmp_path / "b.jpg")
    mask(tmp_path / "a_mask.png", (0, 1))
    data = Folder(tmp_path)
    assert (data.layout.name, data.ids("train")) == ("side by side", ["a.jpg", "b.jpg"])
    assert set(np.unique(data.read_target("a.jpg"))) == {0, 1}


def test_a_plain_folder_is_unlabeled_and_needs_class_names(tmp_path: Path) -> None:
    image(tmp_path / "sub/a.png")
    data = Folder(tmp_path)
    assert (data.ids("train"), data.ids("unlabeled")) == ([], ["sub/a.png"])
    with pytest.raises(DataError, match=r"halfmask\.yaml: `classes:"):
        _ = data.task


def test_masks_are_never_taken_for_unlabeled_images(tmp_path: Path) -> None:
    image(tmp_path / "photos/a.png")
    image(tmp_path / "masks/a.png")
    with pytest.raises(DataError, match="looks like masks"):
        Folder(tmp_path)


def test_an_empty_or_absent_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="into images/"):
        Folder(tmp_path)
    with pytest.raises(DataError, match="--data DIR"):
        Folder(tmp_path / "absent")


def test_two_images_of_one_stem_are_refused(tmp_path: Path) -> None:
    trees.folder(tmp_path)
    image(tmp_path / "images/im_0.jpg")
    with pytest.raises(DataError, match=r"im_0\.jpg and images/im_0\.png have the same stem"):
        Folder(tmp_path)


def test_two_masks_of_one_image_are_refused() -> None:
    with pytest.raises(DataError, match=r"both fit a\.png"):
        pair(["a.png"], ["m/a.png", "m/a_mask.png"], mask_base="m")


def test_masks_that_pair_with_nothing_are_refused(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png")
    mask(tmp_path / "masks/other.png", (0, 1))
    with pytest.raises(DataError, match=r"a\.png against other\.png"):
        Folder(tmp_path)
