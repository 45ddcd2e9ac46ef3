"""Ids of classes: what is written for a dataset has the ids of its masks, in every format, and back."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from halfmask.data.check import judge, take_fingerprint
from halfmask.data.convert.convert import FORMATS, convert, describe, mask_image
from halfmask.data.datasets.ade20k import ADE20K
from halfmask.data.datasets.cityscapes import LABEL_IDS, Cityscapes
from halfmask.data.datasets.coco import COCO
from halfmask.data.datasets.folder import Folder
from halfmask.data.folder.files import ids_of
from halfmask.data.folder.masks.decode import read_stored
from halfmask.data.folder.masks.ids import IdTable, id_meanings_in_png, read_id_meanings
from halfmask.data.splits.split import Split
from halfmask.data.splits.verify import verify
from halfmask.errors import DataError
from halfmask.infer.bundle import save_bundle
from halfmask.infer.predict.predict import predict
from halfmask.recipe.read import load
from halfmask.task import Task
from tests.data import trees
from tests.run.toy import small_model

# halfmask.yaml, and the stored values of class 0, 1, 2 and of unknown pixels (None: there is no such value)
TABLES = {
    "plain": ({"classes": {0: "background", 1: "leaf", 2: "stem"}}, (0, 1, 2, 255)),
    "from 1": ({"classes": {1: "ground", 2: "leaf", 3: "stem"}}, (1, 2, 3, 255)),
    "gaps": ({"classes": {0: "background", 7: "leaf", 200: "stem"}}, (0, 7, 200, 255)),
    "0 unknown": ({"classes": {1: "ground", 2: "leaf", 3: "stem"}, "ignore_index": 0}, (1, 2, 3, 0)),
    "map": ({"classes": {0: "ground", 1: "leaf", 2: "stem"}, "map": {1: 0, 2: 1, 3: 2, 0: 255}}, (1, 2, 3, 255)),
    "map of more": ({"classes": {0: "background", 1: "leaf", 2: "stem"}, "map": {9: 1}}, (0, 1, 2, 255)),
    "binary": ({"classes": {0: "background", 1: "leaf"}, "binary": True}, (0, 255)),
    "255 mapped": ({"classes": {0: "background", 1: "leaf"}, "map": {255: 1, 128: 255}}, (0, 1, 128)),
    "wide": ({"classes": {0: "ground", 300: "leaf", 41000: "stem"}, "ignore_index": 65535}, (0, 300, 41000, 65535)),
    "colors": (
        {"classes": {3: "ground", 4: "leaf", 9: "stem"}, "palette": {3: "#010203", 4: "#ff0000", 9: "#00ff00"}},
        (3, 4, 9, 255),
    ),
}
LAYOUTS = {
    "images+masks": ("images/{}.png", "masks/{}.png"),
    "parts": ("train/images/{}.png", "train/masks/{}.png"),
    "side by side": ("{}.png", "{}_mask.png"),
    "voc": ("JPEGImages/x{}.png", "SegmentationClass/x{}.png"),
}


def write(root: Path, table: str, layout: str, seed: int) -> list[np.ndarray]:
    """A folder of two masks in the ids of a table; returns them."""
    said, values = TABLES[table]
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True)
    (root / "halfmask.yaml").write_text(yaml.safe_dump(said))
    masks = []
    for name in range(2):
        image, mask = (root / pattern.format(name) for pattern in LAYOUTS[layout])
        height, width = rng.integers(3, 9, 2)
        trees.image(image, (height, width), seed=name)
        mask.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, len(values), (height, width))
        coarse[:2, :2] = np.arange(4).reshape(2, 2) % len(values)  # each value is there
        stored = np.array(values)[coarse]
        Image.fromarray(stored.astype(np.uint16 if stored.max() > 255 else np.uint8)).save(mask)
        masks.append(stored)
    return masks


CASES = [(table, "images+masks") for table in TABLES] + [("gaps", layout) for layout in list(LAYOUTS)[1:]]


@pytest.mark.parametrize(("table", "layout"), CASES)
def test_masks_survive_every_format_there_and_back_with_their_ids(table: str, layout: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    masks = write(root, table, layout, seed=len(table))
    expected = Folder(root)
    targets = [expected.read_target(id) for id in expected.ids("train")]
    ids = expected.id_table()
    assert [*ids.ids, ids.ignore][: len(TABLES[table][1])] == list(TABLES[table][1])
    for to in FORMATS if layout == "images+masks" else ("index", "coco"):
        there, back = tmp_path / to, tmp_path / f"{to} back"
        assert convert(root, there, to=to) == 2
        named = yaml.safe_load((there / "halfmask.yaml").read_text())["classes"]
        assert named == dict(zip((0, 1) if ids.binary else ids.ids, expected.task.classes, strict=True))
        if to == "index":  # byte for byte the ids of the masks themselves
            stored = [read_stored(path).values for path in sorted(there.rglob("*.png"))]
            for one, other in zip(stored, masks, strict=True):
                np.testing.assert_array_equal(one, other)
        source = there / {"coco": "annotations.json", "label_studio": "tasks.json"}.get(to, ".")
        if to == "geojson":  # coordinates alone: the sizes are those of the images
            for image in (root / "images").iterdir():
                (there / image.name).write_bytes(image.read_bytes())
        assert convert(source, back, to="index") == 2
        for path, other in zip(sorted(back.rglob("*.png")), masks, strict=True):
            np.testing.assert_array_equal(read_stored(path).values, other, err_msg=f"{to} {path.name}")
    again = tmp_path / "again"
    for id, path in zip(expected.ids("train"), sorted((tmp_path / "index").rglob("*.png")), strict=True):
        for target, origin in ((again / "images" / path.name, root / id), (again / "masks" / path.name, path)):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(origin.read_bytes())
    (again / "halfmask.yaml").write_bytes((root / "halfmask.yaml").read_bytes())
    read = Folder(again)  # put among the masks, with their own halfmask.yaml
    for id, target in zip(read.ids("train"), targets, strict=True):
        np.testing.assert_array_equal(read.read_target(id), target)


@pytest.mark.parametrize("table", TABLES)
def test_predictions_have_the_ids_of_the_masks_trained_on(table: str, tmp_path: Path) -> None:
    write(tmp_path / "data", table, "images+masks", seed=1)
    data = Folder(tmp_path / "data")
    save_bundle(tmp_path / "run", small_model(data.task), data.task, extra={"ids": ids_of(data), "nodata": 0})
    out = tmp_path / "out"
    black = np.zeros((40, 40, 3), np.uint8)
    black[:, :20] = np.random.default_rng(0).integers(1, 255, (40, 20, 3))  # half of it has no data
    (tmp_path / "in").mkdir()
    Image.fromarray(black).save(tmp_path / "in/a.png")
    predict(tmp_path / "run", tmp_path / "in", out, quiet=True, outlines="coco")
    for place, said in ((tmp_path / "among", tmp_path / "data"), (tmp_path / "beside", out)):
        origins = {
            "images/a.png": tmp_path / "in/a.png",
            "masks/a.png": out / "a.png",
            "halfmask.yaml": said / "halfmask.yaml",
        }
        for target, origin in origins.items():
            (place / target).parent.mkdir(parents=True, exist_ok=True)
            (place / target).write_bytes(origin.read_bytes())
    stored_ids = data.id_table()
    stored = read_stored(out / "a.png").values
    assert set(np.unique(stored).tolist()) <= {*stored_ids.ids, stored_ids.ignore}
    assert (stored[:, 20:] == stored_ids.ignore).all()
    beside = Folder(tmp_path / "beside")
    assert beside.task.classes == data.task.classes
    target = beside.read_target("images/a.png")
    assert (target[:, 20:] == 255).all()
    np.testing.assert_array_equal(target[:, :20], stored_ids.restore(stored)[:, :20])
    among = Folder(tmp_path / "among")
    if table == "binary":  # 0 and 255 are both classes there: nothing may stand for unknown, and nothing does silently
        with pytest.raises(DataError, match="values that are no class: 254"):
            among.read_target("images/a.png")
    else:
        np.testing.assert_array_equal(among.read_target("images/a.png"), target)
    content = json.loads((out / "coco/annotations.json").read_text())
    written = {category["name"]: category["id"] for category in content["categories"]}
    named = {name: id for name, id in zip(data.task.classes, stored_ids.ids, strict=True) if name != "background"}
    shift = min(named.values()) < 1  # no tool takes a category 0
    assert written == {name: id + shift for name, id in named.items()}


def test_public_datasets_have_their_own_ids(tmp_path: Path) -> None:
    assert Cityscapes(trees.cityscapes(tmp_path / "label ids")).id_table().ids == LABEL_IDS
    assert Cityscapes(trees.cityscapes(tmp_path / "train ids", train_ids=True)).id_table().ids == tuple(range(19))
    trees.image(tmp_path / "ade/images/training/a.jpg")
    trees.image(tmp_path / "ade/images/validation/b.jpg")
    trees.mask(tmp_path / "ade/annotations/training/a.png", (0, 1, 150))
    table = ADE20K(tmp_path / "ade").id_table()
    assert (table.ids, table.ignore) == (tuple(range(1, 151)), 0)
    trees.mask(tmp_path / "ade/annotations/training/a.png", (0, 1, 149, 255))
    assert ADE20K(tmp_path / "ade").id_table().ids == tuple(range(150))
    trees.image(tmp_path / "coco/train2017/000000000001.jpg")
    coco = COCO(tmp_path / "coco")
    assert coco.id_table().ids[-1] == 90
    assert len(coco.id_table().ids) == coco.task.n_classes
    (tmp_path / "coco/masks").mkdir()
    beside_masks = COCO(tmp_path / "coco").id_table()
    assert beside_masks.ids == tuple(range(81))
    assert beside_masks.categories == coco.id_table().ids


def test_categories_of_coco_json_keep_their_ids(tmp_path: Path) -> None:
    trees.image(tmp_path / "in/a.png", (4, 4))
    content = {
        "images": [{"id": 9, "file_name": "a.png", "height": 4, "width": 4}],
        "annotations": [{"id": 1, "image_id": 9, "category_id": id, "segmentation": [[x, 0, x + 1, 0, x + 1, 1, x, 1]]}
                        for id, x in ((18, 0), (3, 2))],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
    }  # fmt: skip
    (tmp_path / "in/annotations.json").write_text(json.dumps(content))
    convert(tmp_path / "in", tmp_path / "index")
    assert read_stored(tmp_path / "index/a.png").values[0].tolist() == [18, 0, 3, 0]
    convert(tmp_path / "index", tmp_path / "coco", to="coco")
    back = json.loads((tmp_path / "coco/annotations.json").read_text())
    assert [(c["id"], c["name"]) for c in back["categories"]] == [(3, "car"), (18, "dog")]


def test_masks_of_another_table_are_found(tmp_path: Path) -> None:
    task = Task("segmentation", ("bg", "a", "b"))
    trees.folder(tmp_path, labeled=4, unlabeled=1, values=(1, 2, 3))
    (tmp_path / "halfmask.yaml").write_text("classes: {1: bg, 2: a, 3: b}")

    def put(table: IdTable, task: Task) -> None:
        mask = np.ones((trees.H, trees.W), np.uint8)
        mask[0] = 2
        picture = mask_image(mask, ((0, 0, 0), (9, 9, 9), (7, 7, 7)), table)
        picture.save(tmp_path / "masks/im_0_mask.png", pnginfo=id_meanings_in_png(table, task))

    put(IdTable.plain(3), task)  # 1 and 2: both are ids here, of other classes
    assert read_id_meanings(tmp_path / "masks/im_0_mask.png") == {0: "bg", 1: "a", 2: "b", 255: None}
    with pytest.raises(DataError, match="1 is a there and bg here, 2 is b there and a here") as caught:
        Folder(tmp_path).read_target("images/im_0.png")
    assert caught.value.code == "H220"
    seen = take_fingerprint(load(None, {"data.root": str(tmp_path)}).data)
    (found,) = [one for one in judge(str(tmp_path), seen).findings if one.code == "H220"]
    assert (found.level, found.files) == ("error", ("masks/im_0_mask.png",))
    put(IdTable((1, 2, 3)), task)
    assert set(np.unique(Folder(tmp_path).read_target("images/im_0.png"))) == {1, 2}
    put(IdTable((1, 2, 3)), Task("segmentation", ("ground", "leaf", "b")))  # classes that were renamed since
    assert set(np.unique(Folder(tmp_path).read_target("images/im_0.png"))) == {1, 2}


def test_results_among_the_images_are_not_trained_on(tmp_path: Path) -> None:
    trees.folder(tmp_path, labeled=4, unlabeled=1)
    convert(tmp_path, tmp_path / "unlabeled", to="index")
    found = [one for one in judge(".", take_fingerprint(load(None, {"data.root": str(tmp_path)}).data)).findings]
    (error,) = [one for one in found if one.code == "H221"]
    assert (error.level, error.count) == ("error", 4)
    data = Folder(tmp_path)
    split = Split(tuple(data.ids("train")[:4]), (), tuple(data.ids("unlabeled")))
    with pytest.raises(DataError, match="lies among the images"):
        verify(data, split, data)


def test_a_bundle_of_before_means_training_ids() -> None:
    task = Task("segmentation", ("bg", "a"))
    assert IdTable.of_meta({}, task) == IdTable.of_meta({"ids": None}, task) == IdTable.plain(2)
    table = IdTable((1, 7), 0, categories=(1, 7))
    assert IdTable.of_meta(json.loads(json.dumps({"ids": table.to_meta()})), task) == table
    assert yaml.safe_load(describe(task, table)) == {
        "classes": {1: "bg", 7: "a"}, "ignore_index": 0, "palette": {1: "#000000", 7: "#800000", 0: "#ffffff"},
    }  # fmt: skip
