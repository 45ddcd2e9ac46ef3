"""Which evaluated images the model learned from: by id, or as copies with other names."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from halfmask.data.contract import Dataset
from halfmask.data.splits.split import open_dataset, recorded_lists, unlabeled_dataset
from halfmask.errors import HalfmaskError, first_few
from halfmask.recipe.read import DataRecipe

# Up to so many bytes of files, pixels are compared too: the same picture saved as another file.
_DECODED = 100 * 2**20


@dataclass(frozen=True)
class Seen:
    """Evaluated images that took part in the training."""

    labeled: tuple[str, ...]  # whose masks it learned from
    unlabeled: tuple[str, ...]  # without their masks
    images: int  # number of evaluated images

    def describe(self) -> str:
        """Say in words how many images the model has seen; nothing where it has seen none."""
        parts = []
        if self.labeled:
            parts.append(
                f"{_count(self.labeled)} of {self.images} images are among those whose masks the model was trained on: "
                "the score says how well it remembers them, not how well it does on new ones"
            )
        if self.unlabeled:
            parts.append(
                f"{_count(self.unlabeled)} of {self.images} images were unlabeled images of the training: the score "
                "may be higher than on new ones"
            )
        return f"[H605] {'; '.join(parts)}." if parts else ""


def seen_in_training(recipe: DataRecipe, lists: Path, dataset: Dataset, ids: Sequence[str]) -> Seen:
    """Look for evaluated images among those of the training."""
    found: dict[str, tuple[str, ...]] = {"labeled": (), "unlabeled": ()}
    if ids:
        with suppress(HalfmaskError, OSError):  # the lists or the data of the training may be gone
            known = recorded_lists(lists, *found)
            trained = open_dataset(recipe.model_copy(update={"split": None, "labeled": None, "val": "none"}))
            sources = {"labeled": trained, "unlabeled": unlabeled_dataset(recipe, trained)}
            found = {name: _common(dataset, ids, sources[name], known[name]) for name in found}
    return Seen(found["labeled"], found["unlabeled"], len(ids))


def _common(dataset: Dataset, ids: Sequence[str], other: Dataset, training: Sequence[str]) -> tuple[str, ...]:
    """Return the evaluated images that are, or look exactly like, one of the training images."""
    same = Path(dataset.root).resolve() == Path(other.root).resolve()
    own = set(training) & set(ids) if same else set()
    rest = [id for id in ids if id not in own]
    ours, theirs = _sizes(dataset, rest), _sizes(other, [id for id in training if not (same and id in own)])
    by_size: dict[int, list[str]] = {}
    for id, size in theirs.items():
        by_size.setdefault(size, []).append(id)
    digests: dict[str, str] = {}
    for id, size in ours.items():
        copies = by_size.get(size, ())
        for copy in copies:
            digests[copy] = digests.get(copy) or _digest(other, copy)
        if copies and _digest(dataset, id) in {digests[copy] for copy in copies}:
            own.add(id)
    if sum(ours.values()) + sum(theirs.values()) <= _DECODED:
        pictures = {_pixels(other, id) for id in theirs}
        own |= {id for id in ours if id not in own and _pixels(dataset, id) in pictures}
    return tuple(id for id in ids if id in own)


def _sizes(dataset: Dataset, ids: Iterable[str]) -> Mapping[str, int]:
    """Return the bytes of the files of each image; images whose files are missing are left out."""
    sizes = {}
    for id in ids:
        with suppress(OSError, HalfmaskError):
            sizes[id] = sum(path.stat().st_size for path in dataset.image_files(id))
    return sizes


def _digest(dataset: Dataset, id: str) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in dataset.image_files(id))).hexdigest()


def _pixels(dataset: Dataset, id: str) -> str:
    try:
        image = dataset.read_image(id)
    except (OSError, HalfmaskError):
        return f"{dataset.root}/{id}"  # equal to nothing else
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()


def _count(ids: Sequence[str]) -> str:
    return f"{len(ids)} ({first_few(ids)})"
