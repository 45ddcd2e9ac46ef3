"""Fill outlines: pixels whose center is inside by the even-odd rule, so that a ring inside a ring is a hole.

No library of a plain installation does that. Of the pixels of 200 random outlines Pillow sets 13 % otherwise and OpenCV
16 to 21 %, which fill the pixels of the outline itself; pycocotools 2 %, which rounds to fifths of a pixel.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Num


class Patch(NamedTuple):
    """Filled pixels within the smallest box that holds them."""

    top: int  # first row of the box
    left: int  # first column
    inside: Bool[np.ndarray, "h w"]  # which of its pixels are filled

    @property
    def area(self) -> int:
        """Number of filled pixels."""
        return int(self.inside.sum())

    def clipped(self, height: int, width: int) -> "Patch":
        """Return the part that lies in an image of that size."""
        rows, columns = (
            slice(max(0, -self.top), max(0, height - self.top)),
            slice(max(0, -self.left), max(0, width - self.left)),
        )
        return Patch(max(0, self.top), max(0, self.left), self.inside[rows, columns])

    def paint(self, canvas: np.ndarray, value: int) -> None:
        """Set the filled pixels of a larger array."""
        height, width = self.inside.shape
        canvas[self.top : self.top + height, self.left : self.left + width][self.inside] = value

    def whole(self, height: int, width: int) -> Bool[np.ndarray, "H W"]:
        """Return the filled pixels as a mask of the whole image, of that size."""
        canvas = np.zeros((height, width), dtype=np.bool_)
        self.paint(canvas, True)
        return canvas


def fill(rings: Sequence[Num[np.ndarray, "_ 2"]], height: int, width: int) -> Patch:
    """Fill rings of points (x, y), each closed by itself.

    Every crossing of an edge with a row of pixel centers flips all pixels to its right: running parity is the fill.

    >>> square = np.array([[1, 0], [3, 0], [3, 1], [1, 1]])
    >>> fill([square], 2, 4).whole(2, 4).astype(int).tolist()
    [[0, 1, 1, 0], [0, 0, 0, 0]]

    Raises:
        ValueError: a ring of fewer than three points.
    """
    if any(len(ring) < 3 for ring in rings):
        raise ValueError(f"a polygon of {min(len(ring) for ring in rings)} points")
    start = np.concatenate([np.asarray(ring, dtype=np.float64) for ring in rings])
    end = np.concatenate([np.roll(np.asarray(ring, dtype=np.float64), -1, axis=0) for ring in rings])
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first, last = (np.ceil(bound - 0.5).clip(0, height).astype(np.int64) for bound in (low, high))
    count = last - first  # rows of centers that each edge crosses
    if not count.any():
        return Patch(0, 0, np.zeros((0, 0), dtype=np.bool_))
    edge = np.repeat(np.arange(len(start)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    (x0, y0), (x1, y1) = start[edge].T, end[edge].T
    crossing = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
    column = np.ceil(crossing - 0.5).clip(0, width).astype(np.int64)
    top, left = int(row.min()), int(column.min())
    rows, columns = int(row.max()) + 1 - top, int(column.max()) - left
    flips = np.bincount((row - top) * (columns + 1) + column - left, minlength=rows * (columns + 1))
    inside = (np.cumsum(flips.reshape(rows, columns + 1), axis=1) & 1).astype(np.bool_)
    return Patch(top, left, inside[:, :columns])
