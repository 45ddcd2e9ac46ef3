"""Shapes of annotation tools: each is drawn as it was meant, or counted with its label; none is dropped unseen."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfmask.data.annotations import geojson, label_studio, labelme
from halfmask.data.annotations.drawing import FLAT, OUTSIDE
from halfmask.data.annotations.exports import similar_names
from halfmask.data.check import judge, take_fingerprint
from halfmask.data.convert.convert import convert
from halfmask.data.datasets.folder import Folder
from halfmask.data.splits.split import Split
from halfmask.data.splits.verify import verify
from halfmask.errors import DataError
from halfmask.recipe.read import load
from tests.data import trees

SIDE = 8
IDS = {"background": 0, "road": 1, "crack": 2}


def labelme_file(*shapes: tuple[str, str, list], size: int = SIDE) -> dict:
    made = [{"label": label, "shape_type": kind, "points": points} for kind, label, points in shapes]
    return {"shapes": made, "imagePath": "a.png", "imageHeight": size, "imageWidth": size}


def feature(kind: str, coordinates: list, label: str = "road") -> dict:
    return {"type": "Feature", "properties": {"class": label}, "geometry": {"type": kind, "coordinates": coordinates}}


def region(label: str, kind: str = "polygonlabels", **value: object) -> dict:
    return {"type": kind, "value": {**value, kind: [label]}}


def filled(top: int, bottom: int, left: int, right: int, value: int = 1) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[top:bottom, left:right] = value
    return mask


CORNERS = [[2, 1], [6, 1], [6, 5], [2, 5]]
ORDERS = {
    "two": ("rectangle", [[2, 1], [6, 5]]),
    "two, from below": ("rectangle", [[2, 5], [6, 1]]),
    "two, backwards": ("rectangle", [[6, 5], [2, 1]]),
    "three": ("rectangle", [[6, 1], [2, 1], [6, 5]]),
    "four": ("rectangle", CORNERS),
    "four, counter-clockwise": ("rectangle", CORNERS[::-1]),
    "four, rows": ("rectangle", [[2, 1], [6, 1], [2, 5], [6, 5]]),
    "four, columns": ("rectangle", [[2, 5], [2, 1], [6, 5], [6, 1]]),
    "five, closed": ("rectangle", [*CORNERS, CORNERS[0]]),
    "turned by nothing": ("rotation", [CORNERS[2], CORNERS[0], CORNERS[3], CORNERS[1]]),
}


@pytest.mark.parametrize("order", ORDERS)
def test_a_rectangle_is_the_same_whatever_the_order_and_number_of_its_corners(order: str) -> None:
    kind, points = ORDERS[order]
    drawing = labelme.decode(labelme_file((kind, "road", points)), IDS, SIDE, SIDE)
    np.testing.assert_array_equal(drawing.target, filled(1, 5, 2, 6))
    assert not drawing.left_out


def test_a_turned_rectangle_is_turned() -> None:
    diamond = [[4, 0], [8, 4], [4, 8], [0, 4]]
    for points in (diamond, [diamond[0], diamond[2], diamond[1], diamond[3]]):
        for kind in ("rotation", "rectangle", "polygon"):
            if kind == "polygon" and points is not diamond:
                continue  # of a polygon the order counts
            target = labelme.decode(labelme_file((kind, "road", points)), IDS, SIDE, SIDE).target
            assert [target[0].sum(), target[3].sum(), target.sum()] == [1, 7, 32]


def test_shapes_beyond_the_image_are_cut_at_its_edge_and_later_ones_lie_on_top() -> None:
    shapes = [
        ("polygon", "road", [[-5, -5], [4, -5], [4, 20], [-5, 20]]),
        ("rectangle", "crack", [[-3, 2], [2, 4]]),
        ("circle", "crack", [[8, 8], [10, 8]]),
    ]
    expected = filled(0, 8, 0, 4)
    expected[2:4, :2] = 2
    expected[6:, 6:] = [[0, 2], [2, 2]]
    drawing = labelme.decode(labelme_file(*shapes), IDS, SIDE, SIDE)
    np.testing.assert_array_equal(drawing.target, expected)
    assert not drawing.left_out
    turned = labelme.decode(labelme_file(*shapes[::-1]), IDS, SIDE, SIDE).target
    assert turned[2:4, :2].max() == 1


def test_a_mask_of_labelme_is_cut_too() -> None:
    import base64
    import io

    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(np.full((4, 4), 255, np.uint8)).save(data, "PNG")
    coded = base64.b64encode(data.getvalue()).decode()
    file = labelme_file(("mask", "road", [[-2, 6], [1, 9]]), ("mask", "crack", [[20, 0], [23, 3]]))
    for shape in file["shapes"]:
        shape["mask"] = coded
    drawing = labelme.decode(file, IDS, SIDE, SIDE)
    np.testing.assert_array_equal(drawing.target, filled(6, 8, 0, 2))
    assert drawing.left_out == {(OUTSIDE, "crack"): 1}


FLAT_ONES = {
    "labelme": lambda: labelme.decode(
        labelme_file(
            ("linestrip", "crack", [[0, 0], [4, 4], [7, 1]]), ("line", "crack", [[0, 0], [4, 4]]),
            ("point", "crack", [[3, 3]]), ("points", "crack", [[3, 3], [4, 4]]), ("circle", "crack", [[3, 3], [3, 3]]),
            ("polygon", "crack", [[1, 1], [2, 2]]), ("rectangle", "crack", [[1, 1], [1, 6]]),
            ("polygon", "crack", [[0, 0], [1, 1], [2, 2]]), ("polygon", "crack", [[1.1, 1.1], [1.3, 1.1], [1.2, 1.3]]),
            ("polygon", "road", [[9, 1], [12, 1], [12, 4]]),
        ), IDS, SIDE, SIDE,
    ),
    "geojson": lambda: geojson.decode(
        {"type": "FeatureCollection", "features": [
            *(feature("LineString", [[0, 0], [4, 4]], "crack") for _ in range(3)),
            feature("MultiLineString", [[[0, 0], [4, 4]]], "crack"), feature("Point", [3, 3], "crack"),
            feature("MultiPoint", [[3, 3]], "crack"), feature("Polygon", [[[0, 0], [1, 1], [0, 0]]], "crack"),
            {"type": "Feature", "properties": {"class": "crack"}, "geometry": None},
            {"type": "Feature", "properties": {"class": "crack"}, "geometry": {
                "type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [1, 1]}]}},
            feature("Polygon", [[[-9, 1], [-2, 1], [-2, 4], [-9, 1]]]),
        ]}, IDS, SIDE, SIDE,
    ),
    "label studio": lambda: label_studio.decode(
        [
            *(region("crack", "keypointlabels", x=3, y=3, width=1) for _ in range(3)),
            *(region("crack", points=[[1, 1], [50, 50]]) for _ in range(3)),
            region("crack", "vectorlabels", vertices=[{"x": 0, "y": 0}, {"x": 50, "y": 50}], closed=False),
            region("crack", "rectanglelabels", x=10, y=10, width=0, height=20),
            region("crack", "ellipselabels", x=10, y=10, radiusX=0, radiusY=20),
            region("road", points=[[110, 0], [120, 0], [120, 20]]),
        ], IDS, SIDE, SIDE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("tool", FLAT_ONES)
def test_shapes_without_area_and_outside_are_counted_with_their_labels(tool: str) -> None:
    drawing = FLAT_ONES[tool]()
    assert not drawing.target.any()
    assert drawing.left_out == {(FLAT, "crack"): 9, (OUTSIDE, "road"): 1}


def test_lines_are_drawn_with_the_width_that_is_given() -> None:
    line = [[1, 3], [7, 3], [7, 7]]
    expected = filled(2, 4, 1, 7, 2)
    expected[2:7, 6:8] = 2
    expected[2, 7] = 0  # of the round corner
    drawings = [
        labelme.decode(labelme_file(("linestrip", "crack", line)), IDS, SIDE, SIDE, 2.0),
        geojson.decode(feature("LineString", line, "crack"), IDS, SIDE, SIDE, 2.0),
        label_studio.decode(
            [region("crack", points=[[x * 12.5, y * 12.5] for x, y in line], closed=False)], IDS, SIDE, SIDE, 2.0
        ),
    ]
    for drawing in drawings:
        assert not drawing.left_out
        inner = drawing.target.copy()
        for row, column in ((2, 7), (2, 0), (3, 0), (7, 6), (7, 7)):  # round ends
            inner[row, column] = expected[row, column] = 0
        np.testing.assert_array_equal(inner, expected)


def test_holes_and_several_parts_of_geojson() -> None:
    outer = [[0, 0], [8, 0], [8, 8], [0, 8], [0, 0]]
    hole = [[2, 2], [6, 2], [6, 6], [2, 6], [2, 2]]
    expected = filled(0, 8, 0, 8)
    expected[2:6, 2:6] = 0
    np.testing.assert_array_equal(geojson.decode(feature("Polygon", [outer, hole]), IDS, SIDE, SIDE).target, expected)
    parts = {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": [hole]}]}
    content = feature("MultiPolygon", [[[[0, 0], [1, 0], [1, 1], [0, 0], [0, 1]]], [[[7, 7], [8, 7], [8, 8], [7, 8]]]])
    both = {"type": "FeatureCollection", "features": [content, {**content, "geometry": parts}]}
    target = geojson.decode(both, IDS, SIDE, SIDE).target
    assert (target[7, 7], target[2:6, 2:6].min(), target[6, 6]) == (1, 1, 0)


def test_outlines_that_all_lie_elsewhere_are_refused() -> None:
    content = {"type": "FeatureCollection", "features": [feature("Polygon", [[[-71, 42], [-70, 42], [-70, 43]]])] * 3}
    with pytest.raises(ValueError, match="no outline lies on its image: coordinates are pixels"):
        geojson.decode(content, IDS, SIDE, SIDE)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_coordinates_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="'road' with coordinates that are no numbers"):
        labelme.decode(labelme_file(("polygon", "road", [[0, 0], [value, 0], [4, 4]])), IDS, SIDE, SIDE)


def folder(root: Path, *shapes: tuple[str, str, list], size: int = SIDE) -> Path:
    for name in "ab":
        trees.image(root / f"{name}.png", (SIDE, SIDE), seed=ord(name))
        (root / f"{name}.json").write_text(json.dumps(labelme_file(*shapes, size=size)))
    return root


ROAD = ("polygon", "road", CORNERS)
CRACK = ("linestrip", "crack", [[0, 0], [7, 7]])


def findings(root: Path, code: str) -> list:
    seen = take_fingerprint(load(None, {"data.root": str(root)}).data)
    return [one for one in judge(str(root), seen).findings if one.code == code]


def test_check_train_and_convert_say_what_is_not_drawn(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = folder(tmp_path / "in", ROAD, CRACK, CRACK)
    (found,) = findings(root, "H160")
    assert found.level == "warning"
    assert "4 shapes without area in 2 images are not drawn: crack (4)" in found.message
    assert found.files == ("a.png", "b.png")
    assert "line_width" in found.cure
    for _ in range(2):  # also when the files are known to be good
        data = Folder(root)
        told = verify(data, Split(("a.png", "b.png"), (), ()), stamps=tmp_path / "stamps")
        assert any("crack (4)" in line for line in told)
    convert(root, tmp_path / "out")
    assert "note: 4 shapes without area" in capsys.readouterr().err
    convert(root, tmp_path / "quiet", quiet=True)
    assert capsys.readouterr().err == ""
    (root / "halfmask.yaml").write_text("line_width: 2")
    assert not findings(root, "H160")
    assert Folder(root).task.classes == ("background", "crack", "road")
    assert Folder(root).read_target("a.png")[7, 7] == 1


def test_a_file_that_was_made_for_another_size_is_not_drawn(tmp_path: Path) -> None:
    root = folder(tmp_path, ROAD, size=2 * SIDE)
    with pytest.raises(DataError, match=r"the mask is 16x16, its image a\.png is 8x8") as caught:
        Folder(root).read_target("a.png")
    assert caught.value.code == "H202"
    assert Folder(root, resize_masks=True).read_target("a.png").shape == (SIDE, SIDE)


def test_a_class_has_one_name_in_every_tool(tmp_path: Path) -> None:
    root = folder(tmp_path / "labelme", ("polygon", " road ", CORNERS), ("polygon", "road", CORNERS), ROAD)
    assert Folder(root).task.classes == ("background", "road")
    assert not findings(root, "H162")
    mixed = folder(tmp_path / "mixed", ROAD, ("polygon", "Road", CORNERS))
    (found,) = findings(mixed, "H162")
    assert "Road, road" in found.message
    (mixed / "halfmask.yaml").write_text("classes: [background, road]")
    with pytest.raises(DataError, match=r"'Road' names no class.*Did you mean `road`"):
        Folder(mixed).read_target("a.png")
    assert [one.labels for one in similar_names(["a-b", "A b", "c"])] == [("a-b", "A b")]
    for number, names in enumerate((["background", "Road", "road"], ["background", "Road", "path"])):  # of mask files
        drawn = tmp_path / f"drawn{number}"
        for part in ("images", "masks"):
            (drawn / part).mkdir(parents=True)
            Image.fromarray(np.full((SIDE, SIDE), 1 + (part == "masks"), dtype=np.uint8)).save(drawn / part / "a.png")
        (drawn / "halfmask.yaml").write_text(f"classes: {names}")
        assert len(findings(drawn, "H162")) == 1 - number
    for reader in (
        geojson.decode(feature("Polygon", [CORNERS], " road "), IDS, SIDE, SIDE),
        label_studio.decode(
            [region(" road ", points=[[25, 12.5], [75, 12.5], [75, 62.5], [25, 62.5]])], IDS, SIDE, SIDE
        ),
    ):
        np.testing.assert_array_equal(reader.target, filled(1, 5, 2, 6))
