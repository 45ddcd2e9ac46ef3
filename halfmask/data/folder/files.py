"""Base class of datasets made of image and mask files, the compact form of class tables, and reading of small texts."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from halfmask.data.contract import Dataset
from halfmask.data.folder.images.decode import is_image, read_image
from halfmask.data.folder.masks.decode import LabelMap, read_mask
from halfmask.data.folder.masks.ids import IdTable, contradiction, read_id_meanings
from halfmask.errors import DataError


class FileDataset(Dataset):
    """A dataset with one image file per id and one mask file for some of them.

    A subclass sets `task`, defines `ids`, `labels_of` and `find_mask`.

    Attributes:
        value_range: values that become black and white, for images with more than 8 bits.
    """

    value_range: tuple[float, float] | None = None

    @abstractmethod
    def find_mask(self, id: str) -> Path | None:
        """Return where the mask of an id lies by the dataset's own rule, or `None`."""

    def shapes_left_out(self, id: str) -> Mapping[tuple[str, str], int]:
        """Count the shapes of annotation tools that are not in a mask, by reason and label."""
        return {}

    @abstractmethod
    def labels_of(self, mask: Path) -> LabelMap:
        """Return the meaning of the values stored in a mask."""

    def id_table(self) -> IdTable:
        """Return the ids that masks of this dataset hold, for masks that are to be put among them."""
        first = next(self.open_masks(), None)
        if first is None or self.task.kind == "classification":
            return IdTable.plain(self.task.n_classes)
        return IdTable.of_labels(self.labels_of(first), self.task.n_classes)

    def open_masks(self) -> Iterator[Path]:
        """Yield the masks that may be opened, of all labeled images."""
        for part in ("train", "val", "test"):
            for id in self.ids(part):
                if id not in self.sealed and (path := self.mask_path(id)) is not None:
                    yield path

    def some_masks(self, limit: int) -> list[Path]:
        """Return about so many of the masks that may be opened, evenly over all."""
        masks = list(self.open_masks())
        return masks[:: max(1, -(-len(masks) // limit))]

    def mask_path(self, id: str) -> Path | None:
        """Return where the mask of an id lies: as a list says, if that file exists, else by the dataset's own rule."""
        override = self.mask_overrides.get(id)
        if override is not None and (self.root / override).is_file():
            return self.root / override
        return self.find_mask(id)

    def read_image(self, id: str) -> UInt8[np.ndarray, "*T H W C"]:
        """Decode an image upright, uint8, bands last; the two dates of a pair in front.

        Raises:
            DataError: a file is missing or broken, or the dates of a pair differ in size.
        """
        files = self.image_files(id)
        images = [read_image(file, channels=self.channels, value_range=self.value_range) for file in files]
        if self.dates == 1:
            return images[0]
        if len({image.shape for image in images}) > 1:
            raise date_sizes_differ(files, [(image.shape[0], image.shape[1]) for image in images])
        return np.stack(images)

    def read_target(self, id: str) -> UInt8[np.ndarray, "H W"]:
        """Decode a mask as training ids of the image's size.

        Raises:
            DataError: it is missing or broken, holds values that are no class, or was written for other ids.
        """
        path = self.existing_mask(id)
        labels = self.labels_of(path)
        told = read_id_meanings(path)
        if told is not None and (differ := contradiction(told, labels, self.task.classes)):
            raise DataError(
                f"{path}: halfmask wrote this mask in other ids than these masks have: {differ}. Predict or convert it "
                "again with a model or masks of the ids that halfmask.yaml names here.",
                "H220",
            )
        return read_mask(path, labels, self.root / id)

    def existing_mask(self, id: str) -> Path:
        """Return the mask of an id. Raises DataError: the image has no mask."""
        path = self.mask_path(id)
        if path is None:
            raise DataError(
                f"{id} has no mask below {self.root}. Add one, or take the image off the labeled list.", "H201"
            )
        return path


def ids_of(dataset: Dataset) -> dict[str, Any] | None:
    """Return the ids that masks of a dataset hold as plain data, for the bundles trained on it."""
    return dataset.id_table().to_meta() if isinstance(dataset, FileDataset) else None


def date_sizes_differ(files: Sequence[Path], sizes: Sequence[tuple[int, int]]) -> DataError:
    """Make the error for the images of a pair that cannot lie on each other; sizes are (height, width)."""
    named = " but ".join(f"{file} is {width}x{height}" for file, (height, width) in zip(files, sizes, strict=True))
    return DataError(f"{named}: both dates must show the same place, pixel by pixel. Register and crop them.", "H202")


def class_table(text: str) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Parse `name rrggbb; name rrggbb`.

    >>> class_table("road 804080; traffic light faaa1e")
    (('road', 'traffic light'), ((128, 64, 128), (250, 170, 30)))
    """
    rows = [entry.strip().rsplit(" ", 1) for entry in text.replace("\n", " ").split(";")]
    colors = [bytes.fromhex(code) for _, code in rows]
    return tuple(name for name, _ in rows), tuple((c[0], c[1], c[2]) for c in colors)


def list_images(folder: Path, root: Path, recursive: bool = True) -> list[str]:
    """List the images of a folder as sorted ids relative to `root`, skipping hidden files and folders."""
    if not folder.is_dir():
        return []
    found = folder.rglob("*") if recursive else folder.glob("*")
    return sorted(
        path.relative_to(root).as_posix()
        for path in found
        if is_image(path) and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def count_records(path: Path, size: int) -> int:
    """Count the images of a file that holds one after the other, `size` bytes each; a missing file holds none.

    Raises:
        DataError: the last one is cut short.
    """
    count, rest = divmod(path.stat().st_size if path.is_file() else 0, size)
    if rest:
        raise DataError(f"{path}: its size is no multiple of an image's: cut short. Unpack the release again.", "H201")
    return count


def list_stems(path: Path) -> tuple[str, ...]:
    """Read an image set of VOC form: one stem per line, perhaps followed by a flag."""
    lines = read_text(path, "H211").splitlines()
    return tuple(line.split()[0] for line in lines if line.strip())


def require_folder(root: Path, expected: tuple[str, ...], dataset: str) -> None:
    """Check that a root holds one of the expected folders. Raises DataError: missing, empty, or of another layout."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder. Give the dataset's root with --data DIR (data.root).", "H208")
    if not any((root / name).is_dir() for name in expected):
        inside = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
        raise DataError(
            f"{root}: not the layout of {dataset}: expected {' or '.join(f'{name}/' for name in expected)}, found "
            f"{inside}. Check data.root, or use data.dataset=folder for your own layout.",
            "H208",
        )


def read_text(path: Path, code: str) -> str:
    """Read a UTF-8 text file, with or without a byte order mark; other encodings are not guessed.

    Raises:
        DataError: missing, unreadable, or of another encoding: the line, and the command that mends it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise DataError(f"{path}: {reason}. Give the path of a text file that you may read.", code) from error
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        line = data.count(b"\n", 0, error.start) + 1
        found = "UTF-16 text" if wide else f"not UTF-8 text (byte 0x{data[error.start]:02x} in line {line})"
        raise DataError(
            f"{path}: {found}. Save it as UTF-8 in your editor, or: "
            f"iconv -f {'utf-16' if wide else 'latin1'} -t utf-8 {path.name} > utf8.txt && mv utf8.txt {path.name}",
            code,
        ) from None
