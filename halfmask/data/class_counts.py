"""How often each class occurs in each mask."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Int

from halfmask.data.contract import Dataset


def count_classes(dataset: Dataset, ids: Sequence[str]) -> Int[np.ndarray, "N K"]:
    """Read masks and count the pixels of each class (for classification: the image); ignored ones are left out.

    Raises:
        DataError: a mask is missing or broken.
    """
    classes = dataset.task.n_classes

    def count(id: str) -> np.ndarray:
        values = np.asarray(dataset.read_target(id)).ravel()
        return np.bincount(values[values < classes], minlength=classes)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoders release the interpreter lock
        counts = list(pool.map(count, ids))
    return np.stack(counts) if counts else np.zeros((0, classes), dtype=np.int64)
