"""Open the data of a recipe and note all that is wrong with it: folder, lists, then every file."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from halfmask.data.contract import Dataset
from halfmask.data.splits.split import Split, examine_split, open_dataset, unlabeled_dataset
from halfmask.data.splits.verify import default_folder, inspect, verify
from halfmask.data.splits.weak import PseudoMasks
from halfmask.errors import Faults, RecipeError
from halfmask.progress import looking_at_files
from halfmask.recipe.raw import read_yaml
from halfmask.recipe.read import WHICH_FILES, DataRecipe, Recipe, load, parse_override
from halfmask.recipe.shipped import find_recipe

_LOOKED_AT = 200  # files of each list, where something else is wrong already: a typo must not wait for a whole dataset
_FILE_KEYS = frozenset(f"data.{key}" for key in WHICH_FILES)


class Opened(NamedTuple):
    """A dataset and the images of it that can be used.

    Args:
        dataset: opened.
        split: ids of images that are there.
        known: whether its classes could be found out.
        whole: whether nothing was wrong at all, so that the numbers of images are those of the run.
    """

    dataset: Dataset
    split: Split
    known: bool
    whole: bool


def open_data(recipe: DataRecipe, faults: Faults) -> Opened | None:
    """Open the dataset and decide on its split; `None` where the dataset cannot be opened."""
    own = Faults()
    found = None
    with own.collected():
        dataset = open_dataset(recipe, faults=own)
        split = examine_split(recipe, dataset, own)
        found = Opened(dataset, split, known=False, whole=False)
        _ = dataset.task  # classes that cannot be found out are an error
        found = found._replace(known=True, whole=not own)
    for error in own.found.values():
        faults.add(error)
    return found


def look_at_files(
    opened: Opened,
    unlabeled: Dataset | None,
    faults: Faults,
    *,
    pseudo: PseudoMasks | None = None,
    quiet: bool = True,
) -> tuple[str, ...]:
    """Look at every file that is in use, note what is wrong with them, and return the warnings.

    Args:
        opened: of labeled and validation images.
        unlabeled: dataset of the unlabeled ids; without it those images are not looked at.
        faults: takes all that is wrong.
        pseudo: pseudo-masks of the unlabeled ids.
        quiet: show no progress.
    """
    dataset, split = opened.dataset, opened.split
    if not opened.whole:  # an image that lacks its mask has been named already
        labeled, val = (tuple(id for id in ids if dataset.mask_path(id)) for ids in (split.labeled, split.val))
        split = replace(split, labeled=labeled, val=val)
    if not opened.known:
        for error in inspect(dataset, split).errors:
            faults.add(error)
        return ()
    with faults.collected(), looking_at_files(quiet) as on_file:
        return verify(dataset, split, unlabeled, pseudo=pseudo, stamps=default_folder(), on_file=on_file)
    return ()


def check_data(recipe: DataRecipe, faults: Faults, *, quiet: bool = True) -> None:
    """Collect what is wrong with the lists and the first files of a recipe, beside what is known to be wrong.

    Several datasets are not looked at.
    """
    opened = open_data(recipe, faults) if recipe.domains is None else None
    if opened is not None:
        first = {name: getattr(opened.split, name)[:_LOOKED_AT] for name in ("labeled", "unlabeled", "val")}
        opened = opened._replace(split=replace(opened.split, **first))
        unlabeled = None
        with Faults().collected():  # has been noted
            unlabeled = unlabeled_dataset(recipe, opened.dataset)
        look_at_files(opened, unlabeled, faults, quiet=quiet)


def load_checked(
    source: str | Path | Mapping[str, Any] | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    only: str = "",
) -> Recipe:
    """Read a recipe as `load` does; where a key is wrong, say what is wrong with its data in the same error.

    Raises:
        RecipeError: all problems together.
    """
    try:
        return load(source, overrides, only=only)
    except RecipeError as error:
        faults = Faults()
        faults.add(error)
        section = _which_files(source, overrides)
        if section is not None:
            check_data(section, faults)
        faults.raise_all()
        raise


def _which_files(
    source: str | Path | Mapping[str, Any] | None, overrides: Sequence[str] | Mapping[str, Any]
) -> DataRecipe | None:
    """Return what a recipe says of its files, be other keys wrong; `None`: nothing, or of several datasets."""
    try:
        raw = read_yaml(find_recipe(source).read_text("utf-8")) if isinstance(source, str | Path) else source or {}
        section = dict(raw.get("data") or {})
    except (RecipeError, OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
        section = {}  # it is this that is wrong
    try:
        pairs = overrides.items() if isinstance(overrides, Mapping) else map(parse_override, overrides)
        given = {f"data.{key}": value for key, value in section.items()} | dict(pairs)
        own = {key: value for key, value in given.items() if ".".join(key.split(".")[:2]) in _FILE_KEYS}
        several = any(key.startswith("data.domains") for key, value in given.items() if value is not None)
        return None if several or "data.root" not in own else load(None, own, only="data").data
    except RecipeError:
        return None
