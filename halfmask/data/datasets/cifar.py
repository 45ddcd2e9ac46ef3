"""CIFAR-10 and CIFAR-100: 32x32 images of 10 or 100 classes, in the binary or the Python form of the release.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    cifar-10-batches-bin/   data_batch_{1..5}.bin  test_batch.bin  batches.meta.txt
    cifar-100-binary/       train.bin  test.bin  fine_label_names.txt  coarse_label_names.txt
    cifar-10-batches-py/    data_batch_{1..5}  test_batch  batches.meta
    cifar-100-python/       train  test  meta

The root is the folder itself or the one above it. The Python files are pickles: only arrays, numbers and texts are
read from them, anything else is refused. An id is `train/00017`: the number counts over all training files.
"""

import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8

from halfmask.data.contract import Dataset
from halfmask.data.folder.files import count_records
from halfmask.errors import DataError
from halfmask.task import Task

_PIXELS = 3 * 32 * 32
_BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
_IGNORED_LABEL = -1


class _Form(NamedTuple):
    folder: str
    binary: bool
    train: list[str]
    test: str
    labels: int  # bytes in front of each image, or the number of label lists


_FORMS = (
    _Form("cifar-10-batches-bin", True, [f"{name}.bin" for name in _BATCHES], "test_batch.bin", 1),
    _Form("cifar-100-binary", True, ["train.bin"], "test.bin", 2),
    _Form("cifar-10-batches-py", False, _BATCHES, "test_batch", 1),
    _Form("cifar-100-python", False, ["train"], "test", 2),
)


class CIFAR(Dataset):
    """CIFAR-10 or CIFAR-100, whichever lies in the root.

    Args:
        root: the release's folder, or the one above it.
        labels: of CIFAR-100: its 100 `fine` or its 20 `coarse` classes.
    """

    def __init__(self, root: Path, *, labels: Literal["fine", "coarse"] = "fine") -> None:
        places = [(form, place) for form in _FORMS for place in (Path(root) / form.folder, Path(root))]
        found = [(form, place) for form, place in places if _is_release(place, form)]
        if not found:
            raise DataError(
                f"{root}: not CIFAR: expected {' or '.join(f'{form.folder}/' for form in _FORMS)}. Unpack the release "
                "there, or use data.dataset=class_folder for images in folders of classes.",
                "H208",
            )
        self._form, place = found[0]
        super().__init__(place)
        self._coarse = self._form.labels == 2 and labels == "coarse"
        self._names = {part: self._files(part) for part in ("train", "test")}
        self._counts = {part: [self._count(name) for name in names] for part, names in self._names.items()}
        classes = _read_names(_names_file(place, self._form, self._coarse), self._form, self._coarse)
        self.task = Task("classification", classes, ignore_index=_IGNORED_LABEL)

    def ids(self, part: str) -> list[str]:
        """Return `train/00000`, `train/00001`, ..."""
        return [f"{part}/{number:05}" for number in range(sum(self._counts.get(part, [])))]

    def read_image(self, id: str) -> UInt8[np.ndarray, "H W C"]:
        """Return an image of 32x32 RGB pixels."""
        return np.ascontiguousarray(self._record(id)[0].reshape(3, 32, 32).transpose(1, 2, 0))

    def read_target(self, id: str) -> Integer[np.ndarray, ""]:
        """Return the class of an image."""
        return np.array(self._record(id)[1], dtype=np.int64)

    def mask_path(self, id: str) -> Path | None:
        """Return the file that holds image and label."""
        return self.root / self._place(id)[0]

    def image_files(self, id: str) -> tuple[Path, ...]:
        """Return the file that holds the image."""
        return (self.root / self._place(id)[0],)

    def _files(self, part: str) -> list[str]:
        names = self._form.train if part == "train" else [self._form.test]
        return [name for name in names if (self.root / name).is_file()]

    def _count(self, name: str) -> int:
        if not self._form.binary:
            return len(_unpickled(self.root / name)[b"data"])
        return count_records(self.root / name, self._form.labels + _PIXELS)

    def _place(self, id: str) -> tuple[str, int]:
        """Find the file of an id and the image's number in it."""
        part, _, digits = id.partition("/")
        number = int(digits) if digits.isdigit() else -1
        for name, count in zip(self._names.get(part, []), self._counts.get(part, []), strict=True):
            if 0 <= number < count:
                return name, number
            number -= count
        raise DataError(f"{id}: no such image. Ids are train/00000, ..., test/00000, ...", "H201")

    def _record(self, id: str) -> tuple[np.ndarray, int]:
        name, number = self._place(id)
        path, labels = self.root / name, self._form.labels
        if self._form.binary:
            record = np.fromfile(path, np.uint8, labels + _PIXELS, offset=number * (labels + _PIXELS))
            # CIFAR-100 has the coarse label first.
            return record[labels:], int(record[0 if self._coarse else labels - 1])
        content = _unpickled(path)
        key = b"labels" if labels == 1 else b"coarse_labels" if self._coarse else b"fine_labels"
        return content[b"data"][number], int(content[key][number])


def _is_release(place: Path, form: _Form) -> bool:
    return all(path.is_file() for path in (place / form.train[0], place / form.test, _names_file(place, form)))


def _names_file(place: Path, form: _Form, coarse: bool = False) -> Path:
    if not form.binary:
        return place / ("batches.meta" if form.labels == 1 else "meta")
    return place / ("batches.meta.txt" if form.labels == 1 else f"{'coarse' if coarse else 'fine'}_label_names.txt")


def _read_names(path: Path, form: _Form, coarse: bool) -> tuple[str, ...]:
    if form.binary:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    key = b"label_names" if form.labels == 1 else b"coarse_label_names" if coarse else b"fine_label_names"
    return tuple(name.decode() for name in _unpickled(path)[key])


class _ArraysOnly(pickle.Unpickler):
    """Reads NumPy arrays and plain values; a pickle could otherwise run any program."""

    _allowed = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


@lru_cache(maxsize=16)  # all files of CIFAR-10, once per process
def _unpickled(path: Path) -> dict[bytes, Any]:
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="bytes").load()
    except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise DataError(
            f"{path}: not a file of the CIFAR release ({error}). Unpack the release again.", "H201"
        ) from error
    return dict(content)
