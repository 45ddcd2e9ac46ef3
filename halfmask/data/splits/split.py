"""Decide which images are labeled, unlabeled and for validation: by published or own lists, or a seeded draw.

The lists are not shipped: `data.splits` names the folder that holds them, laid out `<dataset>/<split>/labeled.txt`
(and `unlabeled.txt`), with `val.txt` beside them or one folder up. All problems are reported in one error.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from halfmask.data.contract import Dataset
from halfmask.data.folder.files import FileDataset
from halfmask.data.folder.lists import Finder, ListEntry, read_list, write_list
from halfmask.data.splits.copies import find_copies
from halfmask.data.splits.drawing import NewSplit, draw, hold_out, make_split, number_of
from halfmask.data.splits.verify import Findings, inspect, verify
from halfmask.errors import CheckpointError, DataError, Faults, RecipeError, bullet_list, nearest
from halfmask.plugins import arguments, resolve
from halfmask.recipe.read import DataRecipe, UnlabeledRecipe

__all__ = [
    "Findings", "ListEntry", "NewSplit", "Split", "examine_split", "inspect", "make_split", "open_dataset", "part_ids",
    "read_list", "recorded_lists", "resolve_split", "unlabeled_dataset", "verify", "write_list",
]  # fmt: skip

_PARTS = ("train", "val", "test", "unlabeled")
_MIN_FOR_HOLD_OUT = 5


@dataclass(frozen=True)
class Split:
    """Ids in the order of their lists."""

    labeled: tuple[str, ...]  # images whose masks train
    unlabeled: tuple[str, ...]  # images used without masks, relative to the root of `unlabeled_dataset`
    val: tuple[str, ...]  # images with masks for validation
    remarks: tuple[str, ...] = ()  # what was decided for the user, with the key that decides otherwise


def open_dataset(recipe: DataRecipe, root: Path | str | None = None, faults: Faults | None = None) -> Dataset:
    """Open the dataset a recipe names, without opening the masks that lists declare unlabeled.

    Args:
        recipe: the `data` section.
        root: instead of `recipe.root`.
        faults: takes what is wrong with the lists; `None`: it is raised.

    Raises:
        RecipeError: unknown dataset or parameter.
        DataError: no root, a folder that the dataset cannot read, or a list that is missing or damaged.
    """
    where = root if root is not None else recipe.root
    if where is None:
        raise DataError("no data: give the folder with --data DIR (data.root).", "H208")
    dataset = _open(recipe.dataset.name, recipe.dataset.params, Path(where))
    if recipe.split is not None or isinstance(recipe.labeled, str):
        lists = _Lists(recipe, dataset, faults if faults is not None else Faults())
        used = {*lists.labeled_pool(), *(lists.val_listed() or ())}
        if faults is None:
            lists.faults.raise_all()
        dataset.sealed = frozenset({*dataset.ids("train"), *dataset.ids("unlabeled")} - used)
    return dataset


def unlabeled_dataset(recipe: DataRecipe, dataset: Dataset) -> Dataset:
    """Open the dataset that unlabeled ids belong to: another place if the recipe names one, else the same."""
    if not isinstance(recipe.unlabeled, UnlabeledRecipe):
        return dataset
    there = _open(recipe.unlabeled.dataset.name, recipe.unlabeled.dataset.params, Path(recipe.unlabeled.root))
    if there.dates != dataset.dates:
        pairs, single = ("labeled", "unlabeled") if dataset.dates > 1 else ("unlabeled", "labeled")
        raise RecipeError(
            f"data.unlabeled: the {pairs} images are pairs of dates, the {single} ones are not. Read both alike, for "
            "example data.dataset=change_folder data.unlabeled.dataset=change_folder."
        )
    return there


def resolve_split(recipe: DataRecipe, dataset: Dataset) -> Split:
    """Decide which ids are labeled, unlabeled and for validation, and check that they fit together.

    Raises:
        DataError: all problems together: absent images or masks, duplicates, overlaps, no labeled image.
    """
    faults = Faults()
    split = examine_split(recipe, dataset, faults)
    faults.raise_all()
    return split


def examine_split(recipe: DataRecipe, dataset: Dataset, faults: Faults) -> Split:
    """Decide as `resolve_split` does; what is wrong is noted, and the ids that are right are returned."""
    lists = _Lists(recipe, dataset, faults)
    val = lists.val_listed()
    labeled: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()
    with faults.collected():
        labeled, spare = _choose_labeled(recipe, dataset, lists, set(val or ()))
    if val is None:
        val = ()
        # Whoever lists the labeled images means these, all of them.
        if not lists.names_labeled and len(labeled) >= _MIN_FOR_HOLD_OUT and not lists.problems:
            with faults.collected():  # it reads classes
                val = hold_out(dataset, labeled, len(labeled) // 5, recipe.labeled_seed)
            lists.remarks.append(
                f"no validation part: {len(val)} of the {len(labeled)} masks {'is' if len(val) == 1 else 'are'} held "
                f"out for validation, {len(labeled) - len(val)} train. Train on all with data.val=none, or name "
                "validation images with data.val=LIST."
            )
            labeled = tuple(id for id in labeled if id not in set(val))
    other = dataset
    unlabeled: tuple[str, ...] = ()
    with faults.collected():
        other = unlabeled_dataset(recipe, dataset)
        unlabeled = lists.unlabeled(other, labeled, spare, val)
    split = Split(labeled, unlabeled, tuple(val), tuple(lists.remarks))
    problems = lists.problems + _contradictions(split, dataset, other, named=bool(labeled or faults))
    if problems:
        faults.add(
            DataError(
                f"{dataset.root}: the split cannot be used (one role per image):\n{bullet_list(problems, limit=30)}",
                "H211" if split.labeled or lists.problems else "H210",
            )
        )
    if other is dataset and not faults:
        dataset.sealed = frozenset(unlabeled)
    return split


class _Lists:
    """The lists that a recipe names, as ids; problems are collected, not raised."""

    def __init__(self, recipe: DataRecipe, dataset: Dataset, faults: Faults) -> None:
        self.recipe, self.dataset, self.faults = recipe, dataset, faults
        self.problems: list[str] = []
        self.remarks: list[str] = []
        self.names_labeled = isinstance(recipe.labeled, str) or recipe.split is not None
        self._finder = Finder(dataset)
        self._judged: Sequence[str] | None = None  # validation images that are in use
        self._folder: Path | None = None
        with faults.collected():
            self._folder = find_split(recipe, dataset) if recipe.split is not None else None

    def labeled_pool(self) -> tuple[str, ...]:
        """Return the images whose masks may be used."""
        if isinstance(self.recipe.labeled, str):
            return self._listed(self.recipe.labeled, "data.labeled", "labeled", masks=True)
        if self._folder is not None:
            return self._ids(self._folder / "labeled.txt", "labeled", masks=True)
        if self.names_labeled:
            return ()  # of a split that was not found
        return tuple(id for id in self.dataset.ids("train") if self.dataset.mask_path(id) is not None)

    def val_listed(self) -> tuple[str, ...] | None:
        """Return validation images by list or part; `None` if some have to be held out."""
        asked = self.recipe.val
        if asked == "none":
            return ()
        if asked == "auto":
            return self.part("val") or None
        if asked in _PARTS:
            found = self.part(asked)
            if not found:
                self.problems.append(f"data.val={asked}: that part has no image with a mask. Use auto, none, or a list")
            return found
        return self._listed(asked, "data.val", "val", masks=True, extra=("auto", "none", *_PARTS))

    def unlabeled(
        self, other: Dataset, labeled: Sequence[str], spare: Sequence[str], val: Sequence[str]
    ) -> tuple[str, ...]:
        """Return unlabeled ids; by default whatever is for training and not in use, else exactly as listed."""
        asked = self.recipe.unlabeled
        used, self._judged = {*labeled, *val}, val
        if isinstance(asked, str):
            return self._listed(asked, "data.unlabeled", "unlabeled")
        if isinstance(asked, UnlabeledRecipe):
            if asked.list is not None:
                path = _find_list(asked.list, other, "data.unlabeled.list")
                listed = self._ids(path, "unlabeled", finder=Finder(other))
                if copies := self._copies(other, listed):
                    self.remarks.append(
                        f"{path}: {len(copies)} unlabeled images are copies of validation or test images "
                        f"({_told(copies)}): the score will be too good. Take them off the list."
                    )
                return listed
            return self._all_of(other, used)
        if self._folder is not None and (self._folder / "unlabeled.txt").is_file():
            return (*self._ids(self._folder / "unlabeled.txt", "unlabeled"), *spare)
        # A published split is labeled + the rest of its training list; extra images would change the protocol.
        parts = ("train",) if self._folder is not None else ("train", "unlabeled")
        return tuple(sorted({id for part in parts for id in self.dataset.ids(part)} - used))

    def _all_of(self, other: Dataset, used: set[str]) -> tuple[str, ...]:
        """Return every image of another place, except those that train with a mask, validate or test."""
        kept_out = used | {id for part in ("val", "test") for id in self.dataset.ids(part)}
        taken = {_identity(self.dataset, id) for id in kept_out}
        found = sorted(other.every_id())
        kept = tuple(id for id in found if _identity(other, id) not in taken)
        copies = self._copies(other, kept)
        if copies:
            self.remarks.append(
                f"{len(copies)} images below {other.root} are copies of validation or test images ({_told(copies)}): "
                "left out of the unlabeled ones, for the score would be too good. Remove them there."
            )
        left_out = [id for id in found if id not in set(kept)]
        kept = tuple(id for id in kept if id not in copies)
        if left_out:
            self.remarks.append(
                f"{other.root} and {self.dataset.root} share images: {len(left_out)} that are labeled, or of the "
                f"validation or test part, are left out of the unlabeled ones ({_examples(left_out)}). To choose them "
                "yourself, name a list: data.unlabeled.list."
            )
        return kept

    def _copies(self, other: Dataset, ids: Sequence[str]) -> dict[str, str]:
        """Return images of another place that are copies of validation or test images here, with these."""
        judged = [
            *(self._judged if self._judged is not None else ()),
            *self.dataset.ids("val"),
            *self.dataset.ids("test"),
        ]
        if not isinstance(self.dataset, FileDataset) or not isinstance(other, FileDataset) or not judged:
            return {}
        originals = {path: id for id in dict.fromkeys(judged) for path in self.dataset.image_files(id)}
        copies = {path: id for id in ids for path in other.image_files(id)}
        found = find_copies(list(originals), list(copies))
        return {copies[path]: originals[original] for path, original in found.items()}

    def part(self, part: str) -> tuple[str, ...]:
        """Return ids with masks of a part: as the list beside the split says, else as the dataset does."""
        if self._folder is not None and part in {"val", "test"}:
            for path in (self._folder / f"{part}.txt", self._folder.parent / f"{part}.txt"):
                if path.is_file():
                    return self._ids(path, part, masks=True)
        return tuple(id for id in self.dataset.ids(part) if self.dataset.mask_path(id) is not None)

    def _listed(
        self, name: str, key: str, what: str, *, masks: bool = False, extra: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """Return the ids of the list that a key names; none of a list that is missing or damaged."""
        with self.faults.collected():
            return self._ids(_find_list(name, self.dataset, key, extra), what, masks)
        return ()

    def _ids(self, path: Path, what: str, masks: bool = False, finder: Finder | None = None) -> tuple[str, ...]:
        finder = finder or self._finder
        ids: list[str] = []
        absent: list[str] = []
        with self.faults.collected():
            ids, absent = finder.take_list(path, masks=masks)
        if absent:
            self._note(f"{path}: not below {finder.root} ({len(absent)} of {len(absent) + len(ids)})", absent)
        if masks and (bare := [id for id in ids if self.dataset.mask_path(id) is None]):
            self._note(f"{path}: {what}, but without a mask ({len(bare)})", bare)
        if twice := _repeated(ids):
            self._note(f"{path}: listed more than once ({len(twice)})", twice)
        return tuple(ids)

    def _note(self, problem: str, examples: Sequence[str]) -> None:
        self.problems.append(f"{problem}: {_examples(examples)}")


def part_ids(recipe: DataRecipe, dataset: Dataset, part: str) -> tuple[str, ...]:
    """Return the ids with masks of the part `val` or `test`: by the list beside the recipe's split, else the dataset's.

    Raises:
        DataError: the list names images that are not there.
    """
    lists = _Lists(recipe, dataset, Faults())
    ids = lists.part(part)
    lists.faults.raise_all()
    if lists.problems:
        raise DataError(f"{dataset.root}: the part {part} cannot be used:\n{bullet_list(lists.problems)}", "H211")
    return ids


def find_split(recipe: DataRecipe, dataset: Dataset) -> Path:
    """Find the folder of a named split. Raises DataError: there is none; the message lists those there are."""
    name = recipe.split or ""
    base = Path(recipe.splits) if recipe.splits is not None else dataset.root / "splits"
    bases = [base / folder for folder in (dataset.splits_name, recipe.dataset.name) if folder]
    bases += [base, dataset.root / "splits"]
    # Published folders of change detection are named 5%, which some file systems and tools do not take.
    spellings = dict.fromkeys((name, name.replace("%", "pct"), name.replace("pct", "%")))
    for folder in bases:
        for spelling in spellings:
            if (folder / spelling / "labeled.txt").is_file():
                return folder / spelling
    known = sorted({path.parent.name for folder in bases for path in folder.glob("*/labeled.txt")})
    listed = f"Known splits: {', '.join(known)}." if known else f"No split is there (looked in {base})."
    raise DataError(
        f"split {name!r} of {recipe.dataset.name} not found.{nearest(name, known)} {listed} Say where the lists "
        "are with data.splits=DIR, or draw one: data.split=null data.labeled=COUNT.",
        "H211",
    )


def _choose_labeled(
    recipe: DataRecipe, dataset: Dataset, lists: _Lists, val: set[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the labeled ids, and the rest of the split's own labeled list."""
    pool = lists.labeled_pool()
    if not lists.names_labeled:
        pool = tuple(id for id in pool if id not in val)
    if recipe.labeled is None or isinstance(recipe.labeled, str) or lists.problems:
        return pool, ()
    count = recipe.labeled if isinstance(recipe.labeled, int) else number_of(recipe.labeled, len(pool))
    drawn = draw(dataset, pool, count, recipe.labeled_seed)
    if drawn.missing:
        lists.remarks.append(
            f"no labeled image shows {', '.join(drawn.missing)}: these classes cannot be learned. Label more images, "
            "or choose them by hand (data.labeled=LIST)."
        )
    chosen = set(drawn.ids)
    return drawn.ids, tuple(id for id in pool if id not in chosen)


def _contradictions(split: Split, dataset: Dataset, other: Dataset, *, named: bool) -> list[str]:
    """List images of two roles; and that none is labeled, unless the reason is `named` already."""
    problems: list[str] = []
    if not split.labeled and not named:
        problems.append(
            "no labeled image: put masks named like their images into masks/, or name a list with data.labeled"
        )
    labeled, val = set(split.labeled), set(split.val)
    if both := sorted(labeled & val):
        problems.append(f"both labeled and for validation ({len(both)}): {_examples(both)}")
    place = {_identity(dataset, id): id for id in (*split.labeled, *split.val)}
    overlap = [place[file] for id in split.unlabeled if (file := _identity(other, id)) in place]
    if both := [id for id in overlap if id in labeled]:
        problems.append(f"both labeled and unlabeled ({len(both)}): {_examples(both)}")
    if both := [id for id in overlap if id in val]:
        problems.append(f"both unlabeled and for validation ({len(both)}): {_examples(both)}")
    return problems


def _open(name: str, params: dict[str, Any], root: Path) -> Dataset:
    cls = resolve("datasets", name)
    try:
        checked = arguments(cls, params)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise RecipeError(f"data.dataset {name}:\n{bullet_list(lines)}", "H303") from None
    dataset: Dataset = cls(root, **checked)
    return dataset


def _find_list(name: str, dataset: Dataset, key: str, extra: Sequence[str] = ()) -> Path:
    for path in (Path(name), dataset.root / name, dataset.root / "splits" / name):
        if path.is_file():
            return path
    allowed = f"{nearest(name, extra)} Allowed: {', '.join(extra)}, or a list file." if extra else ""
    raise DataError(
        f"{key}={name}: no such list, neither here nor in {dataset.root} or its splits/.{allowed} A list is a text "
        "file with one image per line, relative to the dataset's root.",
        "H211",
    )


def _told(copies: Mapping[str, str]) -> str:
    return _examples([f"{copy} of {original}" for copy, original in copies.items()])


def _identity(dataset: Dataset, id: str) -> tuple[int, int] | str:
    """Return what two names of one file have in common, be they relative, linked, or below different roots."""
    path = os.path.join(dataset.root, id)
    try:
        state = os.stat(path)
    except OSError:
        return os.path.abspath(path)
    return (state.st_dev, state.st_ino) if state.st_ino else os.path.realpath(path)


def _repeated(ids: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return list(dict.fromkeys(id for id in ids if id in seen or seen.add(id)))  # type: ignore[func-returns-value]


def _examples(ids: Sequence[str], limit: int = 3) -> str:
    return ", ".join(ids[:limit]) + (f" and {len(ids) - limit} more" if len(ids) > limit else "")


def recorded_lists(path: Path, *names: str, cure: str = "") -> dict[str, list[str]]:
    """Return the ids of the lists in the split.json of a run: those of these names, or all.

    Raises:
        CheckpointError: it cannot be read, or a list is missing; `cure` says what to do.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return {name: [str(id) for id in told[name]["ids"]] for name in names or told}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error!r}). {cure}", "H402") from error
