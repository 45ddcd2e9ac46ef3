"""Masks through the formats of annotation tools and back: folders, masks alone, predictions."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from halfmask.data.annotations import geojson, labelme
from halfmask.data.annotations.coco.read import CocoFile
from halfmask.data.annotations.drawing import labels_of
from halfmask.data.annotations.label_studio import image_name
from halfmask.data.check import take_fingerprint
from halfmask.data.convert.convert import FORMATS, convert, write_outlines
from halfmask.data.datasets.folder import Folder
from halfmask.errors import DataError, RecipeError
from halfmask.recipe.read import load
from halfmask.task import Task
from tests.data.broken import picture, save
from tests.data.maps import CLASSES, NESTED


def source_folder(root, classes=CLASSES):
    """Images of three sizes with masks, in a training and a validation part."""
    maps = {}
    for number, mask in enumerate([NESTED, np.kron(NESTED, np.ones((2, 3), np.uint8)), NESTED[::-1]]):
        name = f"{'val' if number == 2 else 'train'}/im {number}"
        save(root / f"images/{name}.png", picture(number, mask.shape))
        save(root / f"masks/{name}.png", mask)
        maps[f"images/{name}.png"] = mask
    save(root / "images/train/unlabeled.png", picture(9))
    (root / "halfmask.yaml").write_text(f"classes: [{', '.join(classes)}]\n")
    return maps


def put_beside_the_images(out, to):
    """What holds the masks of all images lies in the folder, not in masks/."""
    if to in {"coco", "label_studio"}:
        (out / "masks/config.xml").unlink(missing_ok=True)
        for path in (out / "masks").iterdir():
            path.rename(out / path.name)
        (out / "masks").rmdir()


@pytest.mark.parametrize("classes", [CLASSES, ("ground", "leaf", "stem", "fruit")])
@pytest.mark.parametrize("to", FORMATS)
def test_a_converted_folder_trains_on_the_same_masks(to, classes, tmp_path):
    maps = source_folder(tmp_path / "in", classes)
    out = tmp_path / "out"
    assert convert(tmp_path / "in", out / "masks", to=to) == 3
    for id in [*maps, "images/train/unlabeled.png"]:
        path = out / id
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((tmp_path / "in" / id).read_bytes())
    (out / "masks/halfmask.yaml").rename(out / "halfmask.yaml")
    put_beside_the_images(out, to)
    dataset = Folder(out)
    assert dataset.task.classes == classes
    for id, mask in maps.items():
        np.testing.assert_array_equal(dataset.read_target(id), mask)
    labeled = [id for part in ("train", "val") for id in dataset.ids(part) if dataset.mask_path(id) is not None]
    assert sorted(labeled) == sorted(maps)
    if to != "coco":  # a json file says nothing of parts, but by its name
        assert dataset.ids("val") == ["images/val/im 2.png"]
    seen = take_fingerprint(load(None, {"data.root": str(out)}).data)
    assert [mask.error for mask in seen.masks.values()] == [None] * 3


def test_masks_alone_are_converted_too(tmp_path):
    save(tmp_path / "pred/a.png", np.kron(NESTED % 255, np.ones((2, 2), np.uint8)))
    assert convert(tmp_path / "pred", tmp_path / "out", to="labelme") == 1
    content = json.loads((tmp_path / "out/a.json").read_text())
    assert labels_of(labelme.shapes_in(content)) == {
        "class_0",
        "class_1",
        "class_2",
        "class_3",
    }  # class 0 inside the ring
    named = convert(tmp_path / "pred", tmp_path / "o2", to="geojson", overrides=["data.dataset.classes=[b, x, y, z]"])
    assert named == 1
    assert labels_of(geojson.shapes_in(json.loads((tmp_path / "o2/a.geojson").read_text()))) == {"b", "x", "y", "z"}


def test_the_images_of_masks_alone_are_found_by_name(tmp_path, capsys):
    for name in ("a", "val/b"):
        save(tmp_path / f"pred/{name}.png", NESTED)
    convert(tmp_path / "pred", tmp_path / "o1", to="labelme")
    assert "--images DIR" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"\(2 of 2\):\n  - a\.png\n  - val/b\.png") as caught:
        convert(tmp_path / "pred", tmp_path / "o2", to="labelme", images=tmp_path / "o1")
    assert caught.value.code == "H208"
    for name in ("day 1/a", "day 1/b", "val/b"):  # the one of the same folder counts
        save(tmp_path / f"in/{name}.jpg", picture(0, NESTED.shape))
    convert(tmp_path / "pred", tmp_path / "o2", to="labelme", images=tmp_path / "in")
    for name, image in {"a": "day 1/a", "val/b": "val/b"}.items():
        path = tmp_path / f"o2/{name}.json"
        named = (path.parent / json.loads(path.read_text())["imagePath"]).resolve()
        assert named == tmp_path / f"in/{image}.jpg"
    convert(tmp_path / "pred", tmp_path / "o3", to="coco", images=tmp_path / "in")
    written = json.loads((tmp_path / "o3/annotations.json").read_text())
    assert [image["file_name"] for image in written["images"]] == ["day 1/a.jpg", "val/b.jpg"]
    convert(tmp_path / "pred", tmp_path / "o4", to="label_studio", images=tmp_path / "in")
    written = json.loads((tmp_path / "o4/tasks.json").read_text())
    assert [image_name(task["data"]) for task in written] == ["day 1/a.jpg", "val/b.jpg"]
    assert not capsys.readouterr().err
    (tmp_path / "pred/val/b.png").rename(tmp_path / "pred/b.png")
    with pytest.raises(DataError, match=r"b\.png: day 1/b\.jpg, val/b\.jpg"):
        convert(tmp_path / "pred", tmp_path / "o5", to="coco", images=tmp_path / "in")
    with pytest.raises(RecipeError, match="--to index names no images"):
        convert(tmp_path / "pred", tmp_path / "o5", images=tmp_path / "in")


def test_a_label_that_is_no_class_is_named(tmp_path):
    maps = source_folder(tmp_path)
    convert(tmp_path, tmp_path / "new/masks", to="labelme")
    for id in maps:
        save(tmp_path / "new" / id, picture(1, maps[id].shape))
    dataset = Folder(tmp_path / "new", classes=["background", "leaf", "stem"])
    with pytest.raises(DataError, match=r"'fruit'.*Add it to `classes`") as caught:
        dataset.read_target("images/train/im 0.png")
    assert caught.value.code == "H203"


def labelme_alone(root, **keys):
    """Json files whose images lie beside them, in a folder beside theirs, and elsewhere."""
    paths = {"a": "a.jpg", "drawn/b": "..\\photos\\b 1.tif", "drawn/c": "../../far/c.jpg"}
    for name, image in paths.items():
        content = labelme.encode(NESTED, CLASSES, image) | keys
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.json").write_text(json.dumps({key: value for key, value in content.items() if value != ""}))
    return root


def test_labelme_json_alone_names_its_images(tmp_path):
    root = labelme_alone(tmp_path / "in")
    names = ["a.jpg", "photos/b 1.tif", "drawn/c.jpg"]
    convert(root, tmp_path / "coco", to="coco")
    written = json.loads((tmp_path / "coco/annotations.json").read_text())
    assert [image["file_name"] for image in written["images"]] == names
    convert(root, tmp_path / "tasks", to="label_studio")
    written = json.loads((tmp_path / "tasks/tasks.json").read_text())
    assert [image_name(task["data"]) for task in written] == names
    convert(root, tmp_path / "out/again", to="labelme")
    for name, image in {"a": "in/a.jpg", "drawn/b": "in/photos/b 1.tif", "drawn/c": "far/c.jpg"}.items():
        path = tmp_path / f"out/again/{name}.json"
        again = (path.parent / json.loads(path.read_text())["imagePath"]).resolve()
        assert again == (tmp_path / image).resolve()


@pytest.mark.parametrize(
    ("keys", "to", "told"),
    [
        ({"imageHeight": ""}, "index", "tells no size .*Copy the image there"),
        ({"imagePath": ""}, "coco", "no 'imagePath'.*Export it again"),
        ({"shapes": [{"label": "leaf"}]}, "index", "no 'points'.*Export it again"),
    ],
)
def test_labelme_json_alone_that_lacks_a_key(keys, to, told, tmp_path):
    with pytest.raises(DataError, match=told) as caught:
        convert(labelme_alone(tmp_path / "in", **keys), tmp_path / "out", to=to)
    assert caught.value.code == "H201"


def test_results_are_not_overwritten_and_mistakes_are_named(tmp_path):
    source_folder(tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out")
    with pytest.raises(DataError, match="--overwrite"):
        convert(tmp_path / "in", tmp_path / "out")
    assert convert(tmp_path / "in", tmp_path / "out", overwrite=True) == 3
    with pytest.raises(RecipeError, match="Did you mean `labelme`"):
        convert(tmp_path / "in", tmp_path / "out", to="labelmee")
    save(tmp_path / "photos/images/a.png", picture(1))
    save(tmp_path / "photos/masks/x/keep.txt.png", picture(1)).unlink()
    with pytest.raises(DataError, match="colors"):
        convert(tmp_path / "photos", tmp_path / "o3")
    same = "palette: {0: [0, 0, 0], 1: [9, 9, 9], 2: [9, 9, 9], 3: [1, 1, 1]}\n"
    (tmp_path / "in/halfmask.yaml").write_text(f"classes: [{', '.join(CLASSES)}]\n{same}")
    with pytest.raises(RecipeError, match="share a color"):
        convert(tmp_path / "in", tmp_path / "o4", to="color")


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("name", ["aerial_dubai", "facades"])
def test_real_masks_survive_every_format(name, to, shared, tmp_path):
    original = Folder(shared / "data" / name)
    ids = original.ids("train")[:4]
    for id in ids:
        path = tmp_path / "in" / id
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(original.root / id)
        mask = original.layout.masks[id]
        (tmp_path / "in" / mask).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / mask).symlink_to(original.root / mask)
    (tmp_path / "in/classes.txt").write_text((original.root / "classes.txt").read_text())
    out = tmp_path / "out"
    convert(tmp_path / "in", out / "masks", to=to)
    (out / "masks/halfmask.yaml").rename(out / "halfmask.yaml")
    for id in ids:
        (out / id).parent.mkdir(parents=True, exist_ok=True)
        (out / id).symlink_to(original.root / id)
    put_beside_the_images(out, to)
    dataset = Folder(out)
    for id in ids:
        np.testing.assert_array_equal(dataset.read_target(id), original.read_target(id))


@pytest.mark.parametrize("other", ["day 1/b.png", "day 1/a.png"])
def test_coco_names_predicted_images_by_as_little_as_tells_them_apart(other, tmp_path):
    rows = ["day 0/a.png", other]
    mask = save(tmp_path / "mask.png", NESTED)
    done = [(row, tmp_path / row, mask) for row in rows]
    write_outlines(done, tmp_path, "coco", Task("segmentation", CLASSES))
    content = json.loads((tmp_path / "coco/annotations.json").read_text())
    named = [image["file_name"] for image in content["images"]]
    assert named == (["a.png", "b.png"] if other == "day 1/b.png" else rows)


@pytest.mark.parametrize("to", ["labelme", "geojson", "coco"])
def test_predictions_come_as_outlines_that_fill_to_the_masks(to, tmp_path):
    from halfmask.infer.bundle import save_bundle
    from halfmask.infer.predict.predict import predict
    from tests.run.toy import THREE, small_model

    model = small_model()
    for parameter in model.parameters():  # untrained, it would say one class everywhere
        torch.nn.init.normal_(parameter, std=0.5)
    save_bundle(tmp_path / "run", model, THREE)
    for number in range(2):
        save(tmp_path / f"in/day {number}/im.png", picture(number))
    besides = {"overlay": True, "probabilities": True, "quiet": True}
    assert predict(tmp_path / "run", tmp_path / "in", tmp_path / "out", outlines=to, **besides) == 2
    for number in range(2):
        with Image.open(tmp_path / f"out/day {number}/im.png") as mask:
            expected = np.array(mask)
        assert len(np.unique(expected)) > 1
        ids = {name: id for id, name in enumerate(THREE.classes)}
        if to == "coco":
            file = CocoFile(tmp_path / "out/coco/annotations.json", ids)
            painted = file.draw(f"day {number}/im.png").target
        else:
            path = tmp_path / f"out/{to}/day {number}/im.{'json' if to == 'labelme' else 'geojson'}"
            content = json.loads(path.read_text())
            painted = {"labelme": labelme, "geojson": geojson}[to].decode(content, ids, *expected.shape).target
            if to == "labelme":  # opens in labelme from where it lies
                assert (path.parent / content["imagePath"]).resolve() == tmp_path / f"in/day {number}/im.png"
        np.testing.assert_array_equal(painted, expected)
    with pytest.raises(RecipeError, match="Did you mean `labelme`"):
        predict(tmp_path / "run", tmp_path / "in", tmp_path / "out", outlines="labelm", quiet=True)
    assert convert(tmp_path / "out", tmp_path / "again", to=to) == 2  # overlays and probabilities are no masks
