"""Label Studio: one json list of tasks, with polygons in percent of the image's sides, and its labeling configuration.

Its polygons have no holes: see `halfmask.data.annotations.layers`. Drafts are "predictions", which an annotator takes
over and corrects; masks that are labels already are "annotations". Reading paints regions in their order, later ones on
top. Finding the images of tasks: `halfmask.data.annotations.label_studio_tasks`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from jaxtyping import Integer, UInt8

from halfmask.data.annotations.fill import fill
from halfmask.data.annotations.layers import BACKGROUND_LABEL, IGNORE_LABEL, id_of, label_of, layers
from halfmask.errors import DataError
from halfmask.palette import Color, hex_color

LOCAL_FILES = "/data/local-files/?d="  # how Label Studio names a file below its LOCAL_FILES_DOCUMENT_ROOT
_DIGITS = 6  # of a percentage: less than a thousandth of a pixel in an image of 100,000
_CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])


class LabelStudioWriter:
    """Collects images, then gives the content of the json file: a task for each.

    Args:
        classes: names; class 0 is what no polygon covers.
        drafts: write predictions to be corrected, not annotations.
    """

    def __init__(self, classes: Sequence[str], *, drafts: bool = False) -> None:
        self.classes, self.drafts = tuple(classes), drafts
        self._tasks: list[dict[str, Any]] = []

    def add(self, image: str, mask: Integer[np.ndarray, "H W"]) -> None:
        """Add an image, by its path below the document root, with its class map (255 = ignore)."""
        height, width = mask.shape
        result = [
            {
                "id": f"{len(self._tasks) + 1}-{number}",
                "from_name": "label",
                "to_name": "image",
                "type": "polygonlabels",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {
                    "points": (outline * (100 / width, 100 / height)).round(_DIGITS).tolist(),
                    "closed": True,
                    "polygonlabels": [label_of(id, self.classes)],
                },
            }
            for number, (id, outline) in enumerate(layers(mask), 1)
        ]
        # The size is for tasks without regions, which do not tell it; exports keep it.
        task: dict[str, Any] = {"data": {"image": LOCAL_FILES + quote(image), "height": height, "width": width}}
        if self.drafts:
            task["predictions"] = [{"model_version": "halfmask", "result": result}]
        else:
            task["annotations"] = [{"result": result}]
        self._tasks.append(task)

    def content(self) -> list[dict[str, Any]]:
        """The whole file."""
        return self._tasks

    def configuration(self, colors: Sequence[Color]) -> str:
        """The labeling configuration of the project: one label per class, and one for unknown pixels."""
        labels = [*zip(self.classes, colors, strict=True), (IGNORE_LABEL, (255, 255, 255))]
        lines = (f'    <Label value={quoteattr(name)} background="{hex_color(color)}"/>\n' for name, color in labels)
        return (
            '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
            '  <PolygonLabels name="label" toName="image" strokeWidth="1" opacity="0.4">\n'
            f"{''.join(lines)}  </PolygonLabels>\n</View>\n"
        )


def labels_in(result: Sequence[Mapping[str, Any]]) -> set[str]:
    """Names of the classes that the regions of an annotation carry."""
    return {label for label, _ in _regions(result)} - {IGNORE_LABEL, BACKGROUND_LABEL}


def size_in(result: Sequence[Mapping[str, Any]], data: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the image as the annotator saw it, if a region or our own task tells them."""
    told = [(region.get("original_height"), region.get("original_width")) for region in result]
    told.append((data.get("height"), data.get("width")))
    return next(((int(height), int(width)) for height, width in told if height and width), None)


def decode(
    result: Sequence[Mapping[str, Any]], ids: Mapping[str, int], height: int, width: int
) -> UInt8[np.ndarray, "H W"]:
    """Paint the regions of an annotation: polygons, rectangles and ellipses. Key points have no area.

    Args:
        result: of one annotation.
        ids: class name -> training id.
        height: of the upright image, which annotators see.
        width: likewise.

    Raises:
        ValueError: a region without a class, or in a turned image.
        KeyError: a region without a number that its shape needs.
        UnknownLabelError: a label that is no class.
        DataError: a drawing of a brush.
    """
    target = np.zeros((height, width), dtype=np.uint8)
    for label, value in _regions(result):
        outline = _outline(value, height / width) * (width / 100, height / 100)
        fill([outline], height, width).paint(target, id_of(label, ids))
    return target


def _regions(result: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Give label and value of every region that has an area."""
    named = {region.get("id") for region in result if _labels(region)} - {None}
    for region in result:
        kind, value = str(region.get("type", "")), region.get("value") or {}
        if "rle" in value or kind.startswith(("brush", "bitmask")):
            raise DataError(
                "a region is painted with a brush; of this json only outlines are read. Export brushes from Label "
                'Studio as COCO ("Brush labels to COCO") or PNG, or draw polygons.',
                "H208",
            )
        if kind.startswith("keypoint") or not {"points", "x"} & value.keys():
            continue  # no area; or an answer about the whole image
        labels = _labels(region)
        if not labels and region.get("id") in named:
            continue  # the configuration has a tag of its own for labels: the outline comes again, with its label
        if len(labels) != 1:
            raise ValueError(f"a region with {len(labels) or 'no'} classes: give each one")
        if region.get("image_rotation"):
            raise ValueError("the image was turned in Label Studio: turn it back, and export again")
        yield labels[0], value


def _labels(region: Mapping[str, Any]) -> list[str]:
    value = region.get("value") or {}
    return [str(label) for key, found in value.items() if key.endswith("labels") for label in found]


def _outline(value: Mapping[str, Any], aspect: float) -> np.ndarray:
    """Corners in percent. A rectangle turns about its upper left corner, an ellipse about its center, by degrees.

    Args:
        value: of the region.
        aspect: height by width of the image: in percent of unlike sides, a turn is no turn.
    """
    if "points" in value:
        return np.asarray(value["points"], dtype=np.float64)
    if "radiusX" in value:
        angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
        around = np.stack([np.cos(angle), np.sin(angle)], axis=1) * (value["radiusX"], value["radiusY"])
    else:
        around = _CORNERS * (value["width"], value["height"])
    turn = np.deg2rad(value.get("rotation", 0))
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    square = (1.0, aspect)
    return np.asarray((around * square) @ rotation / square + (value["x"], value["y"]))
