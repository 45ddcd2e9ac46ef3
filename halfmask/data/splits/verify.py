"""Check the files of a split before training starts, and report every problem in one error.

Labeled images and their masks are decoded, validation masks too: they decide what is learned and measured. Of other
images the first and last bytes are read (`is_plain`), and only those that look odd are decoded: most of a long
unlabeled list is whole. Good files are remembered (`halfmask.data.splits.stamps`), so the next start compares sizes and
times only.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from halfmask import __version__
from halfmask.codes import describe
from halfmask.data.contract import Dataset
from halfmask.data.folder.files import FileDataset, date_sizes_differ
from halfmask.data.folder.images.decode import missing, png_depth, read_header
from halfmask.data.folder.layouts import Layout, unused_images
from halfmask.data.folder.masks.forms import MaskForm, collected_forms, disagreements
from halfmask.data.folder.masks.ids import refuse_mask
from halfmask.data.splits.stamps import Good, Stamps, State, state_of
from halfmask.data.splits.weak import PseudoMasks
from halfmask.errors import DataError, gathered
from halfmask.task import Task

if TYPE_CHECKING:
    from halfmask.data.splits.split import Split


OnFile = Callable[[int, int], None]  # files done, files in all


@dataclass(frozen=True)
class Findings:
    """What was found."""

    errors: tuple[DataError, ...]  # problems that would stop training, each with its code
    warnings: tuple[str, ...]  # what is legal but suspicious
    pixels: tuple[int, ...]  # number of pixels per class in the labeled and validation masks


def verify(dataset: Dataset, split: "Split", unlabeled: Dataset | None = None, **options: Any) -> tuple[str, ...]:
    """Check the files of a split as `inspect` does, and give the warnings. Raises DataError: all problems together."""
    findings = inspect(dataset, split, unlabeled, **options)
    if findings.errors:
        count = f"{len(findings.errors)} problem{'s' if len(findings.errors) > 1 else ''}"
        raise gathered(f"{dataset.root}: {count} in images and masks:", findings.errors)
    return findings.warnings


def inspect(
    dataset: Dataset,
    split: "Split",
    unlabeled: Dataset | None = None,
    *,
    pseudo: PseudoMasks | None = None,
    stamps: Path | None = None,
    on_file: OnFile | None = None,
) -> Findings:
    """Check that files can be read, that masks have the size of their images, and that their values are classes.

    Masks of unlabeled images are not touched; pseudo-masks of them, which lie elsewhere, are.

    Args:
        dataset: of labeled and validation images.
        split: their ids.
        unlabeled: dataset of the unlabeled ids; without it those images are not looked at (`resolve_split` found
            each of them).
        pseudo: pseudo-masks of the unlabeled ids.
        stamps: folder that remembers good files; `None` looks at all.
        on_file: called with the number of files done, and of all, from several threads.
    """
    try:
        task = dataset.task
    except DataError as error:  # classes that cannot be found out: of the masks nothing else can be judged
        images = [_Look(dataset, id, decode=True) for id in (*split.labeled, *split.val)]
        broken = _in_threads(lambda look: look.take(Stamps(None, "")), images, on_file)
        return Findings((error, *(one for one in broken if isinstance(one, DataError))), (), ())
    looks = [_Look(dataset, id, masks=True, decode=True) for id in split.labeled]
    looks += [_Look(dataset, id, masks=True) for id in split.val]
    looks += [] if unlabeled is None else [_Look(unlabeled, id, pseudo=pseudo) for id in split.unlabeled]
    memories = {id(dataset): Stamps(stamps, f"{_reader(dataset)} {_meaning(dataset)}")}
    if unlabeled is not None and unlabeled is not dataset:
        memories[id(unlabeled)] = Stamps(stamps, _reader(unlabeled))
    try:
        found = _in_threads(lambda look: look.take(memories[id(look.dataset)]), looks, on_file)
    finally:
        for memory in memories.values():
            memory.save()
    errors = {str(one): one for one in found if isinstance(one, DataError)}  # one broken json concerns many images
    pixels = [0] * task.n_classes
    shown = 0
    for look, one in zip(looks, found, strict=True):
        for label, count in one.counts.items() if look.masks and isinstance(one, Good) else ():
            pixels[int(label)] += count
            shown += count if look.decode else 0
    if not errors and split.labeled and not shown:
        text = (
            f"{dataset.root}: every pixel of the {len(split.labeled)} labeled masks is ignored, so nothing is labeled."
        )
        errors[text] = DataError(f"{text} Draw the classes, or name the values that mean them (halfmask.yaml).", "H210")
    forms = {
        look.mask_name: one.form for look, one in zip(looks, found, strict=True) if isinstance(one, Good) and one.form
    }
    wrong, odd = judge_forms(forms, dataset)
    errors |= wrong
    notes = () if errors else dataset.notes  # masks that cannot be read say nothing about their meaning
    warnings = (*notes, *odd, *_loose_ends(dataset), *_unseen_classes(task, pixels, len(split.labeled)))
    return Findings(tuple(errors.values()), warnings, tuple(pixels))


@dataclass(frozen=True, slots=True)
class _Look:
    """One image, perhaps with its mask, to be looked at."""

    dataset: Dataset  # it belongs to
    id: str  # of the image
    masks: bool = False  # look at its mask
    decode: bool = False  # decode the image whatever its header says
    pseudo: PseudoMasks | None = None  # look at its pseudo-mask, if it has one there

    @property
    def mask_name(self) -> str:
        """Path of the mask, relative to the root where it lies below it."""
        path = self.dataset.mask_path(self.id) or Path(self.id)
        inside = path.is_relative_to(self.dataset.root)
        return path.relative_to(self.dataset.root).as_posix() if inside else str(path)

    def take(self, memory: Stamps) -> Good | DataError:
        """Return the pixels per class, or what is wrong."""
        try:
            files = self._files()
            state = state_of(files)
            if state is None:
                return next(missing(path) for path in files if not path.is_file())
            key = f"{self.id} {files[-1] if self.masks and files else ''}"
            if self.pseudo is not None:
                key += f"{[str(folder.resolve()) for folder in self.pseudo.folders]} {self.pseudo.labels}"
            known = memory.recall(key, state) if files else None
            return known if known is not None else self._read(memory, key, state)
        except DataError as error:
            return error

    def _files(self) -> list[Path]:
        if not isinstance(self.dataset, FileDataset):
            return []
        mask = self.dataset.mask_path(self.id) if self.masks else None
        if self.pseudo is not None:
            mask = self.pseudo.path(self.id)
        return [*self.dataset.image_files(self.id), *([mask] if mask is not None else [])]

    def _read(self, memory: Stamps, key: str, state: State) -> Good:
        dataset, good = self.dataset, Good({})
        images = dataset.image_files(self.id) if isinstance(dataset, FileDataset) else ()
        for path in images:
            refuse_mask(path)
        vouched = bool(images) and all(is_plain(path, dataset.channels) for path in images)
        if self.decode or not vouched:
            dataset.read_image(self.id)
        elif dataset.dates > 1:
            sizes = [read_header(path).upright for path in images]
            if len(set(sizes)) > 1:
                raise date_sizes_differ(images, sizes)
        if self.pseudo is not None:
            self.pseudo.check(self.id)
        if self.masks:
            with collected_forms() as forms:
                found = np.bincount(np.ravel(dataset.read_target(self.id)), minlength=1)[: dataset.task.n_classes]
            counts = {str(label): int(found[label]) for label in np.flatnonzero(found)}
            good = Good(counts, forms[-1] if forms else None)
        told = self.masks and isinstance(dataset, FileDataset) and dataset.shapes_left_out(self.id)
        if state and not told:  # what is worth a line is told at each start
            memory.remember(key, state, good)
        return good


def judge_forms(forms: Mapping[str, MaskForm], dataset: Dataset) -> tuple[dict[str, DataError], list[str]]:
    """Compare how the masks of a dataset hold their values: errors by code, and what is only odd."""
    labels = None
    if isinstance(dataset, FileDataset) and forms:
        labels = dataset.labels_of(dataset.root / next(iter(forms)))

    def class_of(value: int) -> str | None:
        id = labels.training_id(value) if labels is not None else -1
        return dataset.task.classes[id] if 0 <= id < dataset.task.n_classes else None

    errors: dict[str, DataError] = {}
    odd: list[str] = []
    for item in disagreements(forms, labels.colors if labels is not None else None, class_of):
        text = f"{item.text} ({_count(item.files, 'mask')}, for example {item.files[0]})"
        cure = f"{describe(item.code).cure}; halfmask check lists all"
        if item.level == "error":
            errors[item.code] = DataError(f"{dataset.root}: {text}. {cure[0].upper()}{cure[1:]}.", item.code)
        else:
            odd.append(f"{text}: {cure}.")
    return errors, odd


def _reader(dataset: Dataset) -> str:
    """Return a text that changes with whatever decides if an image can be read."""
    return f"{__version__} {type(dataset)} {dataset.root.resolve()} {dataset.channels} {dataset.value_range}"


def _meaning(dataset: Dataset) -> str:
    """Return a text that changes with whatever decides if a mask can be read: classes, values."""
    if not isinstance(dataset, FileDataset):
        return repr(dataset.task)
    first = next((path for id in dataset.ids("train") if (path := dataset.mask_path(id)) is not None), None)
    return f"{dataset.task} {dataset.labels_of(first) if first is not None else ''}"


def _unseen_classes(task: Task, pixels: Sequence[int], labeled: int) -> list[str]:
    unseen = [name for name, count in zip(task.classes, pixels, strict=True) if not count]
    what = "labels" if task.kind == "classification" else "labeled masks"
    return [f"{', '.join(unseen)}: not in any of the {labeled} {what}, nor in validation"] if unseen else []


def _loose_ends(dataset: Dataset) -> Iterator[str]:
    """Find files that nothing uses: often a name that does not fit its partner's."""
    layout = getattr(dataset, "layout", None)
    if not isinstance(layout, Layout):
        return
    if layout.orphans:
        yield (
            f"{_count(layout.orphans, 'mask')} without an image, for example {layout.orphans[0]}: not used. Name each "
            "mask like its image, or remove it."
        )
    if bare := [id for id in dataset.ids("val") if dataset.mask_path(id) is None]:
        yield (
            f"{_count(bare, 'image')} of the validation part without a mask, for example {bare[0]}: not used. Add the "
            "masks, or move the images to unlabeled/."
        )
    if unused := unused_images(layout):
        yield (
            f"{_count(unused, 'image')} in no folder that the layout knows, for example {unused[0]}: not used. Move "
            "them to images/ or unlabeled/ to train on them."
        )


def _count(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''}"


def _in_threads(
    check: Callable[[_Look], Good | DataError], looks: Sequence[_Look], on_file: OnFile | None
) -> list[Good | DataError]:
    done: list[Good | DataError] = []
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))  # decoders release the interpreter lock
    try:
        for one in pool.map(check, looks):
            done.append(one)
            if on_file is not None:
                on_file(len(done), len(looks))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for thousands of files
    return done


_JPEG_END, _PNG_END = b"\xff\xd9", b"IEND\xaeB`\x82"
_TAIL = 64  # some cameras pad the end of a JPEG
# Modes of 8 bits that the readers turn into three bands.
_PLAIN_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})


def is_plain(path: Path, channels: int = 3) -> bool:
    """Return whether a file surely decodes to 8-bit pixels of three bands: known mode, and its end is there.

    `False` does not mean that anything is wrong: decode the file to find out.
    """
    if channels != 3:
        return False
    try:
        with path.open("rb") as file:
            head = file.read(64)
            file.seek(0, 2)
            size = file.tell()
            file.seek(max(0, size - _TAIL))
            tail = file.read(_TAIL)
            if not _is_whole(head, tail, size):
                return False
            file.seek(0)
            with Image.open(file) as image:
                return image.mode in _PLAIN_MODES and min(image.size) > 0
    except Exception:  # Pillow raises many kinds; whoever decodes the file gets the exact one
        return False


def _is_whole(head: bytes, tail: bytes, size: int) -> bool:
    if head.startswith(b"\xff\xd8"):
        return _JPEG_END in tail
    if head.startswith(b"\x89PNG"):
        return tail.endswith(_PNG_END) and png_depth(head)[0] <= 8
    if head.startswith(b"RIFF"):  # WebP: its length stands in the header
        return size >= int.from_bytes(head[4:8], "little") + 8
    return False


def default_folder() -> Path:
    """Return `$HALFMASK_CACHE/verified`, by default below the user's cache folder."""
    base = os.environ.get("HALFMASK_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "halfmask"
    return Path(base).expanduser() / "verified"
