"""Outlines of class maps, and every format of annotation tools: what is written reads back to the pixel."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from halfmask.data.annotations import fill, geojson, labelme, polygons
from halfmask.data.annotations.coco.read import CocoFile
from halfmask.data.annotations.coco.regions import decode_region, run_lengths
from halfmask.data.annotations.coco.write import CocoWriter
from halfmask.data.annotations.drawing import labels_of
from halfmask.data.annotations.label_studio import image_name
from halfmask.data.check import take_fingerprint
from halfmask.data.convert.convert import FORMATS, convert, write_outlines
from halfmask.data.datasets.folder import Folder
from halfmask.data.folder.images.ground import Ground
from halfmask.errors import DataError, RecipeError
from halfmask.recipe.read import load
from halfmask.task import Task
from tests.data.broken import picture, save

NESTED = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 1, 1, 255],
        [0, 1, 0, 0, 0, 2, 1, 0],
        [0, 1, 0, 3, 0, 2, 1, 0],
        [0, 1, 0, 0, 0, 2, 1, 2],
        [0, 1, 1, 1, 1, 1, 1, 0],
        [255, 0, 2, 0, 1, 0, 0, 2],
    ],
    dtype=np.uint8,
)
CLASSES = ("background", "leaf", "stem", "fruit")


def random_maps(count, classes=4, ignore=True):
    rng = np.random.default_rng(1)
    for _ in range(count):
        height, width = rng.integers(1, 16, 2)
        mask = rng.integers(0, classes, (height, width)).astype(np.uint8)
        if rng.random() < 0.5:  # larger regions, with holes
            mask = np.repeat(np.repeat(mask, 3, axis=0), 2, axis=1)
        if ignore:
            mask[rng.random(mask.shape) < 0.1] = 255
        yield mask


# --- outlines ----------------------------------------------------------------------------------------------------


def test_outlines_fill_to_the_same_map_and_no_pixel_belongs_to_two():
    for mask in [NESTED, *random_maps(60)]:
        painted = np.zeros(mask.shape, dtype=np.int64)
        times = np.zeros(mask.shape, dtype=np.int64)
        for region in polygons(mask):
            patch = fill([region.exterior, *region.holes], *mask.shape)
            assert patch.area == region.area
            patch.paint(painted, region.value)
            times += patch.whole(*mask.shape)
        np.testing.assert_array_equal(painted, mask)
        np.testing.assert_array_equal(times, 1)


def test_regions_are_those_of_an_independent_labeling():
    ndimage = pytest.importorskip("scipy.ndimage")
    for mask in random_maps(40, classes=3, ignore=False):
        counts = sum(ndimage.label(mask == value)[1] for value in range(3))
        regions = polygons(mask)
        assert len(regions) == counts
        for value in range(3):
            labels = ndimage.label(mask == value)[0]
            areas = sorted(np.bincount(labels.ravel())[1:].tolist())
            assert sorted(region.area for region in regions if region.value == value) == areas


def test_an_outline_turns_at_each_of_its_corners_and_runs_clockwise():
    for mask in [NESTED, *random_maps(10)]:
        for region in polygons(mask):
            for ring, sign in [(region.exterior, 1), *((hole, -1) for hole in region.holes)]:
                steps = np.roll(ring, -1, axis=0) - ring
                assert ((steps == 0).sum(axis=1) == 1).all()  # along one axis at a time
                turns = steps[:, 0] * np.roll(steps, -1, axis=0)[:, 1] - steps[:, 1] * np.roll(steps, -1, axis=0)[:, 0]
                assert (turns != 0).all()
                assert np.sign(np.sign(turns).sum()) == sign


def test_pixels_that_touch_at_a_corner_are_two_regions_and_their_hole_is_one():
    assert len(polygons(np.eye(2, dtype=np.int64), skip=[0])) == 2
    ring = np.ones((4, 4), dtype=np.int64)
    ring[1, 1] = ring[2, 2] = 0
    (region,) = polygons(ring, skip=[0])
    assert sum(len(hole) for hole in region.holes) == 8


def test_an_empty_map_and_a_skipped_one_have_no_outlines():
    assert polygons(np.zeros((0, 5), dtype=np.uint8)) == []
    assert polygons(np.zeros((4, 5), dtype=np.uint8), skip=[0]) == []


def test_filling_agrees_with_pillow_on_triangles_away_from_pixel_centers():
    """Every pixel whose center is clearly inside is filled, and none that is clearly outside."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        triangle = rng.uniform(-5, 35, (3, 2))
        ours = fill([triangle], 30, 30).whole(30, 30)
        x, y = np.meshgrid(np.arange(30) + 0.5, np.arange(30) + 0.5)
        sides = []
        for (ax, ay), (bx, by) in zip(triangle, np.roll(triangle, -1, axis=0), strict=True):
            sides.append((bx - ax) * (y - ay) - (by - ay) * (x - ax))
        inside = (np.array(sides) > 0).all(axis=0) | (np.array(sides) < 0).all(axis=0)
        np.testing.assert_array_equal(ours, inside)


def test_fewer_than_three_points_are_no_polygon():
    with pytest.raises(ValueError, match="2 points"):
        fill([np.array([[0, 0], [1, 1]])], 4, 4)


# --- COCO --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_run_lengths_read_back_exactly():
    for mask in random_maps(40, ignore=False):
        for region in (mask == 1, mask >= 0, mask < 0):
            code = json.loads(json.dumps(run_lengths(region)))
            np.testing.assert_array_equal(decode_region(code, *region.shape), region)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_polygons_mean_the_same_to_the_reference_code():
    coco = pytest.importorskip("pycocotools.mask")
    for mask in random_maps(40, classes=3, ignore=False):
        for region in polygons(mask):
            if not region.holes and region.area:
                points = [region.exterior.ravel().astype(float).tolist()]
                drawn = coco.decode(coco.merge(coco.frPyObjects(points, *mask.shape))).astype(bool)
                np.testing.assert_array_equal(drawn, fill([region.exterior], *mask.shape).whole(*mask.shape))


@pytest.mark.parametrize("geometry", ["polygon", "rle"])
def test_coco_json_reads_back_exactly(geometry, tmp_path):
    writer = CocoWriter(CLASSES, geometry)
    maps = {f"{number}.png": mask for number, mask in enumerate([NESTED, *random_maps(20)])}
    for name, mask in maps.items():
        writer.add(name, mask)
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(writer.content()))
    file = CocoFile(path, {name: id for id, name in enumerate(CLASSES)})
    for name, mask in maps.items():
        np.testing.assert_array_equal(file.draw(name).target, mask)


# --- labelme and GeoJSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [labelme, geojson])
@pytest.mark.parametrize("classes", [CLASSES, ("ground", "leaf", "stem", "fruit")])
def test_outline_files_read_back_exactly(module, classes):
    ids = {name: id for id, name in enumerate(classes)}
    for mask in [NESTED, *random_maps(30)]:
        extra = ("../images/a.png",) if module is labelme else ()
        content = json.loads(json.dumps(module.encode(mask, classes, *extra)))
        np.testing.assert_array_equal(module.decode(content, ids, *mask.shape).target, mask)
        assert labels_of(module.shapes_in(content)) <= set(classes)


def signed_area(ring):
    x, y = (np.asarray(ring) - ring[0]).T
    return (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2


PLACES = {
    "metric system": {"crs": "EPSG:32640", "transform": (0.5, 0.0, 330_000.0, 0.0, -0.5, 2_780_000.0)},
    "turned": {"crs": "EPSG:3857", "transform": (0.3, 0.1, 6_100_000.0, 0.1, -0.3, 2_900_000.0)},
    "degrees": {"crs": "EPSG:4326", "transform": (1e-6, 0.0, -58.4, 0.0, -1e-6, -34.6)},
    "no system": {"transform": (0.5, 0.0, 1000.0, 0.0, -0.5, 2000.0)},
}


@pytest.mark.parametrize("place", PLACES)
def test_geojson_of_a_geotiff_is_on_earth_and_reads_back_exactly(place, tmp_path):
    rasterio, warp = pytest.importorskip("rasterio"), pytest.importorskip("rasterio.warp")
    where = dict(PLACES[place])
    where["transform"] = rasterio.Affine(*where["transform"])
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    height, width = NESTED.shape
    image = tmp_path / "images/field.tif"
    with rasterio.open(image, "w", driver="GTiff", count=3, height=height, width=width, dtype="uint8", **where) as out:
        out.write(np.zeros((3, height, width), np.uint8))
    corners = [where["transform"] * corner for corner in [(0, 0), (width, 0), (0, height), (width, height)]]
    if "crs" in where:
        corners = list(zip(*warp.transform(where["crs"], "EPSG:4326", *zip(*corners, strict=True)), strict=True))
    (west, south), (east, north) = np.min(corners, axis=0), np.max(corners, axis=0)
    content = geojson.encode(NESTED, CLASSES, Ground(image).of_pixels)
    rings = [feature["geometry"]["coordinates"] for feature in content["features"]]
    points = np.concatenate([np.asarray(ring) for part in rings for ring in part])
    assert (points >= np.array([west, south]) - 1e-7).all()
    assert (points <= np.array([east, north]) + 1e-7).all()
    # RFC 7946, section 3.1.6: outer rings run counter-clockwise, holes clockwise
    assert all(signed_area(part[0]) > 0 and all(signed_area(hole) < 0 for hole in part[1:]) for part in rings)
    (tmp_path / "masks/field.geojson").write_text(json.dumps(content))
    (tmp_path / "halfmask.yaml").write_text(f"classes: [{', '.join(CLASSES)}]\n")
    dataset = Folder(tmp_path)
    np.testing.assert_array_equal(dataset.read_target("images/field.tif"), NESTED)
    if place == "metric system":  # pixels, where places on Earth are expected
        (tmp_path / "masks/field.geojson").write_text(json.dumps(geojson.encode(NESTED, CLASSES)))
        with pytest.raises(DataError, match="longitude and latitude"):
            dataset.read_target("images/field.tif")


def test_predictions_of_a_geotiff_come_as_geojson_of_its_place(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    from halfmask.infer.bundle import save_bundle
    from halfmask.infer.predict.predict import predict
    from tests.run.toy import THREE, small_model

    model = small_model()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    save_bundle(tmp_path / "run", model, THREE)
    place = {"crs": "EPSG:32640", "transform": rasterio.Affine(0.5, 0, 330_000, 0, -0.5, 2_780_000)}
    image = tmp_path / "field.tif"
    with rasterio.open(image, "w", driver="GTiff", count=3, height=40, width=48, dtype="uint8", **place) as out:
        out.write(np.moveaxis(np.asarray(picture(0)), 2, 0))
    predict(tmp_path / "run", image, tmp_path / "out", outlines="geojson", quiet=True)
    with rasterio.open(tmp_path / "out/field.tif") as mask:
        expected = mask.read(1)
    content = json.loads((tmp_path / "out/geojson/field.geojson").read_text())
    ids = {name: id for id, name in enumerate(THREE.classes)}
    painted = geojson.decode(content, ids, *expected.shape, to_pixels=Ground(image).to_pixels).target
    np.testing.assert_array_equal(painted, expected)
    assert len(np.unique(expected)) > 1
    convert(
        tmp_path / "out", tmp_path / "again", to="geojson", overrides=[f"data.dataset.classes={list(THREE.classes)}"]
    )
    assert json.loads((tmp_path / "again/field.geojson").read_text()) == content


def test_labelme_shapes_of_all_kinds():
    box = io.BytesIO()
    Image.fromarray(np.array([[1, 0], [1, 1]], dtype=bool)).save(box, "PNG")
    shapes = [
        {"label": "leaf", "shape_type": "rectangle", "points": [[6, 5], [2, 1]]},  # corners in any order
        {"label": "stem", "points": [[2, 1], [4, 1], [4, 3], [2, 3]]},  # old files lack shape_type; later is on top
        {"label": "fruit", "shape_type": "mask", "points": [[7, 6], [8, 7]], "mask": base64.b64encode(box.getvalue())},
        {"label": "_background_", "shape_type": "polygon", "points": [[5, 4], [6, 4], [6, 5], [5, 5]]},
        {"label": "__ignore__", "shape_type": "polygon", "points": [[0, 0], [1, 0], [1, 8], [0, 8]]},
        {"label": "leaf", "shape_type": "point", "points": [[9, 9]]},
        {"label": "fruit", "shape_type": "circle", "points": [[12, 4], [14.1, 4]]},
    ]
    target = labelme.decode({"shapes": shapes}, {name: id for id, name in enumerate(CLASSES)}, 8, 16).target
    expected = np.zeros((8, 16), dtype=np.uint8)
    expected[1:5, 2:6] = 1
    expected[1:3, 2:4] = 2
    expected[6:8, 7:9] = [[3, 0], [3, 3]]
    expected[4, 5] = 0
    expected[:, 0] = 255
    y, x = np.mgrid[:8, :16] + 0.5
    expected[(x - 12) ** 2 + (y - 4) ** 2 < 2.1**2] = 3
    np.testing.assert_array_equal(target, expected)


# --- folders -----------------------------------------------------------------------------------------------------


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
