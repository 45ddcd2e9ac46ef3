"""Decoded images and masks as memory-mapped files, filled on first use.

Decoding a large PNG takes most of a worker's time; from the cache only the rows a crop needs are read. The price is
disk space: 3 bytes per RGB pixel (6 MB per 2048x1024 image). An entry belongs to one state of its files (path, size,
time of change), so an edited file is decoded anew.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from halfmask.data._dataset import Dataset
from halfmask.errors import DataError

ReadArray = Callable[[str], np.ndarray]


def cached(read: ReadArray, dataset: Dataset, folder: Path | None, *, masks: bool = False) -> ReadArray:
    """Wrap a reader of a dataset; without a folder it stays as it is.

    Args:
        read: `dataset.read_image` or `dataset.read_target`.
        dataset: tells where the file of an id lies.
        folder: where the decoded arrays go.
        masks: whether `read` reads masks.
    """
    return read if folder is None else CachedReader(read, dataset, Path(folder), masks)


@dataclass(frozen=True, slots=True)
class CachedReader:
    """A reader that keeps what it read; several processes may share a folder."""

    read: ReadArray
    dataset: Dataset
    folder: Path
    masks: bool = False

    def __call__(self, id: str) -> np.ndarray:
        """Give the decoded array of an id: read-only, mapped from disk.

        Raises:
            DataError: the file cannot be decoded, or the cache cannot be written.
        """
        entry = self._entry(id)
        if entry is None:
            return self.read(id)
        if not entry.exists():
            self._store(entry, self.read(id))
        return np.load(entry, mmap_mode="r")  # type: ignore[no-any-return]

    def _entry(self, id: str) -> Path | None:
        """Name the cache file of an id; `None` where no single file stands behind it."""
        paths = [self.dataset.mask_path(id)] if self.masks else [*self.dataset.image_files(id)]
        files = [path for path in paths if path is not None and path.is_file()]
        if not files or len(files) < len(paths):
            return None
        states = [f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
        # The class and its settings decide how a mask becomes ids: two layouts of one folder must not share entries.
        owner = f"{type(self.dataset).__qualname__} {self.dataset.task.classes} {self.masks}"
        key = " ".join((owner, id, *states))  # with the id: one file may hold many images
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest[2:40]}.npy"

    def _store(self, entry: Path, array: np.ndarray) -> None:
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            # Written aside and renamed: another worker never sees half a file.
            with tempfile.NamedTemporaryFile(dir=entry.parent, suffix=".part", delete=False) as file:
                try:
                    np.save(file, np.ascontiguousarray(array))
                except BaseException:
                    os.unlink(file.name)
                    raise
            os.replace(file.name, entry)
        except OSError as error:
            raise DataError(
                f"cannot write the image cache in {self.folder}: {error}. Free some disk space or set data.cache=none."
            ) from error
