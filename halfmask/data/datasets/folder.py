"""Your own folder: images and masks in any common layout, classes named in `halfmask.yaml` or read off the masks.

Layouts: see `halfmask.data.folder.layouts`. An image without a mask is unlabeled. Nothing is guessed: masks of 0 and
255 only, ids that start at 1, colors without a table and values without a class are refused with the line that mends
it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from halfmask.data.annotations.coco.read import CocoFolder
from halfmask.data.annotations.drawing import Remark, UndrawnShapes
from halfmask.data.annotations.exports import Exports, similar_names
from halfmask.data.annotations.instances import no_classes, number_objects
from halfmask.data.annotations.label_studio import LabelStudioFolder
from halfmask.data.annotations.outlines import Outlines
from halfmask.data.datasets.ade20k import ADE20K
from halfmask.data.datasets.cityscapes import Cityscapes
from halfmask.data.datasets.pascal import Pascal
from halfmask.data.folder.description import ClassKeys, Description, read_description
from halfmask.data.folder.files import FileDataset
from halfmask.data.folder.images.decode import decode, without_data
from halfmask.data.folder.layouts import Layout, detect
from halfmask.data.folder.masks.decode import (
    IGNORE,
    LabelMap,
    binary_cure,
    count_values,
    fit_to_image,
    off_by_one_cure,
    read_stored,
    stored_ids,
)
from halfmask.data.folder.masks.ids import IdTable
from halfmask.errors import DataError
from halfmask.task import Task

# Masks opened to find the values in use, when nobody named the classes.
_SCANNED = 200
# Masks opened to see whether a two-class folder holds 0 and 255 only.
_PROBED = 25


class Folder(FileDataset):
    """Images and masks in any common layout.

    Args:
        root: the folder; `halfmask.yaml` in it may hold the same keys, arguments win.
        binary: 255 in the masks is class 1, not "ignore".
        map: stored value -> class id (as numbered in `classes`), or 255 = ignore.
        classes: names, as a list or by stored id.
        ignore_index: stored value of unknown pixels; in targets it is always 255.
        palette: class id -> color (`[r, g, b]` or `"#rrggbb"`), for masks saved as colors.
        foreground: names or ids of the object-like classes.
        bands: number of image bands.
        range: image values that become black and white; needed for 16-bit and float images.
        resize_masks: bring masks of another size to the image's by nearest neighbor instead of refusing them.
        transparent_ignored: mask pixels with alpha 0 are unknown.

    Attributes:
        layout: what was found, with the reason.
    """

    def __init__(
        self,
        root: Path,
        *,
        binary: bool | None = None,
        map: dict[int, int] | None = None,
        classes: list[str] | dict[int, str] | None = None,
        ignore_index: int | None = None,
        palette: dict[int, list[int] | str] | None = None,
        foreground: ClassKeys | None = None,
        bands: int | None = None,
        range: tuple[float, float] | None = None,
        resize_masks: bool = False,
        transparent_ignored: bool = False,
    ) -> None:
        self.layout: Layout = detect(Path(root))
        super().__init__(self.layout.root)
        self._counts: Mapping[Path, tuple[str, Mapping[int, int]]] = {}
        given: dict[str, Any] = {
            "binary": binary, "map": map, "classes": classes, "ignore_index": ignore_index, "palette": palette,
            "foreground": foreground, "bands": bands, "range": range,
        }  # fmt: skip
        self._said: Description = read_description(Path(root), given)
        if self._said.same_light is not None:
            raise DataError(
                f"{root}: `same_light` is said of image pairs, and these are single images. Remove it from "
                "halfmask.yaml; pairs are read with data.dataset=change_folder.",
                "H209",
            )
        self._tally = UndrawnShapes()
        self._mask_options = {"resize": resize_masks, "transparent_ignored": transparent_ignored}
        self._known = self._known_dataset()
        self._exports = self._open_exports()
        self._outlines = self._open_outlines() if self.layout.name in {"labelme", "geojson"} else None
        self.channels, self.value_range = self._said.bands, self._said.range
        self.mean, self.std, self.nodata = self._said.mean, self._said.std, self._said.nodata

    @property
    def description(self) -> Description:
        """Return what halfmask.yaml, a class file and the arguments say."""
        return self._said

    @cached_property
    def task(self) -> Task:  # type: ignore[override]  # found out on first use, when it is known which masks are sealed
        """Return the classes as named, or as found in the masks that may be opened."""
        if self._known is not None:
            return self._known.task
        said = self._named
        flags, palette = said.foreground_flags(), said.display_palette()
        return Task("segmentation", said.names or (), foreground=flags, palette=palette)

    def know_counts(self, counts: Mapping[Path, tuple[str, Mapping[int, int]]]) -> None:
        """Take over type and pixels per stored id of masks that were read already: they are read no more.

        To be called before the first use of `task`: classes are found once.
        """
        self._counts = counts

    def ids(self, part: str) -> list[str]:
        """Return sorted ids of a part; images that are in no part are "unlabeled"."""
        if self._known is not None:
            return self._known.ids(part)
        return list((self._exports.parts if self._exports else self.layout.parts).get(part, []))

    @property
    def left_out(self) -> Sequence[str]:
        """Return the images that an export lists without an annotation: they count as unlabeled."""
        return self._exports.left_out if self._exports is not None else ()

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """Remarks on the classes, and on annotation files as a whole."""
        outlined = self._exports or self._outlines
        return outlined.remarks if outlined is not None else similar_names(self.task.classes)

    @property
    def notes(self) -> tuple[str, ...]:  # type: ignore[override]  # known when the masks have been read
        """Say what annotation files hold that is not in the masks."""
        return tuple(map(str, (*self.remarks, *self._tally.remarks)))

    def shapes_left_out(self, id: str) -> Mapping[tuple[str, str], int]:
        """Count the shapes of an image that are not in its mask, by reason and label; known once it has been read."""
        return self._tally.left_out.get(id, {})

    def find_mask(self, id: str) -> Path | None:
        """Return the mask that pairs with an image."""
        if self._known is not None:
            return self._known.mask_path(id)
        if self._exports is not None:
            return self._exports.file_of(id)
        mask = self.layout.masks.get(id)
        return self.root / mask if mask is not None else None

    def id_table(self) -> IdTable:
        """Return the ids of halfmask.yaml; of a public dataset its own; of COCO json the category ids."""
        if self._known is not None:
            return self._known.id_table()
        named = tuple(sorted(self._named.classes or {}))
        table = IdTable.of_labels(self._labels, len(named), () if self._said.binary else named)
        categories = self._exports.categories if self._exports is not None else None
        if categories is None:
            return table
        return replace(table, categories=categories, ids=table.ids if self._said.classes is not None else categories)

    def labels_of(self, mask: Path) -> LabelMap:
        """Return a key that is the same for every mask of a folder."""
        if self._known is not None:
            self._known.sealed = self.sealed
            return self._known.labels_of(mask)
        return self._labels

    def read_image(self, id: str) -> UInt8[np.ndarray, "H W C"]:
        """Decode an image upright; pixels without data are black."""
        pixels = super().read_image(id)
        if self.nodata is not None:
            pixels[self._no_data(id)] = 0
        return pixels

    def read_target(self, id: str) -> UInt8[np.ndarray, "H W"]:
        """Decode a mask as training ids; image pixels without data are ignored."""
        path = self.existing_mask(id)
        if self._exports is not None and path.suffix == ".json":
            drawn = self._tally.take(id, self._exports.draw(id))
            target = fit_to_image(drawn, path, self.root / id, self._mask_options["resize"])
        elif self._outlines is not None:
            target = self._tally.take(id, self._outlines.draw(id))
        else:
            target = super().read_target(id)
        if self.nodata is not None:
            target[self._no_data(id)] = IGNORE
        return target

    def _no_data(self, id: str) -> np.ndarray:
        assert self.nodata is not None
        return without_data(decode(self.root / id, channels=self.channels), self.nodata)

    def _known_dataset(self) -> FileDataset | None:
        """Return the description; a public dataset has its own classes unless the folder says otherwise."""
        if self._said.classes is not None or self._said.binary or self._said.map:
            return None
        match self.layout.name:
            case "cityscapes":
                return Cityscapes(self.root)
            case "ade20k":
                return ADE20K(self.root)
            case "voc" if all(Path(id).stem[:4].isdigit() and Path(id).stem[4] == "_" for id in self.ids_found()[:8]):
                return Pascal(self.root)
        return None

    def ids_found(self) -> list[str]:
        """Return every id of the layout, of whatever part."""
        return [id for part in self.layout.parts.values() for id in part]

    def _open_exports(self) -> Exports | None:
        """Open the json files that annotate many images each."""
        arguments = (self.root, self.layout.annotations, self.ids_found(), self._said.names)
        match self.layout.name:
            case "coco json":
                return CocoFolder(*arguments, self._said.crowds)
            case "label studio":
                return LabelStudioFolder(*arguments, self._said.line_width)
        return None

    def _open_outlines(self) -> Outlines:
        said, resize = self._said, self._mask_options["resize"]
        files, name = self.layout.masks, self.layout.name
        return Outlines(self.root, name, files, said.names, line_width=said.line_width, resize=resize)

    @cached_property
    def _named(self) -> Description:
        """Return the description with classes filled in."""
        said = self._said
        outlined = self._exports or self._outlines
        if outlined is not None and said.classes is None:
            return said.model_copy(update={"classes": dict(enumerate(outlined.classes))})
        if said.classes is None and said.binary:
            return said.model_copy(update={"classes": {0: "background", 1: "foreground"}})
        if said.classes is None and said.palette is not None:
            found = [id for id in sorted(said.palette) if id != said.ignore_index]
        elif said.classes is None:
            found = self._discover()
        else:
            if len(said.classes) == 1:
                only = next(iter(said.classes.values()))
                raise DataError(
                    f"{self.root}: {only} is the only class. Name a second one: there is nothing to tell apart.", "H212"
                )
            self._refuse_undecided_binary()
            return said
        return said.model_copy(update={"classes": {id: f"class_{id}" for id in found}})

    @cached_property
    def _labels(self) -> LabelMap:
        said = self._named
        return said.label_map(len(said.classes or {}), colors=self._colors, **self._mask_options)

    @property
    def _colors(self) -> dict[tuple[int, int, int], int] | None:
        """Map color to stored id; a color of two classes names neither."""
        if self._said.palette is None:
            return None
        uses = Counter(self._said.palette.values())
        return {color: id for id, color in self._said.palette.items() if uses[color] == 1}

    def _discover(self) -> list[int]:
        """Find the ids in use. Raises DataError: no masks, or values whose meaning is not plain."""
        counts: Counter[int] = Counter()
        by_type: dict[str, set[int]] = {}
        by_mask: dict[Path, list[int]] = {}
        for path in self.some_masks(_SCANNED):
            kind, known = self._values_of(path)
            counts.update(known)
            by_mask[path] = [value for value in known if value not in (self._said.ignore_index, IGNORE)]
            by_type.setdefault(kind, set()).update(known)
        self._refuse_two_foregrounds(by_type)
        if not counts:
            raise DataError(
                f"{self.root}: no classes are named and no mask is there to show them. Name them in halfmask.yaml: "
                "`classes: {0: background, 1: NAME}`.",
                "H210",
            )
        if set(counts) == {0, 255} and 255 not in self._said.map:
            raise DataError(f"{self.root}: the masks hold 0 and 255 only. {binary_cure()}", "H204")
        ids = sorted({self._said.map.get(value, value) for value in counts} - {self._said.ignore_index, IGNORE})
        listed = ", ".join(f"{value} ({counts[value]} px)" for value in sorted(counts)[:12])
        name_them = "Name the classes in halfmask.yaml: `classes: {ID: NAME, ...}`."
        if not ids:
            raise DataError(
                f"{self.root}: every pixel of the masks is ignored: {listed}. Nothing is labeled. Export the masks "
                f"with class ids from 0; or, if {max(counts)} is a class, write in halfmask.yaml: "
                f"`classes: {{0: background, 1: NAME}}` and `map: {{{max(counts)}: 1}}`.",
                "H203",
            )
        if not self._said.map and number_objects(by_mask, lambda path: read_stored(path).values):
            raise no_classes(self.root, ids[-1])
        if ids == [0]:
            raise DataError(f"{self.root}: the masks hold a single class: {listed}. {name_them}", "H212")
        if ids[0] == 1 and self._said.ignore_index != 0:
            raise DataError(f"{self.root}: no mask holds 0: {listed}. {off_by_one_cure(ids[-1])} {name_them}", "H205")
        # A class may be missing from few masks, but values such as 0, 85, 170 are no numbering.
        if ids[0] < 0 or ids[-1] >= 2 * len(ids):
            raise DataError(f"{self.root}: the values are not numbered 0 to K-1: {listed}. {name_them}", "H203")
        return [id for id in range(ids[-1] + 1) if id != self._said.ignore_index]

    def _values_of(self, path: Path) -> tuple[str, Mapping[int, int]]:
        """Return the type of a mask and its pixels per stored id."""
        if path in self._counts:
            return self._counts[path]
        stored = read_stored(path)
        ignored = self._mask_options["transparent_ignored"]
        table = LabelMap(0, colors=self._colors, transparent_ignored=ignored)
        return stored.form.kind, count_values(stored_ids(stored, table, path))

    def _refuse_two_foregrounds(self, by_type: Mapping[str, set[int]]) -> None:
        """Refuse masks of which one type holds 0 and 1, another 0 and 255: there, 255 may well be what 1 is here."""
        if self._said.binary or 255 in self._said.map or set().union(*by_type.values()) != {0, 1, 255}:
            return
        ones = [kind for kind, values in by_type.items() if values <= {0, 1} and 1 in values]
        full = [kind for kind, values in by_type.items() if values <= {0, 255} and 255 in values]
        if ones and full:
            raise DataError(
                f"{self.root}: masks of type {', '.join(ones)} hold 0 and 1, masks of type {', '.join(full)} 0 and "
                f"255. {binary_cure()}",
                "H204",
            )

    def _refuse_undecided_binary(self) -> None:
        said = self._said
        drawn = self._exports is not None or self._outlines is not None
        if said.binary or sorted(said.classes or {}) != [0, 1] or 255 in said.map or drawn or self._colors is not None:
            return
        by_type: dict[str, set[int]] = {}
        for path in self.some_masks(_PROBED):
            kind, known = self._values_of(path)
            by_type.setdefault(kind, set()).update(known)
            if set(known) - {0, 1, 255}:
                return
        self._refuse_two_foregrounds(by_type)
        seen = set().union(*by_type.values())
        if 255 in seen and 1 not in seen:
            raise DataError(f"{self.root}: the masks hold 0 and 255 only. {binary_cure()}", "H204")
