"""labelme json: one file per image, shapes painted in their order, later ones on top.

labelme knows no holes: see `halfmask.data.annotations.layers`.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from halfmask.data.annotations.fill import Patch, fill
from halfmask.data.annotations.layers import BACKGROUND_LABEL, IGNORE_LABEL, id_of, label_of, layers

# Points and lines have no area.
_FLAT = {"point", "points", "line", "linestrip"}


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


def labels_in(content: Mapping[str, Any]) -> set[str]:
    """Names of the classes that a file's shapes carry."""
    shapes = [shape for shape in content.get("shapes", []) if shape.get("shape_type") not in _FLAT]
    return {str(shape["label"]) for shape in shapes} - {IGNORE_LABEL, BACKGROUND_LABEL}


def size_in(content: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the image as the annotator saw it, if the file tells them."""
    height, width = content.get("imageHeight"), content.get("imageWidth")
    return (int(height), int(width)) if height and width else None


def image_in(content: Mapping[str, Any]) -> str:
    """Path of the image, relative to the json file.

    Raises:
        KeyError: the file does not tell it.
    """
    return str(content["imagePath"]).replace("\\", "/")


def decode(content: Mapping[str, Any], ids: Mapping[str, int], height: int, width: int) -> UInt8[np.ndarray, "H W"]:
    """Paint the shapes of a file.

    Args:
        content: of the json file.
        ids: class name -> training id.
        height: of the upright image, which annotators see.
        width: likewise.

    Raises:
        ValueError: a shape without area, or of an unknown kind.
        KeyError: a shape without label or points.
        UnknownLabelError: a label that is no class.
    """
    target = np.zeros((height, width), dtype=np.uint8)
    for shape in content["shapes"]:
        if shape.get("shape_type") not in _FLAT:
            _patch(shape, height, width).paint(target, id_of(str(shape["label"]), ids))
    return target


def _patch(shape: Mapping[str, Any], height: int, width: int) -> Patch:
    points = np.asarray(shape["points"], dtype=np.float64).reshape(-1, 2)
    match shape.get("shape_type") or "polygon":
        case "polygon":
            return fill([points], height, width)
        case "rectangle":
            (x0, y0), (x1, y1) = points[0], points[-1]
            return fill([np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])], height, width)
        case "circle":
            center, radius = points[0], math.dist(points[0], points[1])
            angle = np.linspace(0, 2 * np.pi, max(32, int(4 * radius)), endpoint=False)
            return fill([center + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)], height, width)
        case "mask":
            with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as drawn:
                inside = np.array(drawn).astype(np.bool_)
            left, top = np.rint(points[0]).astype(int).tolist()
            inside = inside[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
            return Patch(max(0, top), max(0, left), inside)
    raise ValueError(f"a shape of kind {shape.get('shape_type')!r}")
