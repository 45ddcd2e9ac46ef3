"""Gather all that `halfmask check` needs of a dataset in one pass over its files; `result` judges it."""

import os
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from halfmask.data.check.file_facts import THUMB, ImageFacts, MaskFacts, look_at_image, look_at_mask
from halfmask.data.check.near_duplicates import Duplicate, find_near_duplicates
from halfmask.data.contract import Dataset
from halfmask.data.datasets.folder import Folder
from halfmask.data.folder.images.decode import IMAGE_SUFFIXES
from halfmask.data.folder.layouts import Layout, head_of, require_images
from halfmask.data.folder.lists import Finder, read_list
from halfmask.data.splits.split import examine_split, open_dataset, resolve_split, unlabeled_dataset
from halfmask.errors import DataError, Faults, HalfmaskError
from halfmask.recipe.read import DataRecipe, UnlabeledRecipe
from halfmask.task import Task

PARTS = ("labeled", "unlabeled", "val", "test")
# Pictures, archives and volumes that people put into such folders and that are not read.
FOREIGN = frozenset(
    {".heic", ".heif", ".avifs", ".psd", ".jxl", ".hif", ".ico", ".icns", ".dds", ".pcx", ".sgi", ".xbm", ".xpm",
     ".pfm", ".qoi", ".hdr", ".eps", ".ai", ".fits", ".hdf", ".arw", ".orf", ".rw2", ".ecw", ".sid", ".img",
     ".vrt", ".xcf", ".raw", ".cr2", ".nef", ".dng", ".svg", ".pdf", ".zip", ".tar",
     ".gz", ".tgz", ".rar", ".7z", ".nii", ".dcm", ".mp4", ".mov", ".avi", ".h5", ".mat", ".npz", ".exr"}
)  # fmt: skip
_LONGEST_LIST = 200_000
_DRAWN = frozenset({".xml", ".json", ".txt"})
_MARKS = {".xml": ("<annotation", "<annotations"), ".json": ('"shape_attributes"', '"regions"', '"objects"')}


@dataclass(frozen=True)
class Tree:
    """What lies in the folder apart from images and masks."""

    foreign: dict[str, list[str]] = field(default_factory=dict)  # suffix -> files of kinds that are not read
    links: tuple[str, ...] = ()  # symbolic links to folders, and links that lead nowhere
    colliding: tuple[tuple[str, ...], ...] = ()  # groups of names that differ in case only
    annotations: tuple[str, ...] = ()  # files that tools write beside images, whatever their form


@dataclass(frozen=True)
class Fingerprint:
    """All facts; every rule is a function of this alone."""

    root: Path  # folder that paths are relative to
    dataset: Dataset | None = None  # the opened dataset, `None` if it cannot be opened
    task: Task | None = None  # classes, `None` if they cannot be told
    failures: tuple[HalfmaskError, ...] = ()  # why not
    layout: Layout | None = None  # of `folder` datasets
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)  # ids of "labeled", "unlabeled", "val", "test"
    bare: tuple[str, ...] = ()  # images of the validation or test part without a mask
    images: dict[str, ImageFacts] = field(default_factory=dict)  # facts by id
    masks: dict[str, MaskFacts] = field(default_factory=dict)  # facts by id, of images whose masks are in use
    tree: Tree = field(default_factory=Tree)  # what else lies there
    # (part, part) -> pairs of ids that show the same thing
    near_duplicates: dict[tuple[str, str], list[tuple[str, str]]] = field(default_factory=dict)
    # split list -> (entries that name no image, all entries)
    stale: dict[str, tuple[list[str], int]] = field(default_factory=dict)
    chosen: bool = False  # whether the recipe names lists, so that the parts are those of training
    seconds: float = 0.0  # what all this took


def take_fingerprint(
    recipe: DataRecipe, *, limit: int | None = None, workers: int = 0, tick: Callable[[int], None] = lambda total: None
) -> Fingerprint:
    """Open every file of a dataset once.

    Masks of images that the recipe's lists use without labels stay closed.

    Args:
        recipe: the `data` section.
        limit: look at so many images per part, evenly spread.
        workers: threads; 0 = one per core, at most 16.
        tick: called after each image with the number of images, for a progress bar.

    Raises:
        DataError: there is no such folder. Everything else is kept in `failures`.
    """
    start = time.perf_counter()
    root = _existing_root(recipe)
    failures: list[HalfmaskError] = []
    try:
        dataset = open_dataset(recipe, faults=Faults())  # `_parts` finds what is wrong with the lists once more
        parts, bare = _parts(recipe, dataset, failures)
    except HalfmaskError as error:
        return Fingerprint(root, failures=(error,), tree=_look_around(root), seconds=time.perf_counter() - start)
    dataset.sealed = frozenset(parts["unlabeled"])
    other, there = _elsewhere(recipe, dataset, failures)
    parts["unlabeled"] = (*parts["unlabeled"], *there)
    if limit is not None:
        parts = {part: tuple(ids[:: max(1, -(-len(ids) // limit))][:limit]) for part, ids in parts.items()}
    places = {name: (other, id) for name, id in there.items()} if other is not None else {}
    images, masks = _look_at_all(places, dataset, parts, workers, tick)
    if isinstance(dataset, Folder):
        told = {dataset.mask_path(id): one for id, one in masks.items() if one.kind == "ids" and one.size is not None}
        known = {path: (one.form.kind if one.form else one.kind, one.values) for path, one in told.items() if path}
        dataset.know_counts(known)
    task: Task | None = None
    try:
        task = dataset.task
    except HalfmaskError as error:
        failures.append(error)
    return Fingerprint(
        root=dataset.root,
        dataset=dataset,
        task=task,
        failures=tuple(failures),
        layout=dataset.layout if isinstance(dataset, Folder) else None,
        parts=parts,
        bare=bare,
        images=images,
        masks=masks,
        tree=_look_around(root),
        near_duplicates=_near_duplicates(parts, images),
        stale=_stale_lists(dataset),
        chosen=_names_lists(recipe),
        seconds=time.perf_counter() - start,
    )


def _existing_root(recipe: DataRecipe) -> Path:
    if recipe.root is None:
        raise DataError("no data: give the folder with --data DIR (data.root).", "H208")
    require_images(root := Path(recipe.root))
    return root


def _names_lists(recipe: DataRecipe) -> bool:
    lists = (recipe.split, recipe.labeled, recipe.unlabeled)
    return any(value is not None for value in lists) or recipe.val not in {"auto", "none"}


def _parts(
    recipe: DataRecipe, dataset: Dataset, failures: list[HalfmaskError]
) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Return ids by what they are used for: as the recipe's lists say, else as the folders do."""
    folders = {part: dataset.ids(part) for part in ("train", "val", "test", "unlabeled")}
    masked = {id for part in ("train", "val", "test") for id in folders[part] if dataset.mask_path(id) is not None}
    test = tuple(id for id in folders["test"] if id in masked)
    bare = tuple(id for part in ("val", "test") for id in folders[part] if id not in masked)
    if _names_lists(recipe):
        faults = Faults()
        split = examine_split(recipe, dataset, faults)
        if not faults:
            unlabeled = split.unlabeled if unlabeled_dataset(recipe, dataset) is dataset else ()  # else: `_elsewhere`
            taken = {*split.labeled, *split.val}
            rest = tuple(id for id in test if id not in taken)
            return {"labeled": split.labeled, "unlabeled": unlabeled, "val": split.val, "test": rest}, bare
        failures += faults.found.values()
    labeled = tuple(id for id in folders["train"] if id in masked)
    unlabeled = tuple(id for id in (*folders["train"], *folders["unlabeled"]) if id not in masked)
    val = tuple(id for id in folders["val"] if id in masked)
    return {"labeled": labeled, "unlabeled": unlabeled, "val": val, "test": test}, bare


def _elsewhere(
    recipe: DataRecipe, dataset: Dataset, failures: list[HalfmaskError]
) -> tuple[Dataset | None, dict[str, str]]:
    """Return the dataset of unlabeled images in another place, and its ids by their paths."""
    if not isinstance(recipe.unlabeled, UnlabeledRecipe):
        return None, {}
    try:
        other = unlabeled_dataset(recipe, dataset)
        if recipe.unlabeled.list is not None:
            ids = list(resolve_split(recipe, dataset).unlabeled)
        else:
            ids = sorted(other.every_id())
    except HalfmaskError as error:
        failures.append(error)
        return None, {}
    own = {(dataset.root / id).resolve() for id in dataset.every_id()}
    return other, {str(other.root / id): id for id in ids if (other.root / id).resolve() not in own}


def _look_at_all(
    places: Mapping[str, tuple[Dataset, str]],
    dataset: Dataset,
    parts: dict[str, tuple[str, ...]],
    workers: int,
    tick: Callable[[int], None],
) -> tuple[dict[str, ImageFacts], dict[str, MaskFacts]]:
    ids = list(dict.fromkeys(id for part in PARTS for id in parts[part]))
    closed = frozenset(parts["unlabeled"])

    def look(id: str) -> tuple[ImageFacts, MaskFacts | None]:
        if id in places:
            return replace(look_at_image(*places[id]), id=id), None
        return look_at_image(dataset, id), None if id in closed else look_at_mask(dataset, id)

    images: dict[str, ImageFacts] = {}
    masks: dict[str, MaskFacts] = {}
    with (
        warnings.catch_warnings(),  # what they say becomes findings
        ThreadPoolExecutor(workers or min(16, os.cpu_count() or 1)) as pool,
    ):
        warnings.simplefilter("ignore")
        for id, (image, mask) in zip(ids, pool.map(look, ids), strict=True):
            images[id] = image
            if mask is not None:
                masks[id] = mask
            tick(len(ids))
    return images, masks


def _near_duplicates(
    parts: dict[str, tuple[str, ...]], images: dict[str, ImageFacts]
) -> dict[tuple[str, str], list[tuple[str, str]]]:
    ids = [id for part in PARTS for id in parts[part] if images[id].thumb is not None]
    if not ids:
        return {}
    part_of = {id: number for number, part in enumerate(PARTS) for id in parts[part]}
    thumbs = np.stack([thumb for id in ids if (thumb := images[id].thumb) is not None])
    if thumbs.shape[1:] != (THUMB, THUMB):
        return {}
    labeled, unlabeled, val, test = range(4)
    wanted = [
        (val, labeled), (test, labeled), (val, unlabeled), (test, unlabeled), (test, val), (unlabeled, labeled),
        (labeled, labeled), (val, val), (test, test), (unlabeled, unlabeled),
    ]  # fmt: skip
    found: dict[tuple[int, int], list[Duplicate]] = find_near_duplicates(
        thumbs, np.array([part_of[id] for id in ids]), wanted
    )
    return {(PARTS[a], PARTS[b]): [(ids[i], ids[j]) for i, j in pairs] for (a, b), pairs in found.items()}


def _look_around(root: Path) -> Tree:
    """Walk the folder once, without following links to folders."""
    foreign: dict[str, list[str]] = defaultdict(list)
    links: list[str] = []
    folded: dict[str, list[str]] = defaultdict(list)
    drawn: list[str] = []
    for folder, folders, files in os.walk(root, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(folder)
        links += [(here / name).relative_to(root).as_posix() for name in folders if (here / name).is_symlink()]
        for name in sorted(files):
            suffix = os.path.splitext(name)[1].lower()
            path = (here / name).relative_to(root).as_posix()
            if suffix in _DRAWN:
                drawn.append(path)
            if suffix in FOREIGN:
                foreign[suffix].append(path)
            elif suffix in IMAGE_SUFFIXES:
                folded[path.casefold()].append(path)
            if suffix not in IMAGE_SUFFIXES and (here / name).is_symlink() and not (here / name).exists():
                links.append(path)  # an image that leads nowhere is an unreadable image already
    collisions = tuple(tuple(names) for names in folded.values() if len(names) > 1)
    stems = {os.path.splitext(os.path.basename(path))[0] for path in folded}
    annotations = [path for path in drawn if _is_annotation(root / path, stems)]
    return Tree(dict(foreign), tuple(links), collisions, tuple(annotations))


def _is_annotation(path: Path, stems: set[str]) -> bool:
    """Return whether a file is named like an image, or is one of a whole folder that a known tool wrote."""
    name = path.stem.casefold()
    if name in stems or os.path.splitext(name)[0] in stems:
        return True
    try:
        return any(mark in head_of(path) for mark in _MARKS.get(path.suffix.lower(), ()))
    except OSError:
        return False


def _stale_lists(dataset: Dataset) -> dict[str, tuple[list[str], int]]:
    """Look for images that the lists in splits/ name and that are not there."""
    stale: dict[str, tuple[list[str], int]] = {}
    lists = sorted((dataset.root / "splits").rglob("*.txt"))
    finder = Finder(dataset) if lists else None
    for path in lists:
        try:
            entries = read_list(path)
        except DataError as error:
            stale[path.relative_to(dataset.root).as_posix()] = ([str(error)], 1)
            continue
        if finder is None or len(entries) > _LONGEST_LIST:
            continue
        absent = [entry.image for entry in entries if finder.id_of(entry.image) is None]
        if absent:
            stale[path.relative_to(dataset.root).as_posix()] = (absent, len(entries))
    return stale


def size_counts(images: Sequence[ImageFacts]) -> Counter[tuple[int, int]]:
    """Count the upright sizes (height, width)."""
    return Counter(facts.header.upright for facts in images if facts.header is not None)
