"""Outlines for formats without holes: painted one after the other, each without its holes, they give the same map.

The larger ones come first: what lies in a hole is a region of its own and painted later, background included.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Integer

from halfmask.data.annotations._contours import polygons
from halfmask.data.annotations._fill import fill
from halfmask.data.masks import IGNORE
from halfmask.errors import DataError

IGNORE_LABEL, BACKGROUND_LABEL = "__ignore__", "_background_"


def layers(mask: Integer[np.ndarray, "H W"]) -> Iterator[tuple[int, Int[np.ndarray, "N 2"]]]:
    """Give class id and outline of every region in the order of painting.

    Class 0 is what no outline covers; it comes only where it lies inside another region.

    >>> [id for id, _ in layers(np.array([[0, 1, 1, 1], [0, 1, 0, 1], [0, 1, 1, 1]]))]
    [1, 0]
    """
    covered = np.zeros(mask.shape, dtype=np.bool_)
    outlines = [(region, fill([region.exterior], *mask.shape)) for region in polygons(mask)]
    for region, patch in sorted(outlines, key=lambda item: -item[1].area):
        x, y = region.exterior[0].tolist()  # the first corner is the upper left one of the first pixel
        if region.value == 0 and not covered[y, x]:
            continue
        patch.paint(covered, True)
        yield region.value, region.exterior


def label_of(id: int, classes: Sequence[str]) -> str:
    """Name of a class, or what unknown pixels are called."""
    return IGNORE_LABEL if id == IGNORE else classes[id]


def unknown_label(where: Path | str, error: KeyError, classes: Sequence[str]) -> DataError:
    """Make the error for a label that is no class, or for a key that a region lacks.

    Args:
        where: the json file.
        error: names it.
        classes: that somebody named; empty if nobody did.
    """
    named = f" ({', '.join(classes)})" if classes else ""
    return DataError(
        f"{where}: {error} is missing or names no class{named}. Add it to `classes` in halfmask.yaml, or correct the "
        "label.",
        "H203",
    )
