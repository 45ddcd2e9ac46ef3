"""GeoJSON (RFC 7946): one file per image, a feature per region, holes as inner rings, coordinates in pixels.

x runs to the right and y down from the upper left corner of the image, as QuPath writes them; the class is the
property `class`, or `classification.name`. `transform` turns pixels into other coordinates on writing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

from halfmask.data.annotations._contours import polygons
from halfmask.data.annotations._fill import fill
from halfmask.data.annotations.labelme import BACKGROUND_LABEL, IGNORE_LABEL
from halfmask.data.masks import IGNORE

# a, b, c, d, e, f of x' = a x + b y + c, y' = d x + e y + f, the order of rasterio's Affine.
Transform = tuple[float, float, float, float, float, float]
_NAME_KEYS = ("class", "label", "name", "category")


def encode(
    mask: Integer[np.ndarray, "H W"], classes: Sequence[str], transform: Transform | None = None
) -> dict[str, Any]:
    """Give the content of the file of one image.

    Args:
        mask: class ids, 255 = ignore.
        classes: names; regions of a first one called "background" are left out.
        transform: from pixels to the coordinates to write.
    """
    skip = {0} if classes and classes[0] in {"background", BACKGROUND_LABEL} else set()
    features = [
        {
            "type": "Feature",
            "properties": {
                "class": IGNORE_LABEL if region.value == IGNORE else classes[region.value],
                "class_id": region.value,
                "pixels": region.area,
            },
            "geometry": {
                "type": "Polygon",
                "coordinates": [_closed(ring, transform) for ring in (region.exterior, *region.holes)],
            },
        }
        for region in polygons(mask, skip=skip)
    ]
    return {"type": "FeatureCollection", "features": features}


def labels_in(content: Mapping[str, Any]) -> set[str]:
    """Names of the classes that a file's features carry."""
    return {_name(feature) for feature in _features(content)} - {IGNORE_LABEL, BACKGROUND_LABEL}


def decode(content: Mapping[str, Any], ids: Mapping[str, int], height: int, width: int) -> UInt8[np.ndarray, "H W"]:
    """Paint the polygons of a file in their order, later ones on top; points and lines have no area.

    Args:
        content: of the file.
        ids: class name -> training id.
        height: of the upright image.
        width: likewise.

    Raises:
        ValueError: no feature collection, or coordinates that are no pixels.
        KeyError: a class that is not known.
    """
    target = np.zeros((height, width), dtype=np.uint8)
    known = {IGNORE_LABEL: IGNORE, BACKGROUND_LABEL: 0} | dict(ids)
    for feature in _features(content):
        geometry = feature.get("geometry") or {}
        coordinates = geometry.get("coordinates", [])
        parts = {"Polygon": [coordinates], "MultiPolygon": coordinates}.get(str(geometry.get("type")), [])
        for part in parts:
            rings = [np.asarray(ring, dtype=np.float64)[:, :2] for ring in part]
            if any((ring[:, 0].min() < -1) or (ring[:, 1].min() < -1) for ring in rings):
                raise ValueError("negative coordinates: they are not pixels of the image")
            fill(rings, height, width).paint(target, known[_name(feature)])
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


def _closed(ring: np.ndarray, transform: Transform | None) -> list[list[int | float]]:
    points: list[list[int | float]] = np.concatenate([ring, ring[:1]]).tolist()
    if transform is None:
        return points
    a, b, c, d, e, f = transform
    return [[a * x + b * y + c, d * x + e * y + f] for x, y in points]
