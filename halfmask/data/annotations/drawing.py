"""Draw the shapes of annotation tools as class ids; count those that leave no pixel, instead of dropping them unseen.

Every reader of a tool's files gives its shapes in one form, and this draws them in their order, later ones on top.
Lines have no area: they are drawn where halfmask.yaml gives them a width (`line_width: 3`), and counted otherwise, as
are points, outlines that cover no center of a pixel, and shapes that lie outside of their image.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Num, UInt8

from halfmask.data.annotations.fill import Patch, fill
from halfmask.data.annotations.layers import BACKGROUND_LABEL, IGNORE_LABEL, id_of

FLAT, OUTSIDE = "without area", "outside of the image"
LeftOut = Counter[tuple[str, str]]  # why (one of these), and the label
_CURES = {
    FLAT: (
        "H160",
        "outline them as polygons; lines (cracks, wires) are drawn with `line_width: 3` (pixels) in halfmask.yaml; or "
        "remove them, if they are only marks",
    ),
    OUTSIDE: ("H161", "look whether the file belongs to this image, and whether the image was cropped since"),
}

Points = Float[np.ndarray, "_ 2"]


class Shape(NamedTuple):
    """One shape; without all but its label it is a point."""

    label: str  # as `clean` gives it
    rings: tuple[Points, ...] = ()  # outline and holes, filled by the even-odd rule
    lines: tuple[Points, ...] = ()  # of points, with the width that halfmask.yaml gives
    patch: Patch | None = None  # pixels that are filled already


class Remark(NamedTuple):
    """What is worth saying of annotation files: `check` makes a finding of it, `train` and `convert` a line."""

    level: Literal["warning", "note"]
    code: str  # see `halfmask.codes`
    text: str  # what was found
    number: int  # of the shapes or files it concerns
    cure: str  # what to do
    files: tuple[str, ...] = ()  # images or files it concerns
    labels: tuple[str, ...] = ()  # classes it concerns

    def __str__(self) -> str:
        return f"{self.text}. {self.cure[:1].upper()}{self.cure[1:]}."


@dataclass
class Drawing:
    """A class map, and the shapes that are not in it."""

    target: UInt8[np.ndarray, "H W"]  # training ids, 255 = unknown
    left_out: LeftOut = field(default_factory=Counter)  # number of shapes by reason and label


class UndrawnShapes:
    """Remembers the shapes that are not in the masks, by image."""

    def __init__(self) -> None:
        self.left_out: dict[str, LeftOut] = {}

    def take(self, id: str, drawing: Drawing) -> UInt8[np.ndarray, "H W"]:
        """Return the class map of an image, and remember what is not in it."""
        self.note(id, drawing.left_out)
        return drawing.target

    def note(self, id: str, left_out: Mapping[tuple[str, str], int]) -> None:
        """Remember what is not in the class map of an image."""
        if left_out:
            self.left_out[id] = Counter(left_out)

    @property
    def remarks(self) -> list[Remark]:
        """Say which shapes are not drawn, with their labels and counts."""
        remarks = []
        for why, (code, cure) in _CURES.items():
            images = {id: found for id, found in sorted(self.left_out.items()) if any(key[0] == why for key in found)}
            counts: Counter[str] = Counter()
            for found in images.values():
                counts.update({label: count for (reason, label), count in found.items() if reason == why})
            if counts:
                shown = ", ".join(f"{label} ({count})" for label, count in counts.most_common(6))
                total = counts.total()
                text = f"{total} shape{'s' if total > 1 else ''} {why} in {len(images)} images are not drawn: {shown}"
                remarks.append(Remark("warning", code, text, total, cure, tuple(images), tuple(counts)))
        return remarks


def draw(
    shapes: Iterable[Shape], ids: Mapping[str, int], height: int, width: int, line_width: float | None = None
) -> Drawing:
    """Draw shapes in their order.

    Args:
        shapes: of one image.
        ids: class name -> training id.
        height: of the upright image.
        width: likewise.
        line_width: of lines, in pixels; `None`: they are left out.

    Raises:
        ValueError: coordinates that are no numbers.
        UnknownLabelError: a label that is no class.
    """
    drawing = Drawing(np.zeros((height, width), dtype=np.uint8))
    for shape in shapes:
        points = [*shape.rings, *shape.lines]
        if any(not np.isfinite(ring).all() for ring in points):
            raise ValueError(f"a shape of {shape.label!r} with coordinates that are no numbers")
        if not (shape.rings or shape.patch is not None or (shape.lines and line_width)):
            drawing.left_out[FLAT, shape.label] += 1
            continue
        id = id_of(shape.label, ids)
        patches = [shape.patch.clipped(height, width)] if shape.patch is not None else []
        patches += [thick(line, line_width or 0, height, width) for line in shape.lines]
        patches += [fill(shape.rings, height, width)] if has_area(shape.rings) else []
        if any(patch.area for patch in patches):
            for patch in patches:
                patch.paint(drawing.target, id)
        else:
            outside = shape.patch is not None and shape.patch.area > 0
            drawing.left_out[OUTSIDE if outside else why_empty(points, height, width), shape.label] += 1
    return drawing


def labels_of(shapes: Iterable[Shape], line_width: float | None = None) -> set[str]:
    """Return the names of the classes that shapes with an area carry."""
    found = {shape.label for shape in shapes if shape.rings or shape.patch is not None or (shape.lines and line_width)}
    return found - {IGNORE_LABEL, BACKGROUND_LABEL}


def has_area(rings: Iterable[Num[np.ndarray, "_ 2"]]) -> bool:
    """Return whether there are rings, all of at least three points."""
    sizes = [len(ring) for ring in rings]
    return bool(sizes) and min(sizes) > 2


def why_empty(points: Iterable[Num[np.ndarray, "_ 2"]], height: int, width: int) -> str:
    """Say why a shape covers no pixel: it lies outside, or has no area worth a pixel."""
    every = [ring for ring in points if len(ring)]
    if not every:
        return FLAT
    low, high = np.concatenate(every).min(0), np.concatenate(every).max(0)
    return OUTSIDE if (high <= 0).any() or (low >= (width, height)).any() else FLAT


def thick(line: Points, line_width: float, height: int, width: int) -> Patch:
    """Fill the pixels whose centers are at most half a width away from a line of points.

    >>> thick(np.array([[0.5, 1.5], [3.5, 1.5]]), 1.0, 3, 4).whole(3, 4).astype(int).tolist()
    [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]
    """
    reach = line_width / 2
    low = np.floor(line.min(0) - reach).clip(0, (width, height)).astype(int)
    high = np.ceil(line.max(0) + reach).clip(0, (width, height)).astype(int)
    (left, top), (right, bottom) = low.tolist(), high.tolist()
    x, y = np.arange(left, right) + 0.5, (np.arange(top, bottom) + 0.5)[:, None]
    inside = np.zeros((bottom - top, right - left), dtype=np.bool_)
    for (x0, y0), (x1, y1) in zip(line[:-1].tolist(), line[1:].tolist(), strict=True):
        length = (x1 - x0) ** 2 + (y1 - y0) ** 2
        along = (((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length).clip(0, 1) if length else 0.0
        inside |= (x - x0 - along * (x1 - x0)) ** 2 + (y - y0 - along * (y1 - y0)) ** 2 <= reach**2
    return Patch(top, left, inside)


def box(points: Points) -> Points:
    """Return the corners of a rectangle in order around it, whatever their order and number in the file.

    Two are opposite corners of an upright rectangle; from three the fourth follows; four or more may be turned.

    >>> box(np.array([[4.0, 3.0], [1.0, 1.0]])).tolist()
    [[1.0, 1.0], [4.0, 1.0], [4.0, 3.0], [1.0, 3.0]]
    >>> box(np.array([[0.0, 0.0], [2.0, 2.0], [2.0, 0.0], [0.0, 2.0]])).tolist()  # not a bow tie
    [[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [0.0, 2.0]]
    """
    corners = np.unique(points, axis=0)
    if len(corners) == 2:
        (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    if len(corners) == 3:  # the right angle is opposite of the longest side
        sides = [np.sum((corners[(i + 1) % 3] - corners[(i + 2) % 3]) ** 2) for i in range(3)]
        right = int(np.argmax(sides))
        fourth = corners[(right + 1) % 3] + corners[(right + 2) % 3] - corners[right]
        corners = np.concatenate([corners, fourth[None]])
    if len(corners) < 3:
        return np.asarray(corners)
    away = corners - corners.mean(0)
    return np.asarray(corners[np.argsort(np.arctan2(away[:, 1], away[:, 0]), kind="stable")])


def ellipse(center: Sequence[float], radii: tuple[float, float], points: int) -> Points:
    """Return points around an upright ellipse."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1) * radii + np.asarray(center))
