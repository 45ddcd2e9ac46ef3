"""labelme json: one file per image, shapes painted in their order, later ones on top.

labelme knows no holes: see `halfmask.data.annotations.layers`. X-AnyLabeling writes the same form, with rectangles of
four corners and turned ones.
"""

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer
from PIL import Image

from halfmask.data.annotations.drawing import Drawing, Shape, box, draw, ellipse
from halfmask.data.annotations.fill import Patch
from halfmask.data.annotations.layers import clean, label_of, layers

_POLYGONS = {"polygon", "quadrilateral"}
_BOXES = {"rectangle", "rotation", "rotated_rectangle", "oriented_rectangle"}
_LINES, _POINTS = {"line", "linestrip"}, {"point", "points"}


def encode(mask: Integer[np.ndarray, "H W"], classes: Sequence[str], image_path: str) -> dict[str, Any]:
    """Return the content of the json file of one image.

    Class 0 is what no shape covers; it is drawn only where it lies inside another region.

    Args:
        mask: class ids, 255 = ignore.
        classes: names.
        image_path: of the image, relative to the json file.
    """
    height, width = mask.shape
    shapes = [
        {
            "label": label_of(id, classes),
            "points": outline.tolist(),
            "group_id": None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
        }
        for id, outline in layers(mask)
    ]
    return {
        "version": "5.0.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def size_in(content: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return height and width of the image as the annotator saw it, if the file tells them."""
    height, width = content.get("imageHeight"), content.get("imageWidth")
    return (int(height), int(width)) if height and width else None


def decode(
    content: Mapping[str, Any], ids: Mapping[str, int], height: int, width: int, line_width: float | None = None
) -> Drawing:
    """Draw the shapes of a file; arguments and errors as of `draw` and `shapes_in`."""
    return draw(shapes_in(content), ids, height, width, line_width)


def shapes_in(content: Mapping[str, Any]) -> Iterator[Shape]:
    """Return the shapes of a file in their order; those of a group (`group_id`) are one object, and drawn as others.

    Raises:
        ValueError: one of an unknown kind.
        KeyError: one without label or points.
    """
    for shape in content["shapes"]:
        label, kind = clean(shape["label"]), shape.get("shape_type") or "polygon"
        points = np.asarray(shape["points"], dtype=np.float64).reshape(-1, 2)
        if kind in _POINTS:
            yield Shape(label)
        elif kind in _LINES:
            yield Shape(label, lines=(points,))
        elif kind in _POLYGONS:
            yield Shape(label, rings=(points,))
        elif kind in _BOXES:
            yield Shape(label, rings=(box(points),))
        elif kind == "circle":
            radius = math.dist(points[0], points[1]) if len(points) > 1 else 0.0
            yield Shape(label, rings=(ellipse(points[0].tolist(), (radius, radius), max(32, int(4 * radius))),))
        elif kind == "mask":
            yield Shape(label, patch=_bitmap(shape["mask"], *np.rint(points[0]).astype(int).tolist()))
        else:
            raise ValueError(f"a shape of kind {kind!r}")


def _bitmap(coded: str | bytes, left: int, top: int) -> Patch:
    with Image.open(io.BytesIO(base64.b64decode(coded))) as drawn:
        return Patch(top, left, np.array(drawn).astype(np.bool_))
