"""Label Studio: tasks that it opens, and its json export as masks."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from halfmask.data.annotations import label_studio
from halfmask.data.annotations.drawing import labels_of
from halfmask.data.annotations.label_studio import LabelStudioWriter, image_name
from halfmask.data.convert.convert import convert
from halfmask.data.datasets.folder import Folder
from halfmask.data.folder.masks.decode import read_stored
from halfmask.errors import DataError
from tests.data.broken import picture, save
from tests.data.maps import CLASSES, NESTED, random_maps

IDS = {name: id for id, name in enumerate(CLASSES)}


def region(value, kind="polygonlabels", label="leaf", **more):
    return {"type": kind, "value": value | {kind: [label]}, "original_width": 16, "original_height": 8, **more}


def box(left, top, right, bottom, label="leaf", **more):
    """A polygon in an image of 16 x 8 pixels."""
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return region({"points": [(100 * x / 16, 100 * y / 8) for x, y in corners]}, label=label, **more)


def task(image, *results, **more):
    return {"data": {"image": image}, "annotations": [{"result": result} | more for result in results]}


def exported(root, *tasks, images=("images/a.png",)):
    for number, image in enumerate(images):
        save(root / image, picture(number, (8, 16)))
    (root / "halfmask.yaml").write_text(f"classes: [{', '.join(CLASSES)}]\n")
    (root / "export.json").write_text(json.dumps(tasks))
    return root


# --- writing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drafts", [True, False])
@pytest.mark.parametrize("classes", [CLASSES, ("ground", "leaf", "stem", "fruit")])
def test_tasks_read_back_exactly(classes, drafts):
    writer = LabelStudioWriter(classes, drafts=drafts)
    maps = [NESTED, np.pad(NESTED, ((0, 97), (3, 149))), *random_maps(20)]
    for mask in maps:
        writer.add("images/a b.png", mask)
    for mask, made in zip(maps, json.loads(json.dumps(writer.content())), strict=True):
        assert made["data"]["image"] == "/data/local-files/?d=images/a%20b.png"
        (annotation,) = made["predictions" if drafts else "annotations"]
        ids = {name: id for id, name in enumerate(classes)}
        painted = label_studio.decode(annotation["result"], ids, *mask.shape).target
        np.testing.assert_array_equal(painted, mask)
        assert labels_of(label_studio.shapes_in(annotation["result"])) <= set(classes)
        assert label_studio.size_in(annotation["result"], made["data"]) == mask.shape


def test_the_configuration_names_every_label_and_its_color():
    root = ElementTree.fromstring(LabelStudioWriter(['a "b"', "c & <d>"]).configuration([(0, 0, 0), (255, 0, 16)]))
    labels = [(label.get("value"), label.get("background")) for label in root.iter("Label")]
    assert labels == [('a "b"', "#000000"), ("c & <d>", "#ff0010"), ("__ignore__", "#ffffff")]
    assert root.find("PolygonLabels").get("toName") == root.find("Image").get("name")


# --- regions -----------------------------------------------------------------------------------------------------


def test_regions_are_painted_in_their_order():
    result = [
        box(0, 0, 10, 8),
        box(2, 2, 6, 6, "stem"),
        box(3, 3, 4, 4, "__ignore__"),
        region({"x": 50, "y": 50, "width": 25, "height": 25, "rotation": 90}, "rectanglelabels", "fruit"),
        region({"x": 75, "y": 50, "radiusX": 12.5, "radiusY": 25}, "ellipselabels", "stem"),
        region({"x": 1, "y": 1, "width": 1}, "keypointlabels", "fruit"),
        {"type": "choices", "value": {"choices": ["blurred"]}},
    ]
    expected = np.zeros((8, 16), np.uint8)
    expected[:, :10] = 1
    expected[2:6, 2:6] = 2
    expected[3, 3] = 255
    expected[4:8, 6:8] = 3  # 4 wide and 2 high, turned clockwise about its corner (8, 4)
    y, x = np.mgrid[:8, :16] + 0.5
    expected[(x - 12) ** 2 + (y - 4) ** 2 < 4] = 2
    np.testing.assert_array_equal(label_studio.decode(result, IDS, 8, 16).target, expected)


def test_a_tag_of_its_own_for_labels():
    outline = box(0, 0, 3, 3)["value"]["points"]
    result = [
        {"id": "x", "type": "polygon", "value": {"points": outline}},
        {"id": "x", "type": "labels", "value": {"points": outline, "labels": ["stem"]}},
    ]
    assert (label_studio.decode(result, IDS, 8, 16).target == 2).sum() == 9


# --- exports -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"image": "/data/local-files/?d=images/field%201.jpg"}, "images/field 1.jpg"),
        ({"photo": "https://example.com/images/%C3%A9.jpg?x=1"}, "images/é.jpg"),
        ({"n": 3, "image": "/data/upload/12/0a1b2c3d-f_001.jpg"}, "f_001.jpg"),
        ({"image": "s3://bucket/0a1b2c3d-f_001.jpg"}, "0a1b2c3d-f_001.jpg"),
    ],
)
def test_images_of_every_storage(data, name):
    assert image_name(data) == name


def test_the_annotation_that_counts(tmp_path):
    root = exported(
        tmp_path,
        {
            "data": {"image": "/data/upload/1/0a1b2c3d-a.png"},
            "annotations": [
                {"result": [box(0, 0, 2, 2)], "updated_at": "2026-03-01T10:00:00Z"},  # the latest need not come last
                {"result": [box(0, 0, 1, 1)], "updated_at": "2026-02-01T10:00:00Z"},
                {"result": [box(0, 0, 3, 3)], "updated_at": "2026-04-01T10:00:00Z", "was_cancelled": True},
            ],
        },
        {
            "data": {"image": "https://example.com/images/b.png"},
            "annotations": [
                {"result": [box(0, 0, 1, 1)], "updated_at": "2026-02-01T10:00:00Z", "ground_truth": True},
                {"result": [box(0, 0, 4, 4)], "updated_at": "2026-05-01T10:00:00Z", "ground_truth": False},
            ],
            "predictions": [{"result": [box(0, 0, 5, 5)]}],
        },
        task("/data/local-files/?d=images/val/a%20b.png", []),
        {"data": {"image": "/data/local-files/?d=images/c.png"}, "predictions": [{"result": [box(0, 0, 5, 5)]}]},
        task("/data/local-files/?d=images/elsewhere.png", [box(0, 0, 1, 1)]),
        images=("images/a.png", "images/b.png", "images/c.png", "images/val/a b.png"),
    )
    dataset = Folder(root)
    labeled = {
        id: dataset.read_target(id) for part in ("train", "val") for id in dataset.ids(part) if dataset.mask_path(id)
    }
    assert {id: int((mask == 1).sum()) for id, mask in labeled.items()} == {
        "images/a.png": 4,
        "images/b.png": 1,
        "images/val/a b.png": 0,
    }
    assert dataset.ids("val") == ["images/val/a b.png"]
    (root / "halfmask.yaml").unlink()
    assert Folder(root).task.classes == ("background", "leaf")


@pytest.mark.parametrize(
    ("result", "code", "told"),
    [
        ([{"type": "brushlabels", "value": {"format": "rle", "rle": [1], "brushlabels": ["leaf"]}}], "H208", "COCO"),
        ([box(0, 0, 1, 1, "tree")], "H203", "'tree'.*Add it to `classes`"),
        ([box(0, 0, 1, 1) | {"image_rotation": 90}], "H201", "turn it back"),
        ([region({"points": [[0, 0], [1, 1], [2, 0]], "labels": ["stem"]})], "H201", "2 classes"),
        ([{"type": "polygon", "value": {"points": [[0, 0], [1, 1], [2, 0]]}}], "H201", "no classes"),
        ([box(0, 0, 1, 1), {"type": "polygon", "value": {"points": [[0, 0], [1, 1]]}}], "H201", "no classes"),
        ([region({"x": 1, "y": 1, "height": 9}, "rectanglelabels")], "H201", "no 'width'. Mend it in Label Studio"),
    ],
)
def test_regions_that_cannot_be_read_are_refused(result, code, told, tmp_path):
    dataset = Folder(exported(tmp_path, task("/data/local-files/?d=images/a.png", result)))
    with pytest.raises(DataError, match=told) as caught:
        dataset.read_target("images/a.png")
    assert caught.value.code == code
    assert "export.json" in str(caught.value)


@pytest.mark.parametrize(
    ("tasks", "code", "told"),
    [
        ([task("x/a.png") | {"predictions": [{"result": [box(0, 0, 1, 1)]}]}], "H208", "submit them"),
        ([{"image": "a.png", "label": [{"polygonlabels": ["leaf"]}]}], "H208", "not JSON-MIN"),
        ([task("a.png", []), task("a.png", [])], "H208", "two annotated tasks"),
        ([task("a.png", []), 1], "H208", "no list of tasks"),
        ([{"data": ["a.png"], "annotations": [{"result": []}]}], "H208", "no list of tasks"),
        ([{"data": {"image": "a.png"}, "annotations": [3]}], "H208", "no list of tasks"),
        ([{"data": {"image": "a.png"}, "annotations": 3}], "H208", "no list of tasks"),
        ([task("b.png", [])], "H208", "Copy its images"),
        ([task("/data/upload/1/0a1b2c3d-c.png", [])], "H208", "fits images/"),
    ],
)
def test_exports_that_cannot_be_used_are_refused(tasks, code, told, tmp_path):
    exported(tmp_path, *tasks, images=("images/a.png", "images/1/c.png", "images/2/c.png"))
    with pytest.raises(DataError, match=told) as caught:
        Folder(tmp_path)
    assert caught.value.code == code


def test_of_images_of_one_name_the_folders_tell(tmp_path):
    images = ("images/1/c.png", "images/2/c.png", "images/2/deep/1/c.png")
    root = exported(tmp_path, task("s3://bucket/field/2/c.png", [box(0, 0, 3, 3)]), images=images)
    dataset = Folder(root)
    assert [id for id in images if dataset.mask_path(id)] == ["images/2/c.png"]
    assert (dataset.read_target("images/2/c.png") == 1).sum() == 9


def test_exports_of_two_tools_are_refused(tmp_path):
    exported(tmp_path, task("a.png", []))
    (tmp_path / "coco.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    with pytest.raises(DataError, match=r"coco.json \(coco json\) and export.json \(label studio\)") as caught:
        Folder(tmp_path)
    assert caught.value.code == "H208"


# --- corrections come back ---------------------------------------------------------------------------------------


def test_an_export_of_label_studio(tmp_path):
    """In the form in which Label Studio 1.23 exports JSON: much more than is read stands around the regions."""
    drawn = [
        ("leaf", [(0, 0), (10, 0), (10, 8), (0, 8)]),
        ("ground", [(2, 2), (6, 2), (6, 6), (2, 6)]),  # a hole
        ("stem", [(8, 1), (14, 1), (14, 3), (8, 3)]),
    ]
    result = [
        {
            "original_width": 16,
            "original_height": 8,
            "image_rotation": 0,
            "value": {
                "points": [[100 * x / 16, 100 * y / 8] for x, y in corners],
                "closed": True,
                "polygonlabels": [label],
            },
            "id": f"kQ3{number}fWzPbT",
            "from_name": "label",
            "to_name": "image",
            "type": "polygonlabels",
            "origin": "manual",
        }
        for number, (label, corners) in enumerate(drawn)
    ]
    stamps = {"created_at": "2026-05-04T09:12:30.120000Z", "updated_at": "2026-05-04T09:14:02.480000Z"}
    annotation = {
        "id": 7, "completed_by": 1, "result": result, "was_cancelled": False, "ground_truth": False, **stamps,
        "draft_created_at": "2026-05-04T09:12:41.010000Z", "lead_time": 92.4, "prediction": {}, "result_count": 3,
        "unique_id": "0c9f1f6e-6f0b-4f39-8f0e-5f2a3f1d7a55", "import_id": None, "last_action": None,
        "bulk_created": False, "task": 21, "project": 3, "updated_by": 1, "parent_prediction": None,
        "parent_annotation": None, "last_created_by": None,
    }  # fmt: skip
    more = {
        "drafts": [], "predictions": [], "meta": {}, **stamps, "inner_id": 1,
        "total_annotations": 1, "cancelled_annotations": 0, "total_predictions": 0, "comment_count": 0,
        "unresolved_comment_count": 0, "last_comment_updated_at": None, "project": 3, "updated_by": 1,
        "comment_authors": [],
    }  # fmt: skip
    image = {"image": "/data/upload/3/5b1d77aa-a.png"}
    exported_task = {"id": 21, "annotations": [annotation], "file_upload": "5b1d77aa-a.png", "data": image, **more}
    (tmp_path / "project-3.json").write_text(json.dumps([exported_task]))
    (tmp_path / "halfmask.yaml").write_text("classes: [ground, leaf, stem]\n")
    assert convert(tmp_path / "project-3.json", tmp_path / "out") == 1
    expected = [
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0, 0],
        [1, 1, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 0, 0],
        [1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
    ]
    assert read_stored(tmp_path / "out/a.png").values.tolist() == expected


@pytest.mark.parametrize("first", ["ground", "background"])
@pytest.mark.parametrize("to", ["label_studio", "coco", "labelme"])
def test_what_we_write_is_converted_back_without_its_images(to, first, tmp_path):
    maps = {"x/im 0": NESTED, "x/im 1": NESTED[::-1].copy(), "blank": NESTED * 0}
    for name, mask in maps.items():
        save(tmp_path / f"masks/{name}.png", mask)
    colors = "['#102030', '#405060', '#708090', '#a0b0c0']"
    (tmp_path / "masks/halfmask.yaml").write_text(f"classes: [{first}, stem, leaf, fruit]\npalette: {colors}\n")
    convert(tmp_path / "masks", tmp_path / "out", to=to)
    file = {"coco": "annotations.json", "label_studio": "tasks.json"}.get(to, "")
    assert convert(tmp_path / "out" / file, tmp_path / "back") == len(maps)
    assert (tmp_path / "back/halfmask.yaml").read_text() == (tmp_path / "out/halfmask.yaml").read_text()
    others = f"data.dataset.classes=[{first}, fruit, leaf, stem]"
    convert(tmp_path / "out" / file, tmp_path / "named", overrides=[others])
    assert read_stored(tmp_path / "named/x/im 0.png").values[1, 1] == 3  # a stem, by another number
    for name, mask in maps.items():
        np.testing.assert_array_equal(read_stored(tmp_path / f"back/{name}.png").values, mask)


def test_the_size_of_an_empty_annotation_is_that_of_its_image(tmp_path):
    root = exported(tmp_path, task("images/a.png", []))
    assert Folder(root).read_target("images/a.png").shape == (8, 16)
    (root / "images/a.png").unlink()
    with pytest.raises(DataError, match="not there to tell its size"):
        convert(root / "export.json", tmp_path / "out")


def test_images_without_an_annotation_are_named(tmp_path, capsys):
    images = [{"id": number, "file_name": f"{number}.png", "height": 8, "width": 16} for number in range(5)]
    leaf = {"id": 1, "image_id": 0, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]], "iscrowd": 0}
    empty = leaf | {"id": 2, "image_id": 4, "category_id": 2}  # what the note tells people to draw
    categories = [{"id": 1, "name": "leaf"}, {"id": 2, "name": "background"}]
    path = tmp_path / "in/coco.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"images": images, "annotations": [leaf, empty], "categories": categories}))
    assert convert(path, tmp_path / "out") == 2
    assert "left out (3): 1.png, 2.png, 3.png. " in capsys.readouterr().err
    assert not read_stored(tmp_path / "out/4.png").values.any()
    for number in range(5):
        save(tmp_path / f"in/images/{number}.png", picture(number, (8, 16)))
    assert convert(tmp_path / "in", tmp_path / "out2") == 2
    assert "left out (3): images/1.png, " in capsys.readouterr().err
    assert convert(path, tmp_path / "out3", quiet=True) == 2
    assert capsys.readouterr().err == ""


def test_tasks_that_nobody_has_submitted_are_named(tmp_path, capsys):
    skipped = task("b.png", [box(0, 0, 1, 1)], was_cancelled=True)
    draft = {"data": {"image": "c.png"}, "predictions": [{"result": [box(0, 0, 5, 5)]}]}
    root = exported(tmp_path, task("a.png", [box(0, 0, 1, 1)]), skipped, draft, task("c.png", [box(0, 0, 2, 2)]))
    assert convert(root / "export.json", tmp_path / "out") == 2
    assert "left out (1): b.png. " in capsys.readouterr().err


def test_an_export_without_annotations_has_no_masks(tmp_path):
    images = [{"id": 1, "file_name": "a.png", "height": 8, "width": 16}]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    with pytest.raises(DataError, match="no image has an annotation") as caught:
        convert(path, tmp_path / "out")
    assert caught.value.code == "H210"
