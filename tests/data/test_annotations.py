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
from halfmask.data.convert.convert import convert
from halfmask.data.datasets.folder import Folder
from halfmask.data.folder.images.ground import Ground
from halfmask.errors import DataError
from tests.data.broken import picture
from tests.data.maps import CLASSES, NESTED, random_maps

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
