"""GeoJSON (RFC 7946): one file per image, a feature per region, holes as inner rings.

Of a GeoTIFF the coordinates are longitude and latitude (`halfmask.data.folder.geotiff.Ground`). Of any other image they
are pixels: x runs to the right and y down from the upper left corner, as QuPath writes them. The class is the property
`class`, or `classification.name`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, UInt8

from halfmask.data.annotations.contours import polygons
from halfmask.data.annotations.fill import fill
from halfmask.data.annotations.layers import BACKGROUND_LABEL, IGNORE_LABEL, id_of, label_of
from halfmask.data.folder.masks import IGNORE

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


def labels_in(content: Mapping[str, Any]) -> set[str]:
    """Names of the classes that a file's features carry."""
    return {_name(feature) for feature in _features(content)} - {IGNORE_LABEL, BACKGROUND_LABEL}


def decode(
    content: Mapping[str, Any],
    ids: Mapping[str, int],
    height: int,
    width: int,
    to_pixels: Transform | None = None,
) -> UInt8[np.ndarray, "H W"]:
    """Paint the polygons of a file in their order, later ones on top; points and lines have no area.

    Args:
        content: of the file.
        ids: class name -> training id.
        height: of the upright image.
        width: likewise.
        to_pixels: from the file's coordinates; `None`: they are pixels.

    Raises:
        ValueError: no feature collection, or coordinates that are no pixels of the image.
        UnknownLabelError: a class that is not known.
    """
    target = np.zeros((height, width), dtype=np.uint8)
    within = outside = 0
    for feature in _features(content):
        geometry = feature.get("geometry") or {}
        coordinates = geometry.get("coordinates", [])
        parts = {"Polygon": [coordinates], "MultiPolygon": coordinates}.get(str(geometry.get("type")), [])
        for part in parts:
            rings = [np.asarray(ring, dtype=np.float64)[:, :2] for ring in part]
            if to_pixels is not None:
                rings = [np.asarray(to_pixels(ring), dtype=np.float64).round(2) for ring in rings]
                apart = (rings[0] > (width, height)).all(0) | (rings[0] < 0).all(0)
                outside, within = outside + bool(apart.any()), within + (not apart.any())
            elif any((ring[:, 0].min() < -1) or (ring[:, 1].min() < -1) for ring in rings):
                raise ValueError("negative coordinates: they are not pixels of the image")
            fill(rings, height, width).paint(target, id_of(_name(feature), ids))
    if outside and not within:
        raise ValueError(
            "no outline lies on its image. Beside a GeoTIFF, coordinates are longitude and latitude (WGS 84)"
        )
    return target


def _features(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    kind = content.get("type")
    if kind == "Feature":
        return [content]
    if kind != "FeatureCollection":
        raise ValueError(f"a FeatureCollection is expected, not {kind!r}")
    return list(content.get("features", []))


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
