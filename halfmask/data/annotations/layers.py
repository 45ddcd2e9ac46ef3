"""Order outlines for formats without holes: painted one after the other they give the same map.

The larger ones come first: what lies in a hole is a region of its own and painted later, background included.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, Integer

from halfmask.data.annotations.contours import polygons
from halfmask.data.annotations.fill import fill
from halfmask.data.folder.masks.decode import IGNORE
from halfmask.errors import DataError, nearest

IGNORE_LABEL, BACKGROUND_LABEL = "__ignore__", "_background_"


def layers(mask: Integer[np.ndarray, "H W"]) -> Iterator[tuple[int, Int[np.ndarray, "N 2"]]]:
    """Return class id and outline of every region in the order of painting.

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


def clean(label: object) -> str:
    """Return a label without spaces that nobody sees, each letter in one character.

    >>> clean(" traffic  light ")
    'traffic light'
    """
    return composed(" ".join(str(label).split()))


def composed(text: str) -> str:
    """Return a text with letters and accents in one character each (NFC), as most systems write them."""
    return unicodedata.normalize("NFC", text)


def label_of(id: int, classes: Sequence[str]) -> str:
    """Return the name of a class, or what unknown pixels are called."""
    return IGNORE_LABEL if id == IGNORE else classes[id]


class UnknownLabelError(KeyError):
    """A label that is no class."""


def id_of(label: str, ids: Mapping[str, int]) -> int:
    """Return the training id of a label, also of the labels for unknown pixels and for the background.

    Raises:
        UnknownLabelError: it is no class.
    """
    known = {IGNORE_LABEL: IGNORE, BACKGROUND_LABEL: 0} | dict(ids)
    if label not in known:
        raise UnknownLabelError(label)
    return known[label]


def unknown_label(where: Path | str, error: UnknownLabelError, classes: Sequence[str]) -> DataError:
    """Make the error for a label that is no class."""
    named = f" ({', '.join(classes)})" if classes else ""
    meant = nearest(str(error.args[0]), classes)
    return DataError(
        f"{where}: {error} names no class{named}.{meant} Add it to `classes` in halfmask.yaml, or correct the label.",
        "H203",
    )


def error_text(error: Exception) -> str:
    """Describe the error that made reading fail; a missing key is called that, not only named."""
    return f"no {error}" if isinstance(error, KeyError) else str(error)
