"""Decoded images and masks on disk, filled on first use; several processes may share a folder.

    memmap    uncompressed, 3 bytes per RGB pixel (6 MB per 2048x1024 image); only the rows a crop needs are read
    jpeg95    images as JPEG of quality 95 without chroma subsampling: a few times smaller and faster to decode than
              PNG, but not the same pixels (a level or two of 255 in smooth images, more in noise). Masks are never
              lossy: they are kept uncompressed. Files that are JPEG already are read as they are, images of other
              than one or three bands are kept uncompressed.

Decoding a large PNG takes most of a worker's time. An entry is named by a hash of the state of its files (path, size,
time of change), so an edited file is decoded anew. Where less than a gigabyte would be left on the disk nothing more is
kept: checkpoints need the room.
"""

import hashlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Literal

import numpy as np
from PIL import Image

from halfmask.data.contract import Dataset
from halfmask.data.folder.images.decode import read_image
from halfmask.errors import DataError

ReadArray = Callable[[str], np.ndarray]

_LEFT_FREE = 2**30  # bytes
_JPEG = frozenset({".jpg", ".jpeg"})


def cached(
    read: ReadArray,
    dataset: Dataset,
    folder: Path | None,
    *,
    masks: bool = False,
    form: Literal["none", "memmap", "jpeg95"] = "memmap",
) -> ReadArray:
    """Wrap a reader of a dataset; without a folder or a form it stays as it is.

    Args:
        read: `dataset.read_image` or `dataset.read_target`.
        dataset: tells where the file of an id lies.
        folder: where the entries go.
        masks: whether `read` reads masks, which are always kept as they are.
        form: `data.cache`.
    """
    if folder is None or form == "none":
        return read
    if form == "jpeg95" and not masks and dataset.channels in (1, 3):
        return JpegReader(read, dataset, Path(folder))
    return CachedReader(read, dataset, Path(folder), masks)


@dataclass(frozen=True, slots=True)
class CachedReader:
    """A reader that keeps what it read, uncompressed."""

    read: ReadArray
    dataset: Dataset
    folder: Path
    masks: bool = False

    def __call__(self, id: str) -> np.ndarray:
        """Return the decoded array of an id: read-only, mapped from disk.

        Raises:
            DataError: the file cannot be decoded, or the cache cannot be written.
        """
        paths = [self.dataset.mask_path(id)] if self.masks else [*self.dataset.image_files(id)]
        entry = _entry(self.folder, self.dataset, id, paths, self.masks)
        if entry is None:
            return self.read(id)
        entry = entry.with_suffix(".npy")
        if not entry.exists():
            array = np.ascontiguousarray(self.read(id))
            if not _store(self.folder, entry, lambda file: np.save(file, array), array.nbytes):
                return array
        return np.load(entry, mmap_mode="r")  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class JpegReader:
    """A reader of images that keeps them as JPEG; it gives the kept pixels from the first time on."""

    read: ReadArray
    dataset: Dataset
    folder: Path

    def __call__(self, id: str) -> np.ndarray:
        """Return the image of an id, or its pair of dates, as it is after compression.

        Raises:
            DataError: the file cannot be decoded, or the cache cannot be written.
        """
        paths = self.dataset.image_files(id)
        entry = _entry(self.folder, self.dataset, id, [*paths], False)
        if entry is None or all(path.suffix.lower() in _JPEG for path in paths):
            return self.read(id)
        dates = [entry.with_suffix(f".{date}.jpg") for date in range(self.dataset.dates)]
        if not all(date.exists() for date in dates):
            array = self.read(id)
            frames = array if array.ndim == 4 else array[None]
            for date, frame in zip(dates, frames, strict=True):
                picture = Image.fromarray(frame if frame.shape[-1] == 3 else frame[..., 0])
                if not _store(self.folder, date, partial(_compress, picture), frame.nbytes):
                    return array
        images = [read_image(date, channels=self.dataset.channels) for date in dates]
        return images[0] if self.dataset.dates == 1 else np.stack(images)


def _entry(folder: Path, dataset: Dataset, id: str, paths: Sequence[Path | None], masks: bool) -> Path | None:
    """Return the path of an id's cache file, without suffix; `None` where no file stands behind the id."""
    files = [path for path in paths if path is not None and path.is_file()]
    if not files or len(files) < len(paths):
        return None
    states = [f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    # The class and its settings decide how a mask becomes ids: two layouts of one folder must not share entries.
    owner = f"{type(dataset).__qualname__} {dataset.task.classes} {masks}"
    key = " ".join((owner, id, *states))  # with the id: one file may hold many images
    digest = hashlib.sha256(key.encode()).hexdigest()
    return folder / digest[:2] / digest[2:40]


def _compress(picture: Image.Image, file: IO[bytes]) -> None:
    picture.save(file, "JPEG", quality=95, subsampling=0)


def _store(folder: Path, entry: Path, write: Callable[[IO[bytes]], None], size: int) -> bool:
    """Write an entry that takes at most about `size` bytes; tell whether there was room for it."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(entry.parent).free - size < _LEFT_FREE:
            warnings.warn(
                f"the disk of {folder} is nearly full: no more images are cached, the others are decoded each time. "
                "Free some disk space, or set data.cache=none.",
                stacklevel=2,
            )
            return False
        # Written aside and renamed: another worker never sees half a file.
        with tempfile.NamedTemporaryFile(dir=entry.parent, suffix=".part", delete=False) as file:
            try:
                write(file)
            except BaseException:
                os.unlink(file.name)
                raise
        os.replace(file.name, entry)
    except OSError as error:
        raise DataError(
            f"cannot write the image cache in {folder}: {error}. Free some disk space or set data.cache=none.", "H502"
        ) from error
    return True
