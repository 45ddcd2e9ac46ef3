"""STL-10: 96x96 images of 10 classes, 5000 with labels for training and 100000 without, in the binary release.

Coates, Lee, Ng, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning", AISTATS 2011.

    stl10_binary/   {train,test}_X.bin  {train,test}_y.bin  [unlabeled_X.bin]  class_names.txt  [fold_indices.txt]

The root is that folder or the one above it. Images are stored column by column, labels from 1. An id is `train/00017`.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Integer, UInt8
from pydantic import Field

from halfmask.data.contract import Dataset
from halfmask.data.folder.files import count_records
from halfmask.errors import DataError
from halfmask.task import Task

_PIXELS = 3 * 96 * 96
_IGNORED_LABEL = -1


class STL10(Dataset):
    """STL-10 in its binary form.

    Args:
        root: the release's folder, or the one above it.
        fold: use the labels of one of the ten predefined folds (1000 images) only; the other training images
            are unlabeled. `null` uses all 5000.
    """

    def __init__(self, root: Path, *, fold: Annotated[int, Field(ge=0, le=9)] | None = None) -> None:
        inner = Path(root) / "stl10_binary"
        super().__init__(inner if inner.is_dir() else root)
        if not (self.root / "train_X.bin").is_file() or not (self.root / "class_names.txt").is_file():
            raise DataError(f"{root}: not STL-10: expected stl10_binary/ with train_X.bin and class_names.txt.", "H208")
        self._counts = {part: count_records(self._images(part), _PIXELS) for part in ("train", "test", "unlabeled")}
        names = (self.root / "class_names.txt").read_text(encoding="utf-8").split()
        self.task = Task("classification", tuple(names), ignore_index=_IGNORED_LABEL)
        self._labeled: frozenset[int] | None = None
        if fold is not None:
            lines = (self.root / "fold_indices.txt").read_text(encoding="utf-8").splitlines()
            self._labeled = frozenset(int(word) for word in lines[fold].split())

    def ids(self, part: str) -> list[str]:
        """Return `train/00000`, `train/00001`, ...; six digits for the unlabeled part."""
        width = 6 if part == "unlabeled" else 5
        return [f"{part}/{number:0{width}}" for number in range(self._counts.get(part, 0))]

    def read_image(self, id: str) -> UInt8[np.ndarray, "H W C"]:
        """Return an image of 96x96 RGB pixels."""
        part, number = self._place(id)
        pixels = np.fromfile(self._images(part), np.uint8, _PIXELS, offset=number * _PIXELS)
        return np.ascontiguousarray(pixels.reshape(3, 96, 96).transpose(2, 1, 0))

    def read_target(self, id: str) -> Integer[np.ndarray, ""]:
        """Return the class of an image. Raises DataError: the image has no label."""
        path = self.mask_path(id)
        if path is None:
            raise DataError(f"{id} has no label in {self.root}.", "H201")
        stored = np.fromfile(path, np.uint8, 1, offset=self._place(id)[1])
        return np.array(int(stored[0]) - 1, dtype=np.int64)

    def mask_path(self, id: str) -> Path | None:
        """Return the file of the labels."""
        part, number = self._place(id)
        if part == "train" and self._labeled is not None and number not in self._labeled:
            return None
        path = self.root / f"{part}_y.bin"
        return path if path.is_file() else None

    def image_files(self, id: str) -> tuple[Path, ...]:
        """Return the file of the images."""
        return (self._images(self._place(id)[0]),)

    def _images(self, part: str) -> Path:
        return self.root / f"{part}_X.bin"

    def _place(self, id: str) -> tuple[str, int]:
        part, _, digits = id.partition("/")
        if not digits.isdigit() or int(digits) >= self._counts.get(part, 0):
            raise DataError(f"{id}: no such image. Ids are train/00000, ..., unlabeled/000000, ...", "H201")
        return part, int(digits)
