"""The outlines of COCO annotations: polygons and run-length codes as masks, what is wrong with them, and back.

Polygons are filled as those of all tools are (`fill`). Run-length codes are those of pycocotools (extra `annotate`).
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Bool

from halfmask.data.annotations.drawing import has_area
from halfmask.data.annotations.fill import fill
from halfmask.errors import MissingExtraError

NO_CATEGORY = "of a category id that `categories` does not list: export again, with all categories"
_NO_OUTLINE = "with a box but no outline: export polygons or masks, or outline them; boxes are no masks"


def problem_of(annotation: Mapping[str, Any], image: Mapping[str, Any] | None) -> tuple[str, str]:
    """Say what is wrong with an annotation and what mends it, and an example; empty if nothing is."""
    found = annotation.get("segmentation")
    if isinstance(found, dict):
        size, counts = found.get("size"), found.get("counts")
        if not isinstance(counts, str | bytes | list) or not isinstance(size, list) or len(size) != 2:
            return "with a run-length code without `size` or `counts`: export them again", ""
        expected = [image.get("height"), image.get("width")] if image is not None else size
        if size != expected:
            what = "with a run-length code of another size than the image: export masks of the size of the images"
            return what, f", such as {size} in one of {expected}"
        if isinstance(counts, list) and sum(counts) != size[0] * size[1]:
            return "with a run-length code that does not fill the image: export them again", ""
        return "", ""
    polygons = _polygons(annotation) if isinstance(found, list) else None
    if not polygons or not any(polygons):
        return _NO_OUTLINE, ""
    if not all(isinstance(polygon, list) and len(polygon) % 2 == 0 for polygon in polygons) or not all(
        isinstance(value, int | float) for polygon in polygons for value in polygon[:1]
    ):
        return "with a polygon that is no list of x, y, x, y, ...: export them again", ""
    return "", ""


def _polygons(annotation: Mapping[str, Any]) -> list[list[Any]]:
    """Return the polygons; some tools write a single one without a list around it."""
    found = annotation["segmentation"]
    return [found] if found and isinstance(found[0], int | float) else list(found)


def rings_of(annotation: Mapping[str, Any]) -> list[np.ndarray]:
    """Return the points of the polygons of an annotation."""
    return [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in _polygons(annotation)]


def decode_region(segmentation: Any, height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """Turn polygons, or a run-length code (list or string), into a mask; polygons without area are left out.

    Raises:
        ValueError: a run-length code that does not fill the image, or coordinates that are no numbers.
        MissingExtraError: a run-length code, and pycocotools is not installed.
    """
    region = np.zeros((height, width), dtype=np.bool_)
    if not isinstance(segmentation, dict):
        for ring in rings_of({"segmentation": segmentation}):
            if not np.isfinite(ring).all():
                raise ValueError("a polygon with coordinates that are no numbers")
            region |= fill([ring], height, width).whole(height, width) if has_area([ring]) else False
        return region
    coco, counts = pycocotools(), segmentation["counts"]
    code = dict(segmentation) if isinstance(counts, str | bytes) else coco.frPyObjects(segmentation, height, width)
    region = np.asarray(coco.decode(code)).astype(np.bool_)
    given = code["counts"].encode() if isinstance(code["counts"], str) else code["counts"]
    if coco.encode(np.asfortranarray(region.astype(np.uint8)))["counts"] != given:  # pycocotools fills up short codes
        raise ValueError("a run-length code that does not fill the image")
    return region


def run_lengths(region: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """Encode a mask as compressed run lengths, down the columns first. Raises MissingExtraError."""
    code = pycocotools().encode(np.asfortranarray(region.astype(np.uint8)))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}


def pycocotools() -> ModuleType:
    """Return the module of run-length codes. Raises MissingExtraError: it is not installed."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise MissingExtraError("Run-length codes of COCO json", "annotate") from error
    module: ModuleType = mask
    return module
