"""What is known of unlabeled images besides their pixels: image-level tags, or pseudo-masks of any source.

A tag file is CSV (`image,classes`, header optional) or text with a tab (`image<TAB>class,class`). Several classes of
one cell are separated by commas, semicolons, bars or spaces; a CSV may also have one class per column. Classes are
names or ids. Nothing here opens a mask of the dataset: pseudo-masks lie in a folder of their own.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from halfmask.data.contract import Dataset
from halfmask.data.folder.files import read_text
from halfmask.data.folder.lists import Finder
from halfmask.data.folder.masks.decode import LabelMap, read_mask
from halfmask.errors import DataError, bullet_list, first_few, nearest
from halfmask.recipe.sections import WeakRecipe
from halfmask.task import Task

_IMAGE_NAMES = {"image", "img", "path", "file", "filename", "image_path", "id"}
_SEPARATORS = re.compile(r"\s*[,;|]\s*")


@dataclass(frozen=True)
class Weak:
    """What is known of the unlabeled images of a split, in its order."""

    # classes each image shows; a row without any: unknown. `None`: there are no tags
    tags: Bool[np.ndarray, "N K"] | None = None
    masks: "PseudoMasks | None" = None  # reads pseudo-masks; `None`: there are none
    remarks: tuple[str, ...] = ()  # to be shown before training


NOTHING_KNOWN = Weak()


@dataclass(frozen=True)
class PseudoMasks:
    """Masks of class ids in folders, named like the images, whose suffix `.png` replaces or follows.

    For `b/x.jpg`: `<folder>/b/x.jpg.png`, `<folder>/b/x.png`, or `<folder>/x.png`.
    """

    folders: tuple[Path, ...]  # of the masks; the first one that has a mask of an image counts
    dataset: Dataset  # of the images
    labels: LabelMap  # classes that may occur; 255 is unknown
    ignore_index: int  # label of unknown pixels

    def path(self, id: str) -> Path | None:
        """Return where the mask of an image lies, if there is one."""
        plain = Path(id).with_suffix(".png")
        places = (folder / name for folder in self.folders for name in (f"{id}.png", plain, plain.name))
        return next((path for path in places if path.is_file()), None)

    def read(self, id: str, size: tuple[int, int]) -> UInt8[np.ndarray, "H W"]:
        """Read the mask of an image of a size (height, width); all unknown where there is none.

        Raises:
            DataError: broken, of another size, or with values that are no class.
        """
        mask = self._stored(id)
        return np.full(size, self.ignore_index, dtype=np.uint8) if mask is None else mask

    def check(self, id: str) -> None:
        """Read the mask of an image, if there is one. Raises DataError: as `read`."""
        self._stored(id)

    def _stored(self, id: str) -> UInt8[np.ndarray, "H W"] | None:
        path = self.path(id)
        return None if path is None else read_mask(path, self.labels, self.dataset.root / id)


def load_weak(recipe: WeakRecipe, dataset: Dataset, task: Task, unlabeled: Sequence[str]) -> Weak:
    """Read tags and find pseudo-masks of the unlabeled images.

    Raises:
        DataError: unknown classes or images in a tag file, images without tags, no pseudo-mask, or one of two images.
    """
    remarks: list[str] = []
    tags = None
    if recipe.tags is not None:
        tags = _tag_table(recipe, dataset, task, unlabeled, remarks)
    masks = None
    if recipe.masks is not None:
        folders = [recipe.masks] if isinstance(recipe.masks, str) else recipe.masks
        folder, where = Path(folders[0]), ", ".join(folders)
        masks = PseudoMasks(tuple(map(Path, folders)), dataset, LabelMap(task.n_classes), task.ignore_index)
        found = {id: masks.path(id) for id in unlabeled}
        bare = [id for id, path in found.items() if path is None]
        _require_own_masks(found)
        if len(bare) == len(unlabeled):
            raise DataError(
                f"data.weak.masks={where}: no unlabeled image has a pseudo-mask there; expected for example "
                f"{folder / Path(bare[0]).with_suffix('.png') if bare else folder}. Name the folder of PNG masks that "
                "are named like their images.",
                "H201",
            )
        if bare:
            remarks.append(
                f"{len(bare)} of {len(unlabeled)} unlabeled images have no pseudo-mask in {where}: none of their "
                f"pixels is known ({first_few(bare, 5)})."
            )
    return Weak(tags, masks, tuple(remarks))


def _require_own_masks(found: Mapping[str, Path | None]) -> None:
    """Check that no two images have one pseudo-mask.

    Raises:
        DataError: `a.jpg` and `a.png` share one, or images of one name in two folders.
    """
    owners: dict[Path, list[str]] = {}
    for id, path in found.items():
        if path is not None:
            owners.setdefault(path, []).append(id)
    if shared := [f"{path}: {', '.join(ids)}" for path, ids in owners.items() if len(ids) > 1]:
        raise DataError(
            "pseudo-masks that two unlabeled images would share. Name each after the whole path of its image, such as "
            f"b/x.jpg.png for b/x.jpg:\n{bullet_list(shared)}",
            "H208",
        )


def read_tags(path: Path, task: Task) -> dict[str, tuple[int, ...]]:
    """Read a tag file: image as written -> ids of its classes.

    Raises:
        DataError: missing, empty, not text, an image named twice, or all classes that the task does not know.
    """
    if not path.is_file():
        raise DataError(
            f"data.weak.tags={path}: no such file. Write one line per image: image,class class (CSV) or "
            "image<TAB>class,class.",
            "H211",
        )
    lines = [line for line in read_text(path, "H211").splitlines() if line.strip() and not line.startswith("#")]
    rows = list(csv.reader(lines)) if path.suffix.lower() == ".csv" else [line.split("\t") for line in lines]
    if rows and rows[0][0].strip().lower() in _IMAGE_NAMES:
        rows = rows[1:]
    if not rows:
        raise DataError(f"{path}: no image is tagged. Write one line per image: image,class class.", "H211")
    ids = {name.lower(): number for number, name in enumerate(task.classes)}
    tags: dict[str, tuple[int, ...]] = {}
    unknown: dict[str, str] = {}
    problems: list[str] = []
    for image, *cells in rows:
        image = image.strip().replace("\\", "/").removeprefix("./").lstrip("/")
        names = [name for cell in cells for name in _names(cell, ids)]
        known = {ids[name.lower()] if name.lower() in ids else int(name) for name in names if _is_class(name, ids)}
        unknown |= {name: image for name in names if not _is_class(name, ids)}
        if image in tags:
            problems.append(f"{image} is tagged twice")
        tags[image] = tuple(sorted(known))
    problems += [
        f"{name!r} ({image}) is no class.{nearest(name, task.classes)}" for name, image in sorted(unknown.items())
    ]
    if problems:
        raise DataError(
            f"{path}: the tags cannot be used; the classes are {', '.join(task.classes)}. Correct the file:\n"
            f"{bullet_list(problems, limit=20)}",
            "H211",
        )
    return tags


def _tag_table(
    recipe: WeakRecipe, dataset: Dataset, task: Task, unlabeled: Sequence[str], remarks: list[str]
) -> Bool[np.ndarray, "N K"]:
    finder = Finder(dataset)
    found: dict[str, tuple[int, ...]] = {}
    files = [recipe.tags] if isinstance(recipe.tags, str) else list(recipe.tags or ())
    for name in files:
        path = next((p for p in (Path(name), dataset.root / name) if p.is_file()), Path(name))
        absent = []
        for image, classes in read_tags(path, task).items():
            id = finder.id_of(image)
            if id is None:
                absent.append(image)
            elif found.setdefault(id, classes) != classes:
                raise DataError(f"{path}: {image} has other tags in another file. Correct one of them.", "H211")
        if absent:
            raise DataError(
                f"{path}: {len(absent)} tagged images are not below {dataset.root} ({first_few(absent, 5)}). Take them "
                "off the list, or name the folder they lie in (data.root, or data.unlabeled.root).",
                "H211",
            )
    table = np.zeros((len(unlabeled), task.n_classes), dtype=bool)
    for row, id in enumerate(unlabeled):
        table[row, list(found.get(id, ()))] = True
    bare = [id for id, shown in zip(unlabeled, table, strict=True) if not shown.any()]
    if bare and (not recipe.partial or len(bare) == len(unlabeled)):
        raise DataError(
            f"{', '.join(files)}: {len(bare)} of {len(unlabeled)} unlabeled images have no tags "
            f"({first_few(bare, 5)}). Tag them, add their file (data.weak.tags=[FILE, FILE]), list only tagged images "
            "(data.unlabeled=LIST), or train on them as plainly unlabeled: data.weak.partial=true.",
            "H211",
        )
    if bare:
        remarks.append(f"{len(bare)} of {len(unlabeled)} unlabeled images have no tags ({first_few(bare, 5)}).")
    return table


def _names(cell: str, ids: dict[str, Any]) -> list[str]:
    """Split a cell into classes; a class name may hold spaces."""
    cell = cell.strip()
    if not cell or cell.lower() in ids:
        return [cell] if cell else []
    parts = _SEPARATORS.split(cell) if _SEPARATORS.search(cell) else cell.split()
    return [part for part in parts if part]


def _is_class(name: str, ids: dict[str, Any]) -> bool:
    return name.lower() in ids or (name.isdecimal() and int(name) < len(ids))
