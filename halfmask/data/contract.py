"""The contract of a dataset: a list of ids per part, an image per id, and, separately, a mask or a label per id.

Images and masks are read by two different calls. The unlabeled stream holds only `read_image`, so an unlabeled
item cannot carry a mask, and deleting the masks of unlabeled images changes nothing.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Int, Integer, UInt8

from halfmask.task import Task


class Dataset(ABC):
    """Subclass it, define `__init__(self, root, *, ...)`, `ids`, `read_image` and `mask_path`/`read_target`.

    Keyword-only constructor arguments are the recipe's schema (`data.dataset: {name: folder, binary: true}`).
    An id is the image path relative to `root`, with forward slashes, as in split lists; of an image pair, the path of
    the later image. Where files hold many images, it is a name such as `train/00017`.

    Attributes:
        task: classes, ignore index, palette, foreground.
        root: folder of the dataset.
        dates: images per id: 2 for change detection.
        channels: number of bands of one image.
        mean: per band for images in [0, 1], or `None` for the encoder's own.
        std: likewise.
        value_range: values that become black and white, for images with more than 8 bits.
        nodata: value, in all bands, of pixels without data, or `None`; they are black, and ignored in masks.
        splits_name: folder name of this dataset's published lists below `data.splits`.
        mask_overrides: mask path per id (relative to `root`), from lists that name it.
        before_overrides: path of the earlier image per id, from lists that name it.
        sealed: ids used without labels: what a dataset finds out from masks (classes, encoding) must not come from
            theirs.
        notes: what was concluded from the files, to be shown before training.
    """

    task: Task
    root: Path
    dates: int = 1
    channels: int = 3
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    value_range: tuple[float, float] | None = None
    nodata: float | None = None
    splits_name: ClassVar[str] = ""
    notes: tuple[str, ...] = ()

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.mask_overrides: dict[str, str] = {}
        self.before_overrides: dict[str, str] = {}
        self.sealed: frozenset[str] = frozenset()

    @abstractmethod
    def ids(self, part: str) -> list[str]:
        """Return sorted ids of a part: "train", "val", "test", or "unlabeled" (extra images without masks).

        An unknown or absent part gives an empty list.
        """

    def every_id(self) -> set[str]:
        """Return the ids of all parts."""
        return {id for part in ("train", "val", "test", "unlabeled") for id in self.ids(part)}

    @abstractmethod
    def read_image(self, id: str) -> UInt8[np.ndarray, "*T H W C"]:
        """Decode an image upright (EXIF applied), uint8, bands last; the two dates of a pair in front.

        Raises:
            DataError: a file is missing or broken.
        """

    @abstractmethod
    def read_target(self, id: str) -> Integer[np.ndarray, "*S"]:
        """Decode a mask as training ids, `task.ignore_index` where unknown, uint8, of the image's size.

        For classification: the class of the image, int64, without axes.

        Raises:
            DataError: the file is missing or broken, or holds values that are no class.
        """

    @abstractmethod
    def mask_path(self, id: str) -> Path | None:
        """Return the path of the mask of an id, or of what names its class; `None`: the image is unlabeled."""

    def image_files(self, id: str) -> tuple[Path, ...]:
        """Return the files an image is read from: one per date.

        Raises:
            DataError: the dataset knows no such pair.
        """
        return (self.root / id,)


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
