"""Find the masks to convert: those of any folder that trains, or masks alone, without their images.

Alone are a folder of PNG, such as the output of `halfmask predict` (its overlays and probabilities do not count); one
json file that COCO tools or Label Studio exported; and a folder of labelme json. The names of the classes come from
`halfmask.yaml` beside them.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os.path import normpath
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Integer

from halfmask.data.annotations.coco.files import load
from halfmask.data.annotations.coco.read import CocoFolder
from halfmask.data.annotations.drawing import UndrawnShapes
from halfmask.data.annotations.exports import Exports, ImageNames
from halfmask.data.annotations.label_studio import LabelStudioFolder, read_annotations
from halfmask.data.annotations.outlines import Outlines
from halfmask.data.contract import Dataset
from halfmask.data.datasets.folder import Folder
from halfmask.data.folder.description import Description, read_description
from halfmask.data.folder.files import FileDataset, list_images
from halfmask.data.folder.layouts import head_of
from halfmask.data.folder.masks.decode import IGNORE, LabelMap, read_mask, read_stored
from halfmask.data.folder.masks.forms import has_palette
from halfmask.data.folder.masks.ids import IdTable
from halfmask.data.splits.split import open_dataset
from halfmask.data.splits.verify import judge_forms
from halfmask.errors import DataError, bullet_list
from halfmask.recipe.sections import DataRecipe
from halfmask.task import Task

# Folders of what `halfmask predict` writes besides masks, by the names of the masks.
OVERLAYS, PROBABILITIES = "overlays", "probabilities"

ReadMask = Callable[[str], Integer[np.ndarray, "H W"]]


@dataclass(frozen=True)
class MaskSource:
    """Masks to convert."""

    root: Path  # folder that ids are relative to
    ids: tuple[str, ...]  # of images that have a mask
    task: Task  # their classes
    table: IdTable  # ids that stand for the classes in the source, and in what is written
    read: ReadMask  # gives the mask of an id
    image: Callable[[str], str] = str  # gives the image of an id, relative to `image_root`; it may lie outside
    left_out: tuple[str, ...] = ()  # images that the annotations list, but that have none
    image_root: Path | None = None  # folder of the images, where it is not `root`
    images_known: bool = True  # `False`: an id names a mask, and nothing says where its image lies
    # what annotation files hold that is not in the masks, once these have been read
    notes: Callable[[], Sequence[str]] = tuple

    def with_images(self, folder: Path) -> "MaskSource":
        """Take the images from below a folder, by the names of the masks without suffix.

        Raises:
            DataError: masks without an image there, or with several.
        """
        return replace(self, image=find_images(self.ids, folder).__getitem__, image_root=folder, images_known=True)

    def image_file(self, id: str) -> Path:
        """Return the image of an id, which need not be there."""
        return (self.image_root or self.root) / self.image(id)

    def name_of_image(self, id: str) -> str:
        """Return the path of an image below its root; of one outside, the folder of its mask and its own name."""
        path = self.image(id)
        # A colon is that of a drive: labelme on Windows may name an image by its absolute path.
        outside = path.startswith(("../", "/")) or ":" in path
        return str(PurePosixPath(id).parent / PurePosixPath(path).name) if outside else path


def open_masks(source: Path, recipe: DataRecipe) -> MaskSource:
    """Find the masks of a folder or an export. Raises DataError: there are none."""
    if source.is_file() and source.suffix.lower() == ".json":
        return _export(source, _described(source.parent, recipe))
    if source.is_dir() and (files := _labelme_alone(source)):
        said = _described(source, recipe)
        itself = {file: file for file in files}
        outlines = Outlines(source, "labelme", itself, said.names, line_width=said.line_width, images=False)
        drawn = _Drawn(outlines)

        def image(id: str) -> str:
            return normpath(PurePosixPath(id).parent / outlines.image_of(id)).replace("\\", "/")

        task = _task(outlines.classes, said)
        return MaskSource(source, tuple(files), task, _table(task, said), drawn.read, image, notes=drawn.notes)
    dataset = open_dataset(recipe, source)
    named = (id for part in ("train", "val", "test") for id in dataset.ids(part))
    if ids := tuple(id for id in named if dataset.mask_path(id) is not None):
        _require_agreeing_masks(dataset, ids)
        left_out = tuple(dataset.left_out) if isinstance(dataset, Folder) else ()
        table = dataset.id_table() if isinstance(dataset, FileDataset) else IdTable.plain(dataset.task.n_classes)
        told: dict[str, Any] = {"left_out": left_out, "notes": lambda: dataset.notes}
        return MaskSource(dataset.root, ids, dataset.task, table, dataset.read_target, **told)
    if isinstance(dataset, Folder) and dataset.layout.name == "plain":
        return _masks_alone(dataset)
    raise DataError(f"{source}: no masks to convert. Give a folder with masks, or one of masks alone.", "H210")


class _Drawn:
    """Reads masks from annotation files, and remembers what is not in them."""

    def __init__(self, source: Exports | Outlines) -> None:
        self._source, self._tally = source, UndrawnShapes()

    def read(self, id: str) -> Integer[np.ndarray, "H W"]:
        return self._tally.take(id, self._source.draw(id))

    def notes(self) -> list[str]:
        return list(map(str, (*self._source.remarks, *self._tally.remarks)))


def _require_agreeing_masks(dataset: Dataset, ids: Sequence[str]) -> None:
    """Compare how the masks hold their values, before any is converted. Raises DataError: palettes that differ."""
    if not isinstance(dataset, FileDataset):
        return
    paths = {path for id in ids if (path := dataset.mask_path(id)) is not None}
    forms = {os.path.relpath(path, dataset.root): read_stored(path).form for path in sorted(paths) if has_palette(path)}
    for error in judge_forms(forms, dataset)[0].values():
        raise error


def find_images(ids: Sequence[str], folder: Path) -> dict[str, str]:
    """Find the image of each mask below a folder: of the same path without suffix, else of the same name.

    Args:
        ids: paths of the masks.
        folder: of the images.

    Returns:
        Paths relative to the folder, by the ids.

    Raises:
        DataError: no such folder, masks without an image, or with several.
    """
    if not folder.is_dir():
        raise DataError(f"--images {folder}: no such folder.", "H208")
    by_stem: dict[str, list[str]] = defaultdict(list)
    for image in list_images(folder, folder):
        by_stem[without_suffix(image)].append(image)
    here = ImageNames(by_stem)
    found = {id: _images_of(id, by_stem, here) for id in ids}
    if absent := [id for id, images in found.items() if not images]:
        raise DataError(
            f"--images {folder}: masks without an image of their name there ({len(absent)} of {len(ids)}):\n"
            f"{bullet_list(absent)}",
            "H208",
        )
    if several := [f"{id}: {', '.join(images[:3])}" for id, images in found.items() if len(images) > 1]:
        raise DataError(
            f"--images {folder}: masks that fit several images ({len(several)} of {len(ids)}). Give the folder of the "
            "images alone:\n"
            f"{bullet_list(several)}",
            "H208",
        )
    return {id: images[0] for id, images in found.items()}


def _images_of(id: str, by_stem: dict[str, list[str]], here: ImageNames) -> list[str]:
    stem = without_suffix(id)
    stems = [stem] if stem in by_stem else here.most_alike(stem)
    return [image for stem in stems for image in by_stem[stem]]


def without_suffix(path: str) -> str:
    """Return `a/b.c` for `a/b.c.png`."""
    return path.rpartition(".")[0]


def _export(path: Path, said: Description) -> MaskSource:
    """Open one json file; its images need not be there."""
    exports: Exports
    if head_of(path).startswith("["):  # COCO json is an object
        names = list(read_annotations(path))
        exports = LabelStudioFolder(path.parent, [path], names, said.names, said.line_width)
    else:
        names = [str(image["file_name"]) for image in load(path)["images"]]
        exports = CocoFolder(path.parent, [path], names, said.names, said.crowds)
    ids = tuple(name for name in names if exports.file_of(name) is not None)
    if not ids:
        raise DataError(f"{path}: no image has an annotation. Draw some, and export again.", "H210")
    left_out = tuple(exports.left_out)
    task, drawn = _task(exports.classes, said), _Drawn(exports)
    table = _table(task, said, exports.categories)
    return MaskSource(path.parent, ids, task, table, drawn.read, left_out=left_out, notes=drawn.notes)


def _labelme_alone(folder: Path) -> list[str]:
    """List labelme json below a folder without images."""
    if list_images(folder, folder):
        return []
    files = sorted(path for path in folder.rglob("*.json") if not path.name.startswith("."))
    return [path.relative_to(folder).as_posix() for path in files if '"shapes"' in head_of(path)]


def _described(folder: Path, recipe: DataRecipe) -> Description:
    given = {key: value for key, value in recipe.dataset.params.items() if key in Description.model_fields}
    return read_description(folder, given)


def _task(classes: Sequence[str], said: Description) -> Task:
    palette = said.display_palette()
    return Task("segmentation", tuple(classes), palette=palette if palette and len(palette) == len(classes) else None)


def _table(task: Task, said: Description, categories: tuple[int, ...] | None = None) -> IdTable:
    """Return ids as halfmask.yaml numbers the classes; else category ids, else training ids."""
    if said.classes is None:
        return IdTable(categories or tuple(range(task.n_classes)), said.ignore_index, categories=categories)
    labels, wanted = said.label_map(task.n_classes), () if said.binary else sorted(said.classes)
    table = IdTable.of_labels(labels, task.n_classes, wanted)
    return replace(table, categories=categories)


def _masks_alone(folder: Folder) -> MaskSource:
    """Read every file of a folder as a mask."""
    ids = _but_beside_masks(list_images(folder.root, folder.root))
    said = folder.description
    if said.classes is None:
        values: set[int] = set()
        for id in ids:
            stored = read_stored(folder.root / id)
            if stored.is_color:
                raise DataError(
                    f"{folder.root / id}: colors, and no table says which class each is. Put halfmask.yaml with "
                    "`classes` and `palette` beside the masks.",
                    "H206",
                )
            values |= set(np.unique(stored.values).tolist())
        last = max(values - {IGNORE, said.ignore_index}, default=0)
        task = Task("segmentation", tuple(f"class_{id}" for id in range(last + 1)))
        labels, table = LabelMap(last + 1, said.ignore_index), IdTable.plain(last + 1)
    else:
        task = folder.task
        labels, table = folder.labels_of(folder.root / ids[0]), folder.id_table()
    return MaskSource(folder.root, ids, task, table, lambda id: read_mask(folder.root / id, labels), images_known=False)


def _but_beside_masks(ids: Sequence[str]) -> tuple[str, ...]:
    """Return the files, without those that `halfmask predict` writes besides masks.

    >>> _but_beside_masks(["a.png", "overlays/a.jpg", "overlays/b.png"])
    ('a.png', 'overlays/b.png')
    """
    stems = {without_suffix(id) for id in ids}

    def beside(id: str) -> bool:
        folder, _, name = id.partition("/")
        return folder in {OVERLAYS, PROBABILITIES} and without_suffix(name) in stems

    return tuple(id for id in ids if not beside(id))
