"""Which number stands for which class in a mask file: the same when masks are written as when they are read.

Training ids run from 0 to K-1. A mask holds the ids of its table: those of halfmask.yaml (which may have gaps, or start
at 1), label ids of Cityscapes, 1..150 of ADE20K. What halfmask writes for a dataset has the ids of its masks, so that
it can be put among them; each PNG and GeoTIFF says inside what its ids mean (`id_meanings`), so that masks of another
table are found (`contradiction`), and a halfmask.yaml beside says it to people and to other programs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, PngImagePlugin

from halfmask.data.folder.images.decode import open_geotiff
from halfmask.data.folder.masks.decode import IGNORE, LabelMap
from halfmask.data.folder.masks.forms import TOLD
from halfmask.errors import DataError
from halfmask.palette import Color
from halfmask.task import Task

KEY = TOLD  # of the text inside a PNG; a TIFF has it as its description, after this word
_UNKNOWN = -1
_HEAD = 1 << 17  # the text stands before the pixels of a PNG: of 255 classes it has some kilobytes
_DESCRIPTION = 270  # tag of a TIFF
_BLOCK = 256  # rows and columns of a block of a GeoTIFF


@dataclass(frozen=True, slots=True)
class IdTable:
    """Stored ids of the classes."""

    ids: tuple[int, ...]  # stored id by training id
    ignore: int = IGNORE  # stored value of unknown pixels
    binary: bool = False  # the ids are 0 and 255, as `binary: true` reads them
    # category id by training id, where the masks are COCO json; 0 stands for a background without one
    categories: tuple[int, ...] | None = None

    @classmethod
    def plain(cls, classes: int) -> "IdTable":
        """Return the table in which stored ids are training ids.

        >>> IdTable.plain(3).ids
        (0, 1, 2)
        """
        return cls(tuple(range(classes)), IGNORE if classes <= IGNORE else (1 << 16) - 1)

    @classmethod
    def of_meta(cls, meta: Mapping[str, Any], task: Task) -> "IdTable":
        """Return the table that a bundle carries; those of before carry none and mean training ids."""
        said = meta.get("ids")
        if not isinstance(said, Mapping) or len(said.get("ids", ())) != task.n_classes:
            return cls.plain(task.n_classes)
        categories = said.get("categories")
        return cls(
            tuple(map(int, said["ids"])),
            int(said.get("ignore", IGNORE)),
            bool(said.get("binary")),
            None if categories is None else tuple(map(int, categories)),
        )

    @classmethod
    def of_labels(cls, labels: LabelMap, classes: int, preferred: Sequence[int] = ()) -> "IdTable":
        """Return the values that a label map reads as each class: the preferred one, else the smallest.

        >>> IdTable.of_labels(LabelMap(2, values={1: 0, 2: 1, 0: 255}), 2).ids
        (1, 2)
        """
        stored = sorted({value for value in labels.values if value >= 0} | set(range(classes)) | {0, 1, IGNORE})
        meaning = {value: labels.training_id(value) for value in stored}
        ids = []
        for id in range(classes):
            wished = [*((0, IGNORE)[id : id + 1] if labels.binary else ()), *preferred[id : id + 1]]
            ids.append(next((value for value in (*wished, *stored) if meaning.get(value) == id), id))
        void = [labels.stored_ignore, IGNORE, *(value for value in stored if meaning[value] == IGNORE)]
        # Without a value for "unknown", one that no class has: where it is mixed with the masks, it is refused.
        spare = [value for value in range(IGNORE, -1, -1) if labels.training_id(value) == _UNKNOWN]
        ignore = next((value for value in void if labels.training_id(value) == IGNORE), next(iter(spare), IGNORE))
        return cls(tuple(ids), ignore, labels.binary)

    def to_meta(self) -> dict[str, Any]:
        """Return it as plain data, for a bundle."""
        return asdict(self)

    @property
    def wide(self) -> bool:
        """Whether ids need 16 bits."""
        return max(*self.ids, self.ignore) > IGNORE

    def store(self, mask: Integer[np.ndarray, "H W"]) -> Integer[np.ndarray, "H W"]:
        """Replace training ids by stored ones; everything that is no class is unknown."""
        table = np.array([*self.ids, self.ignore], dtype=np.uint16 if self.wide else np.uint8)
        known = (mask >= 0) & (mask < len(self.ids))
        return np.asarray(table[np.where(known, mask, len(self.ids))])

    def restore(self, stored: Integer[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
        """Replace stored ids by training ids (255: unknown); the inverse of `store`, of up to 255 classes."""
        table = np.full(1 << 16, IGNORE, dtype=np.uint8)
        table[list(self.ids)] = np.arange(len(self.ids))
        return np.asarray(table[stored])


def id_meanings(table: IdTable, task: Task) -> str:
    """Write what the ids of a mask mean, for the inside of its file."""
    return json.dumps({"ids": dict(zip(table.ids, task.classes, strict=True)), "ignore": table.ignore})


def id_meanings_in_png(table: IdTable, task: Task) -> PngImagePlugin.PngInfo:
    """Return what the ids of a mask mean as the text of a PNG."""
    info = PngImagePlugin.PngInfo()
    info.add_text(KEY, id_meanings(table, task))
    return info


def read_id_meanings(path: Path) -> dict[int, str | None] | None:
    """Read from a mask that halfmask wrote what its ids mean (`None`: unknown pixels); `None` of any other file."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".png":
            with path.open("rb") as file:
                if KEY.encode() not in (head := file.read(_HEAD)) or not head.startswith(b"\x89PNG"):
                    return None
            with Image.open(path) as image:
                text = image.info.get(KEY)
        elif suffix in {".tif", ".tiff"}:
            with Image.open(path) as image:
                text = getattr(image, "tag_v2", {}).get(_DESCRIPTION)
            text = text.removeprefix(KEY) if isinstance(text, str) and text.startswith(KEY) else None
        else:
            return None
        said = json.loads(text) if isinstance(text, str) else None
        return None if said is None else {**{int(k): str(v) for k, v in said["ids"].items()}, int(said["ignore"]): None}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SyntaxError, Image.DecompressionBombError):
        return None


def refuse_mask(path: Path) -> None:
    """Refuse an image that is a mask which halfmask wrote: results that lie among the images (DataError)."""
    if read_id_meanings(path) is not None:
        raise DataError(
            f"{path}: a mask that halfmask wrote (predicted or converted) lies among the images, and would be trained "
            "on as one. Move these results out of the data.",
            "H221",
        )


def contradiction(meanings: Mapping[int, str | None], labels: LabelMap, classes: Sequence[str]) -> str:
    """Say which id of a mask that halfmask wrote means another class here; empty if none does.

    A class that is not known here may have been renamed since: that is no contradiction.

    Args:
        meanings: what the ids mean, as `read_id_meanings` reads it.
        labels: what stored ids mean here.
        classes: names by training id.

    >>> contradiction({0: "leaf", 1: "stem"}, LabelMap(3), ("ground", "leaf", "stem"))
    '0 is leaf there and ground here, 1 is stem there and leaf here'
    """
    differ = []
    for value, name in meanings.items():
        id = labels.training_id(value)
        if name in classes and id != _UNKNOWN and (id == IGNORE or (id < len(classes) and classes[id] != name)):
            differ.append(f"{value} is {name} there and {'ignored' if id == IGNORE else classes[id]} here")
    return ", ".join(differ)


def write_geotiff(
    path: Path, mask: Integer[np.ndarray, "H W"], like: Path, colors: tuple[Color, ...], table: IdTable, meanings: str
) -> None:
    """Write class ids as a GeoTIFF with the place of an image: reference system, transform or control points.

    Args:
        path: of the mask.
        mask: training ids; may lie on the disk, it is read block by block.
        like: the image.
        colors: of the classes; written where a color table has room for them.
        table: ids to write; that of pixels without a class is declared as nodata.
        meanings: what the ids mean, kept as the description of the file.
    """
    import rasterio
    from rasterio.enums import ColorInterp

    small = not table.wide
    with open_geotiff(like) as source:  # it stays open: with it the bound on GDAL's cache ends
        points, points_crs = source.gcps
        place = {"gcps": points, "crs": points_crs} if points else {"transform": source.transform, "crs": source.crs}
        profile = {
            "driver": "GTiff", "count": 1, "height": mask.shape[0], "width": mask.shape[1], "compress": "deflate",
            "dtype": "uint8" if small else "uint16", "nodata": table.ignore, "tiled": True, "blockxsize": _BLOCK,
            "blockysize": _BLOCK, "bigtiff": "if_safer", **place,
        }  # fmt: skip
        with rasterio.open(path, "w", **profile) as out:
            out.update_tags(TIFFTAG_IMAGEDESCRIPTION=f"{KEY}{meanings}")
            if small:
                shown = {id: (*color, 255) for id, color in zip(table.ids, colors, strict=True)}
                out.colorinterp = [ColorInterp.palette]
                out.write_colormap(1, shown | {table.ignore: (0, 0, 0, 0)})
            for top in range(0, mask.shape[0], _BLOCK):
                rows = table.store(np.asarray(mask[top : top + _BLOCK]))
                out.write(rows, 1, window=((top, top + len(rows)), (0, mask.shape[1])))
