"""Recognize masks that number single objects, anew in each image, instead of naming classes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from halfmask.data.annotations.contours import components
from halfmask.errors import DataError

_FEWEST_MASKS, _FEWEST_COUNTS, _FEWEST_OBJECTS = 3, 3, 4
_FEWEST_APART = 8  # numbers that run on from mask to mask
_FEW_GAPS = 0.9
_OPENED = 4
_ONE_BLOB = 0.75  # of the numbers: objects may be hidden in part


def number_objects(values: Mapping[Path, Sequence[int]], read: Callable[[Path], np.ndarray]) -> bool:
    """Return whether the numbers in masks count objects, and each number is one blob.

    They run from 1 to n and n differs from mask to mask (with few gaps where n is large: objects that were removed); or
    no two masks share a number.
    """
    objects = {path: sorted(set(found) - {0}) for path, found in values.items()}
    highest = {len(found) for found in objects.values()}
    counted = all(not found or (len(found) > _FEW_GAPS * found[-1] and found[0] > 0) for found in objects.values())
    anew = counted and len(highest) >= _FEWEST_COUNTS and max(highest) >= _FEWEST_OBJECTS
    every = [value for found in objects.values() for value in found]
    apart = len(every) == len(set(every)) >= _FEWEST_APART and all(objects.values())
    if len(objects) < _FEWEST_MASKS or not (anew or apart):
        return False
    several = sorted((path for path, found in objects.items() if len(found) > 1), key=lambda path: -len(objects[path]))
    blobs = []
    for path in several[:_OPENED]:
        of_region = components(read(path).astype(np.int64))[1]
        blobs += [int((of_region == number).sum()) == 1 for number in objects[path]]
    return bool(np.mean(blobs) >= _ONE_BLOB)


def background_and_object(highest: int) -> dict[str, Any]:
    """Return what halfmask.yaml says to read all objects as one class.

    >>> background_and_object(3)
    {'classes': {0: 'background', 1: 'object'}, 'map': {2: 1, 3: 1}}
    """
    return {"classes": {0: "background", 1: "object"}, "map": dict.fromkeys(range(2, highest + 1), 1)}


def no_classes(root: Path, highest: int) -> DataError:
    """Make the error for masks that number objects."""
    return DataError(
        f"{root}: the masks number single objects, 1 to {highest}, anew in each image; a number is no class. To tell "
        "objects from background, write `classes: {0: background, 1: object}` and `map: {2: 1, 3: 1, ...}` in "
        "halfmask.yaml (halfmask check --fix does); or, if the numbers are classes, name them in `classes`.",
        "H217",
    )
