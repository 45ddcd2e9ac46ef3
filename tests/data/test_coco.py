"""COCO json as it is published and exported: files beside, categories by name, crowds, and what is broken."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from halfmask.data.annotations.coco.read import CocoFile
from halfmask.data.annotations.coco.regions import decode_region, run_lengths
from halfmask.data.check import judge, take_fingerprint
from halfmask.data.convert.convert import convert
from halfmask.data.datasets.folder import Folder
from halfmask.data.splits.split import Split
from halfmask.data.splits.verify import verify
from halfmask.errors import DataError, MissingExtraError
from halfmask.recipe.read import load
from tests.data import trees

SIDE = 8
SQUARE = [[0, 0, 4, 0, 4, 4, 0, 4]]
LEFT = np.zeros((SIDE, SIDE), bool)
LEFT[:, :2] = True


def coco(names=("a.png",), annotations=(), categories=((1, "car"), (2, "road")), first=1) -> dict:
    """A file of images with those annotations in each: (category id, segmentation[, iscrowd])."""
    return {
        "images": [{"id": n, "file_name": name, "height": SIDE, "width": SIDE} for n, name in enumerate(names, first)],
        "annotations": [
            {"id": 10 * n + k, "image_id": n, "category_id": category, "segmentation": outline, "bbox": [0, 0, 4, 4],
             "iscrowd": crowd[0] if crowd else 0}
            for n, _ in enumerate(names, first) for k, (category, outline, *crowd) in enumerate(annotations)
        ],
        "categories": [{"id": id, "name": name, "supercategory": ""} for id, name in categories],
    }  # fmt: skip


def captions(names=("a.png",)) -> dict:
    plain = coco(names)
    return {"images": plain["images"], "annotations": [{"id": 1, "image_id": 1, "caption": "a car"}]}


def keypoints(names=("a.png",)) -> dict:
    content = coco(names, [(1, SQUARE)], [(1, "person")])
    content["annotations"][0]["keypoints"] = [1, 1, 2]
    content["categories"][0]["keypoints"] = ["nose"]
    return content


def panoptic() -> dict:
    return {**coco(), "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 3}]}]}


def write(root: Path, files: dict[str, dict], names=("a.png",)) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content))
    for name in names:
        trees.image(root / name, (SIDE, SIDE), seed=len(name))
    return root


def findings(root: Path) -> dict:
    seen = take_fingerprint(load(None, {"data.root": str(root)}).data)
    return {one.code: one for one in judge(str(root), seen).findings}


def test_files_beside_the_instances_are_left_aside_with_a_note(tmp_path: Path) -> None:
    files = {
        "annotations/captions_train2017.json": captions(),
        "annotations/instances_train2017.json": coco(annotations=[(1, SQUARE)]),
        "annotations/person_keypoints_train2017.json": keypoints(),
        "annotations/panoptic_train2017.json": panoptic(),
        "annotations/image_info_test2017.json": {key: coco()[key] for key in ("images", "categories")},
        "settings.json": {"images": 3, "categories": "none"},
    }
    data = Folder(write(tmp_path, files))
    assert data.task.classes == ("background", "car", "road")
    np.testing.assert_array_equal(data.read_target("a.png")[:4, :4], 1)
    found = findings(tmp_path)["H164"]
    assert (found.level, found.count, len(found.files)) == ("note", 5, 5)
    assert "captions_train2017.json (captions, no outlines)" in found.message
    assert any("not used: annotations/captions" in note for note in data.notes)


@pytest.mark.parametrize(
    ("content", "told"),
    [(captions(), "captions, no outlines"), (panoptic(), "panoptic PNG"), ({"images": []}, "no images, annotations")],
)
def test_files_without_instances_are_named(content: dict, told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"x\.json: no COCO instances \(x\.json: .*{told}") as caught:
        Folder(write(tmp_path, {"x.json": content}))
    assert caught.value.code == "H208"


def test_keypoints_alone_have_outlines_too(tmp_path: Path) -> None:
    data = Folder(write(tmp_path, {"person_keypoints.json": keypoints()}))
    assert data.task.classes == ("background", "person")
    assert data.read_target("a.png")[0, 0] == 1


def test_categories_that_differ_between_files_are_joined_by_name(tmp_path: Path) -> None:
    files = {
        "train/_annotations.coco.json": coco(["a.png"], [(1, SQUARE)], [(1, "car"), (2, "road")]),
        "valid/_annotations.coco.json": coco(["b.png"], [(1, SQUARE)], [(1, "road ")]),
        "test/_annotations.coco.json": coco(["c.png"], [(7, SQUARE)], [(0, "things"), (7, "car"), (9, "tree")]),
    }
    data = Folder(write(tmp_path, files, ["train/a.png", "valid/b.png", "test/c.png"]))
    assert data.task.classes == ("background", "car", "road", "things", "tree") or set(data.task.classes) >= {
        "car", "road", "tree"
    }  # fmt: skip
    name = data.task.classes.__getitem__
    assert [name(data.read_target(id)[0, 0]) for id in ("train/a.png", "valid/b.png", "test/c.png")] == [
        "car", "road", "car",
    ]  # fmt: skip
    assert data.ids("val") == ["valid/b.png"]


def test_an_image_in_two_files_must_be_drawn_alike(tmp_path: Path) -> None:
    one = coco(["a.png"], [(1, SQUARE)])
    same = coco(["a.png"], [(5, SQUARE)], [(5, "car"), (2, "road")], first=4)  # other ids, the same drawing
    assert Folder(write(tmp_path / "same", {"x.json": one, "y.json": same})).read_target("a.png")[0, 0] == 1
    other = coco(["a.png"], [(2, SQUARE)])
    with pytest.raises(DataError, match=r"a\.png is annotated in two files, differently: x\.json and y\.json"):
        Folder(write(tmp_path / "other", {"x.json": one, "y.json": other}))


def test_crowds_are_explained_and_can_be_the_class(tmp_path: Path) -> None:
    crowd = (2, run_lengths(LEFT), 1)
    group = (1, {"size": [SIDE, SIDE], "counts": [56, 8]}, 1)
    content = coco(["a.png", "b.png"], [(1, [[4, 4, 6, 4, 6, 6, 4, 6]]), crowd, group])
    root = write(tmp_path / "in", {"instances.json": content}, ["a.png", "b.png"])
    found = findings(root)
    assert "H163" in found
    seen = take_fingerprint(load(None, {"data.root": str(root)}).data)
    warning, note = [one for one in judge(str(root), seen).findings if one.code == "H163"]
    assert (warning.level, note.level) == ("warning", "note")
    assert "every annotation is a crowd" in warning.message
    assert "road (2 of 2)" in warning.message
    assert "`crowds: [road]` in halfmask.yaml" in warning.cure
    assert "car (2 of 4)" in note.message
    assert "H121" not in found  # "label an image that shows them" is no help here
    data = Folder(root)
    assert (data.read_target("a.png")[:, :2] == 255).all()
    assert any("`crowds: [road]`" in line for line in verify(data, Split(("a.png", "b.png"), (), ())))
    (root / "halfmask.yaml").write_text("crowds: [road]")
    target = Folder(root).read_target("a.png")
    assert (target[:, :2] == 2).all()
    assert (target[:, 7] == 255).all()
    (root / "halfmask.yaml").write_text("crowds: [raod]")
    with pytest.raises(DataError, match=r"`crowds` in halfmask\.yaml names raod"):
        Folder(root)


def test_unknown_pixels_that_are_written_here_are_no_crowd_of_a_class(tmp_path: Path) -> None:
    trees.folder(tmp_path / "in", labeled=2, unlabeled=0, values=(0, 1, 255))
    convert(tmp_path / "in", tmp_path / "coco", to="coco")
    for path in (tmp_path / "in/images").iterdir():
        (tmp_path / "coco" / path.name.replace("im_", "im_")).write_bytes(path.read_bytes())
    content = json.loads((tmp_path / "coco/annotations.json").read_text())
    for image in content["images"]:
        image["file_name"] = Path(image["file_name"]).name
    (tmp_path / "coco/annotations.json").write_text(json.dumps(content))
    assert "H163" not in findings(tmp_path / "coco")


def test_run_length_codes_of_every_form_are_read(tmp_path: Path) -> None:
    packed = run_lengths(LEFT)
    for code in (packed, packed | {"counts": packed["counts"].encode()}, packed | {"counts": [0, 16, 48]}):
        np.testing.assert_array_equal(decode_region(code, SIDE, SIDE), LEFT)
    cut = packed | {"counts": run_lengths(LEFT[:, :4])["counts"]}
    with pytest.raises(ValueError, match="does not fill the image"):
        decode_region(cut, SIDE, SIDE)


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        ("images", {"file_name": None}, "1 of 1 images without `file_name`"),
        ("images", {"height": None}, "1 of 1 images without `height`"),
        ("categories", {"name": None}, "1 of 2 categories without `name`"),
        ("categories", {"id": 2}, "1 ids of categories given twice, such as 2"),
    ],
)
def test_entries_that_lack_a_key_or_share_an_id_are_refused(kind: str, change: dict, told: str, tmp_path: Path) -> None:
    content = coco(["a.png"], [(1, SQUARE)])
    content[kind][0] |= change
    with pytest.raises(DataError, match=told) as caught:
        Folder(write(tmp_path, {"instances.json": content}))
    assert caught.value.code == "H208"


def test_an_image_that_is_listed_twice_keeps_all_its_annotations(tmp_path: Path) -> None:
    content = coco(["a.png", "a.png"])
    outlines = (SQUARE, [[4, 4, 8, 4, 8, 8, 4, 8]])
    content["annotations"] = [
        {"id": n, "image_id": n, "category_id": n, "segmentation": outline} for n, outline in enumerate(outlines, 1)
    ]
    target = Folder(write(tmp_path, {"instances.json": content})).read_target("a.png")
    assert (target[0, 0], target[7, 7]) == (1, 2)


def test_files_of_other_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no image that x\.json lists is here"):
        Folder(write(tmp_path, {"x.json": coco(["other.png"], [(1, SQUARE)])}))


BROKEN = {
    "a category of no list": ([(9, SQUARE), (8, SQUARE)], r"4 of a category id that .* \(9: 2, 8: 2\)"),
    "boxes": ([(1, []), (2, SQUARE)], r"2 with a box but no outline: .* \(car: 2\)"),
    "boxes of empty lists": ([(1, [[]])], "2 with a box but no outline"),
    "none": ([(1, None)], "2 with a box but no outline"),
    "another size": ([(2, {"size": [4, 4], "counts": [0, 16]})], r"such as \[4, 4\] in one of \[8, 8\].*\(road: 2\)"),
    "runs too few": ([(2, {"size": [8, 8], "counts": [0, 16]})], "2 with a run-length code that does not fill"),
    "no runs": ([(2, {"size": [8, 8]})], "2 with a run-length code without"),
    "odd": ([(1, [[0, 0, 4, 0, 4]])], "2 with a polygon that is no list"),
    "text": ([(1, [["0", "0", "4", "0", "4", "4"]])], "2 with a polygon that is no list"),
    "several": ([(1, []), (9, SQUARE)], r"(?s)2 with a box.*2 of a category|2 of a category.*2 with a box"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_annotations_are_told_once_with_their_count_and_cure(case: str, tmp_path: Path) -> None:
    annotations, told = BROKEN[case]
    names = ["a.png", "b.png"]
    root = write(tmp_path, {"instances.json": coco(names, annotations)}, names)
    with pytest.raises(DataError, match=told) as caught:
        Folder(root)
    assert caught.value.code == "H203"
    assert str(caught.value).count("instances.json") == 1
    found = findings(root)
    assert found["H203"].count == 1


def test_outlines_without_area_are_counted_and_others_of_no_image_too(tmp_path: Path) -> None:
    flat = [(1, [[0, 0, 4, 4]]), (1, [[1, 1, 1, 1, 1, 1]]), (2, SQUARE), (2, [9, 9, 12, 9, 12, 12])]
    content = coco(["a.png"], flat)
    content["annotations"].append({"id": 99, "image_id": 77, "category_id": 2, "segmentation": SQUARE})
    root = write(tmp_path, {"instances.json": content})
    found = findings(root)
    assert "2 shapes without area in 1 images are not drawn: car (2)" in found["H160"].message
    assert "1 shape outside of the image in 1 images are not drawn: road (1)" in found["H161"].message
    assert "annotations of images that it does not list: road: 1" in found["H165"].message
    assert Folder(root).read_target("a.png")[0, 0] == 2


def test_a_flat_list_of_numbers_is_one_polygon() -> None:
    np.testing.assert_array_equal(decode_region(SQUARE[0], SIDE, SIDE), decode_region(SQUARE, SIDE, SIDE))


def test_the_label_of_unknown_pixels_means_the_same_in_coco_json(tmp_path: Path) -> None:
    content = coco(["a.png"], [(1, SQUARE), (3, [[4, 4, 8, 4, 8, 8, 4, 8]])], [(1, "car"), (3, "__ignore__")])
    data = Folder(write(tmp_path, {"instances.json": content}))
    assert data.task.classes == ("background", "car")
    assert data.read_target("a.png")[7, 7] == 255


def test_without_pycocotools_polygons_are_read_and_run_lengths_name_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "instances.json"
    write(tmp_path, {"instances.json": coco(["a.png", "b.png"], [(1, SQUARE)])})
    content = json.loads(file.read_text())
    content["annotations"][1]["segmentation"] = {"size": [SIDE, SIDE], "counts": [0, 16, 48]}
    file.write_text(json.dumps(content))
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    opened = CocoFile(file, {"car": 1})
    assert opened.draw("a.png").target[0, 0] == 1
    with pytest.raises(MissingExtraError, match=r'Run-length codes .*pip install "halfmask\[annotate\]"'):
        opened.draw("b.png")
    with pytest.raises(MissingExtraError):
        convert(tmp_path, tmp_path / "out", to="coco")
