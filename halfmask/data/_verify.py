"""Look at the files of a split before training starts: seconds, and every problem in one error."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from halfmask.data._dataset import Dataset
from halfmask.data._files import FileDataset
from halfmask.data.images import missing, read_header
from halfmask.data.masks import size_mismatch
from halfmask.errors import DataError, bullet_list

if TYPE_CHECKING:
    from halfmask.data.splits import Split

# Headers cost some 0.1 ms each: this many are read per part.
_HEADERS = 2000


@dataclass(frozen=True)
class Findings:
    """What was found.

    Args:
        errors: problems that would stop training, each with its code.
        warnings: what is legal but suspicious.
        pixels: number of pixels per class in the masks that were read.
    """

    errors: tuple[DataError, ...]
    warnings: tuple[str, ...]
    pixels: tuple[int, ...]


def verify(dataset: Dataset, split: "Split", unlabeled: Dataset | None = None, limit: int = 50) -> tuple[str, ...]:
    """Check the files of a split and give the warnings.

    Raises:
        DataError: all problems together.
    """
    findings = inspect(dataset, split, unlabeled, limit)
    if findings.errors:
        lines = [f"[{error.code}] {error}" if error.code else str(error) for error in findings.errors]
        count = f"{len(lines)} problem{'s' if len(lines) > 1 else ''}"
        raise DataError(f"{dataset.root}: {count} in images and masks:\n{bullet_list(lines)}", findings.errors[0].code)
    return findings.warnings


def inspect(dataset: Dataset, split: "Split", unlabeled: Dataset | None = None, limit: int = 50) -> Findings:
    """Check that files exist, that masks have the size of their images, and that their values are classes.

    Masks of unlabeled images are not touched.

    Args:
        dataset: of labeled and validation images.
        split: their ids.
        unlabeled: dataset of the unlabeled ids; without it those images are not looked at (`resolve_split` found
            each of them).
        limit: labeled, and validation, masks that are decoded.
    """
    try:
        task = dataset.task
    except DataError as error:  # classes that cannot be found out: nothing else can be judged
        return Findings((error,), (), ())
    errors: list[DataError] = []
    if task.n_classes == 1:
        only = f"{dataset.root}: {task.classes[0]} is the only class. Name a second one: there is nothing to tell apart."
        errors.append(DataError(only, "H212"))
    if isinstance(dataset, FileDataset):
        errors += _absent(dataset, (*split.labeled, *split.val))
        for ids in (split.labeled, split.val):
            errors += _in_threads(lambda id: _check_sizes(dataset, id), _evenly(ids, _HEADERS))
    if isinstance(unlabeled, FileDataset):
        errors += _absent(unlabeled, split.unlabeled)
    known = {str(error) for error in errors}
    histograms: list[np.ndarray] = []

    def count(id: str) -> None:
        histograms.append(np.bincount(dataset.read_target(id).ravel(), minlength=256)[: task.n_classes])

    read = _evenly(split.labeled, limit)
    for sample in (read, _evenly(split.val, limit)):
        errors += [error for error in _in_threads(count, sample) if str(error) not in known]
    counts = np.sum([np.zeros(task.n_classes, dtype=np.int64), *histograms], axis=0)
    return Findings(tuple(errors), tuple(_unseen_classes(task.classes, counts, len(read))), tuple(counts.tolist()))


def _unseen_classes(classes: Sequence[str], counts: np.ndarray, read: int) -> list[str]:
    unseen = [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]
    if not unseen:
        return []
    return [f"{', '.join(unseen)}: not in any of the {read} labeled masks that were looked at (nor in validation)"]


def _absent(dataset: FileDataset, ids: Sequence[str]) -> list[DataError]:
    return [missing(dataset.root / id) for id in ids if not (dataset.root / id).is_file()]


def _check_sizes(dataset: FileDataset, id: str) -> DataError | None:
    image = dataset.root / id
    mask = dataset.mask_path(id)
    if mask is None or mask.suffix == ".json" or not image.is_file() or dataset.labels_of(mask).resize:
        return None
    header, size = read_header(image), read_header(mask).stored
    if size in {header.upright, header.stored}:
        return None
    return DataError(size_mismatch(mask, size, image, header.upright), "H202")


def _in_threads(check: Callable[[str], DataError | None], ids: Sequence[str]) -> list[DataError]:
    def run(id: str) -> DataError | None:
        try:
            return check(id)
        except DataError as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = {str(error): error for error in pool.map(run, ids) if error is not None}
    return list(found.values())


def _evenly(ids: Sequence[str], limit: int) -> list[str]:
    return list(ids[:: max(1, -(-len(ids) // limit))])
