"""GeoJSON (RFC 7946): one file per image, a feature per region, holes as inner rings.

Of a GeoTIFF the coordinates are longitude and latitude (`halfmask.data.folder.images.ground.Ground`). Of any other
image they are pixels: x runs to the right and y down from the upper left corner, as QuPath writes them. The class is
the property `class`, or `classification.name`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from halfmask.data.annotations.contours import polygons
from halfmask.data.annotations.drawing import OUTSIDE, Drawing, Shape, draw
from halfmask.data.annotations.layers import BACKGROUND_LABEL, clean, label_of
from halfmask.data.folder.masks.decode import IGNORE

# From points (x, y) to others.
Transform = Callable[[Float[np.ndarray, "N 2"]], Float[np.ndarray, "N 2"]]
_DIGITS = 10  # of a degree: a hundredth of a millimeter, so that corners of pixels come back exactly
_NAME_KEYS = ("class", "label", "name", "category")


def encode(
    mask: Integer[np.ndarray, "H W"],
    classes: Sequence[str],
    transform: Transform | None = None,
    ids: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Return the content of the file of one image.

    Args:
        mask: class ids, 255 = ignore.
        classes: names; regions of a first one called "background" are left out.
        transform: from pixels to the coordinates to write, y upwards.
        ids: what the classes are numbered as; by default their positions.
    """
    skip = {0} if classes and classes[0] in {"background", BACKGROUND_LABEL} else set()
    features = [
        {
            "type": "Feature",
            "properties": {
                "class": label_of(region.value, classes),
                "class_id": region.value if ids is None or region.value == IGNORE else ids[region.value],
                "pixels": region.area,
            },
            "geometry": {
                "type": "Polygon",
                "coordinates": [
                    _closed(region.exterior, transform, 1),
                    *(_closed(hole, transform, -1) for hole in region.holes),
                ],
            },
        }
        for region in polygons(mask, skip=skip)
    ]
    return {"type": "FeatureCollection", "features": features}


def decode(
    content: Mapping[str, Any],
    ids: Mapping[str, int],
    height: int,
    width: int,
    line_width: float | None = None,
    to_pixels: Transform | None = None,
) -> Drawing:
    """Draw the features of a file; `to_pixels` maps its coordinates, `None`: they are pixels. The rest is as of `draw`.

    Raises:
        ValueError: no feature collection, or coordinates that are no pixels of the image.
    """
    shapes = [_moved(shape, to_pixels) for shape in shapes_in(content)]
    drawing = draw(shapes, ids, height, width, line_width)
    outlines = sum(bool(shape.rings) for shape in shapes)
    lost = [(why, label) for (why, label), _ in drawing.left_out.items() if why == OUTSIDE]
    if outlines and sum(drawing.left_out[key] for key in lost) == len(shapes):
        system = "longitude and latitude (WGS 84)" if to_pixels is not None else "pixels, from the upper left corner"
        raise ValueError(f"no outline lies on its image: coordinates are {system} beside such an image")
    return drawing


def shapes_in(content: Mapping[str, Any]) -> Iterator[Shape]:
    """Return the features of a file in their order; several polygons of one are several shapes.

    Raises:
        ValueError: no feature collection.
    """
    kind = content.get("type")
    if kind not in {"Feature", "FeatureCollection"}:
        raise ValueError(f"a FeatureCollection is expected, not {kind!r}")
    for feature in [content] if kind == "Feature" else content.get("features", []):
        yield from _parts(clean(_name(feature)), feature.get("geometry") or {})


def _parts(label: str, geometry: Mapping[str, Any]) -> Iterator[Shape]:
    parts = geometry.get("coordinates") or []
    match geometry.get("type"):
        case "GeometryCollection":
            for inner in geometry.get("geometries", []):
                yield from _parts(label, inner)
        case "Polygon" | "MultiPolygon" as kind:
            for rings in [parts] if kind == "Polygon" else parts:
                yield Shape(label, rings=tuple(map(_points, rings)))
        case "LineString" | "MultiLineString" as kind:
            yield Shape(label, lines=tuple(map(_points, [parts] if kind == "LineString" else parts)))
        case _:
            yield Shape(label)


def _points(ring: Any) -> np.ndarray:
    return np.asarray(ring, dtype=np.float64).reshape(len(ring), -1)[:, :2]


def _moved(shape: Shape, to_pixels: Transform | None) -> Shape:
    if to_pixels is None:
        return shape
    rings, lines = (
        tuple(np.asarray(to_pixels(ring), dtype=np.float64).round(2) for ring in group)
        for group in (shape.rings, shape.lines)
    )
    return shape._replace(rings=rings, lines=lines)


def _name(feature: Mapping[str, Any]) -> str:
    said = feature.get("properties") or {}
    if isinstance(said.get("classification"), Mapping):
        return str(said["classification"].get("name"))
    return next((str(said[key]) for key in _NAME_KEYS if said.get(key) is not None), "object")


def _closed(ring: np.ndarray, transform: Transform | None, turn: int) -> list[list[int | float]]:
    """Close a ring; other coordinates than pixels run counter-clockwise (`turn` 1) or clockwise (-1), see RFC 7946."""
    closed = np.concatenate([ring, ring[:1]])
    if transform is None:
        pixels: list[list[int | float]] = closed.tolist()
        return pixels
    points = transform(closed.astype(np.float64))
    x, y = (points - points[0]).T
    area = x[:-1] @ y[1:] - x[1:] @ y[:-1]
    ordered = points if area * turn > 0 else points[::-1]
    moved: list[list[int | float]] = np.round(ordered, _DIGITS).tolist()
    return moved
