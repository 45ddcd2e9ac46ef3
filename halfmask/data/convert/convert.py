"""Convert masks between index PNG, color PNG, COCO json, labelme json, Label Studio json and GeoJSON.

What is read: see `halfmask.data.convert.mask_source`.
What is written, below `out`:

    index, color    NAME.png, of class ids with a palette, or of colors; the ids are those of the source: of its
                    halfmask.yaml, of a public dataset's own masks, of the categories of COCO json
    labelme         NAME.json, GeoJSON NAME.geojson: one file per image; of a GeoTIFF in longitude and latitude
    coco            annotations.json
    label_studio    tasks.json, config.xml: tasks, and the labeling configuration of the project
    halfmask.yaml   the classes, their ids and colors; beside the data it makes reading exact
    written.sha256  the files written: no others are ever replaced, see `halfmask.written`

NAME is the path of the image without a leading `images/`. Reading what was written gives the same class ids.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import yaml
from jaxtyping import Integer
from PIL import Image

from halfmask.data.annotations import geojson, labelme
from halfmask.data.annotations.coco.write import CocoWriter, Geometry
from halfmask.data.annotations.label_studio import LabelStudioWriter
from halfmask.data.convert.mask_source import open_masks, without_suffix
from halfmask.data.folder.images.ground import Ground, is_georeferenced
from halfmask.data.folder.masks.decode import IGNORE, read_stored
from halfmask.data.folder.masks.ids import IdTable, id_meanings_in_png
from halfmask.errors import DataError, RecipeError, first_few, nearest
from halfmask.palette import Color, colorize, hex_color, palette_of
from halfmask.recipe.read import load
from halfmask.recipe.sections import DataRecipe
from halfmask.task import Kind, Task
from halfmask.written import Written

Format = Literal["index", "color", "coco", "labelme", "label_studio", "geojson"]
# Their files say which image a mask belongs to.
_LINKED = ("labelme", "label_studio", "coco")
OUTLINES = ("labelme", "label_studio", "geojson", "coco")
FORMATS = get_args(Format)
_SUFFIX = {"index": ".png", "color": ".png", "labelme": ".json", "geojson": ".geojson"}
# Formats with one file for all images.
_WHOLE = {"coco": "annotations.json", "label_studio": "tasks.json"}
_CLASSES, _CONFIGURATION = "halfmask.yaml", "config.xml"


@dataclass
class Writer:
    """Writes the masks of one source in one format."""

    format: Format
    out: Path
    task: Task  # classes and colors
    table: IdTable  # stored ids of the classes
    geometry: Geometry = "polygon"  # of COCO
    drafts: bool = False  # the masks are predictions, to be corrected in Label Studio
    files: Written = field(init=False)
    _whole: CocoWriter | LabelStudioWriter | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.files = Written(self.out)
        if self.format == "coco":
            self._whole = CocoWriter(self.task.classes, self.geometry, self.table)
        elif self.format == "label_studio":
            self._whole = LabelStudioWriter(self.task.classes, drafts=self.drafts)

    @property
    def names_images(self) -> bool:
        """Whether what is written tells masks apart by the names of their images."""
        return self._whole is not None

    def path(self, name: str) -> Path:
        """Return where the result of an image goes."""
        return self.out / (_WHOLE.get(self.format) or f"{name}{_SUFFIX[self.format]}")

    def paths(self, names: Iterable[str]) -> set[Path]:
        """Return where all goes that these images and `close` write."""
        once = (_CLASSES, _CONFIGURATION) if self.format == "label_studio" else (_CLASSES,)
        return {*map(self.path, names), *(self.out / name for name in once)}

    def add(self, name: str, mask: Integer[np.ndarray, "H W"], image: Path, file: Path) -> None:
        """Write one mask; what holds all images is written at the end.

        Args:
            name: path below `out`, without suffix.
            mask: class ids, 255 = ignore.
            image: what formats that name the image call it.
            file: the image (or a mask of it): where it is a GeoTIFF, GeoJSON has its coordinates.
        """
        if self._whole is not None:
            self._whole.add(image.as_posix(), mask)
            return
        path = self.path(name)
        match self.format:
            case "labelme":
                beside = os.path.relpath(image, path.parent).replace(os.sep, "/")
                self.files.json(path, labelme.encode(mask, self.task.classes, beside), compact=True)
            case "geojson":
                place = Ground(file).of_pixels if file.exists() and is_georeferenced(file) else None
                self.files.json(path, geojson.encode(mask, self.task.classes, place, self.table.ids), compact=True)
            case "color":
                with self.files.path(path) as part:
                    Image.fromarray(colorize(mask, palette_of(self.task))).save(part)
            case _:
                with self.files.path(path) as part:
                    mask_image(mask, palette_of(self.task), self.table).save(
                        part, pnginfo=id_meanings_in_png(self.table, self.task)
                    )

    def close(self) -> None:
        """Write what is written once: the file of all images, and the classes."""
        if self._whole is not None:
            self.files.json(self.path(""), self._whole.content(), compact=True)
        if isinstance(self._whole, LabelStudioWriter):
            self.files.text(self.out / _CONFIGURATION, self._whole.configuration(palette_of(self.task)))
        self.files.text(self.out / _CLASSES, describe(self.task, self.table))


def convert(
    source: str | Path,
    out: str | Path,
    *,
    to: str = "index",
    geometry: Geometry = "polygon",
    images: str | Path | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    limit: int | None = None,
    quiet: bool = False,
) -> int:
    """Convert the masks of a folder.

    Images that an export lists without an annotation are named on stderr; so is it if masks are named as the images.

    Args:
        source: a folder that trains, or one of masks alone, or an export of COCO or Label Studio json.
        out: folder for the result.
        to: "index", "color", "coco", "labelme", "label_studio" or "geojson".
        geometry: of COCO: "polygon" for regions without holes, or "rle" for all.
        images: folder of the images, for `labelme`, `label_studio` and `coco`: each is found by the name of its mask
            without suffix, and named relative to this folder.
        overrides: dotted `data.*` keys, for example `["data.dataset.classes=[ground, leaf]"]`.
        overwrite: replace the files of an earlier call.
        limit: only the first so many masks.
        quiet: say nothing on stderr.

    Returns:
        Number of masks converted.

    Raises:
        DataError: no masks, broken ones, masks without an image in `images`, or results that exist already; also with
            `overwrite`, if halfmask did not write them or somebody changed them since.
        RecipeError: an unknown format, `images` for one that names none, or colors that cannot be told apart.
    """
    if to not in FORMATS:
        raise RecipeError(f"--to {to}: unknown.{nearest(to, FORMATS)} Known: {', '.join(FORMATS)}.", "H303")
    if images is not None and to not in _LINKED:
        raise RecipeError(f"--images: --to {to} names no images. Leave it out; it is for {', '.join(_LINKED)}.")
    # Without overrides no recipe is checked: that takes seconds, as it loads what methods need.
    found = open_masks(Path(source), load(None, overrides).data if overrides else DataRecipe())
    if images is not None:
        found = found.with_images(Path(images))
    writer = Writer(cast(Format, to), Path(out), found.task, found.table, geometry)
    _require_distinct_colors(writer)
    named = {id: mask_name(id) for id in found.ids[:limit]}
    _require_free(writer, list(named.values()), overwrite)
    for id, name in named.items():
        image = Path(id)
        if to == "labelme":
            image = found.image_file(id)
        elif writer.names_images:
            image = Path(found.name_of_image(id))
        writer.add(name, found.read(id), image, found.root / id)
    writer.close()
    for note in () if quiet else found.notes():
        print(f"note: {note}", file=sys.stderr)
    if found.left_out and not quiet:
        print(_told(found.left_out), file=sys.stderr)
    if to in _LINKED and not found.images_known and not quiet:
        print(
            f"note: {to} names the image of each mask, and here it names the masks themselves: their images are not "
            "known. Name the folder of the images: --images DIR",
            file=sys.stderr,
        )
    return len(named)


def require_outlines(format: str | None, kind: Kind) -> None:
    """Refuse outlines of a format that is none, or of what has no masks. Raises RecipeError: such a format or task."""
    if format is not None and format not in OUTLINES:
        raise RecipeError(
            f"--format {format}: unknown.{nearest(format, OUTLINES)} Known: {', '.join(OUTLINES)}.", "H303"
        )
    if format is not None and kind == "classification":
        raise RecipeError(f"--format {format}: labels of whole images have no outlines. Leave it out.")


def write_outlines(
    done: Sequence[tuple[str, Path, Path]], out: Path, format: str, task: Task, table: IdTable | None = None
) -> None:
    """Write predicted masks as outlines below `<out>/<format>`.

    COCO json names images without their folders, if that tells them apart: CVAT looks for frames that end with these
    names.

    Args:
        done: path below the input, image, and file of the mask.
        out: folder of the predictions.
        format: of `OUTLINES`.
        task: classes and colors.
        table: ids that the masks hold; by default the training ids.
    """
    if task.n_classes > IGNORE:
        raise RecipeError(f"--format {format}: {task.n_classes} classes; outlines are written of up to {IGNORE}.")
    table = table or IdTable.plain(task.n_classes)
    writer = _outline_writer(out, format, task, table)
    plain = format == "coco" and len({Path(row).name for row, _, _ in done}) == len(done)
    for row, image, mask in done:
        named = image if format == "labelme" else Path(Path(row).name if plain else row)
        writer.add(without_suffix(row), table.restore(read_stored(mask).values), named, image)
    writer.close()


def outline_files(rows: Iterable[str], out: Path, format: str, task: Task) -> set[Path]:
    """Return the files that `write_outlines` writes of these paths below the input, in a format of `OUTLINES`."""
    return _outline_writer(out, format, task, IdTable.plain(task.n_classes)).paths(map(without_suffix, rows))


def _outline_writer(out: Path, format: str, task: Task, table: IdTable) -> Writer:
    return Writer(cast(Format, format), out / format, task, table, drafts=True)


def mask_image(
    mask: Integer[np.ndarray, "H W"], palette: tuple[Color, ...], table: IdTable | None = None
) -> Image.Image:
    """Make a palette image, ignored pixels white; 16 bits without colors for ids that a palette has no room for.

    Args:
        mask: training ids; those of no class are ignored pixels.
        palette: color of each class.
        table: ids to write; by default the training ids.
    """
    table = table or IdTable.plain(len(palette))
    stored = table.store(mask)
    image = Image.fromarray(stored)
    if table.wide:
        return image
    used = dict(zip(table.ids, palette, strict=True))
    if mask.size and int(mask.max()) >= len(palette):
        used[table.ignore] = (255, 255, 255)
    colors = (used.get(id, (0, 0, 0)) for id in range(max(used) + 1))
    image.putpalette([value for color in colors for value in color])
    return image


def describe(task: Task, table: IdTable | None = None) -> str:
    """Write halfmask.yaml for the classes, their ids (by default the training ids) and the colors of a task."""
    table = table or IdTable.plain(task.n_classes)
    # `binary` reads 255 as class 1, which is numbered 1 among the classes.
    ids = range(task.n_classes) if table.binary else table.ids
    colors = dict(zip(ids, map(hex_color, palette_of(task)), strict=True))
    keys: dict[str, Any] = {"classes": dict(zip(ids, task.classes, strict=True))}
    if table.binary:
        keys |= {"binary": True, "map": {table.ignore: IGNORE}, "palette": colors}
    else:
        keys |= {"ignore_index": table.ignore} if table.ignore != IGNORE else {}
        keys["palette"] = colors | {table.ignore: "#ffffff"}
    return yaml.safe_dump(keys, default_flow_style=None, sort_keys=False, width=110, allow_unicode=True)


def _told(left_out: Sequence[str]) -> str:
    return (
        f"note: images without an annotation are left out ({len(left_out)}): {first_few(left_out)}. One that shows "
        "background alone: outline it with the label `background`; in Label Studio, submit it."
    )


def mask_name(id: str) -> str:
    """Return NAME of an image: its id without the folder of images and without suffix."""
    return without_suffix(id.removeprefix("images/"))


def _require_distinct_colors(writer: Writer) -> None:
    colors = [*palette_of(writer.task), (255, 255, 255)]
    if writer.format == "color" and len(set(colors)) < len(colors):
        raise RecipeError(
            "two classes share a color (white means ignore), so the masks could not be read back. Give each class its "
            "own in `palette` of halfmask.yaml, or use --to index."
        )


def _require_free(writer: Writer, names: Sequence[str], overwrite: bool) -> None:
    clash = len(names) - len(set(names))
    if clash:
        raise DataError(f"{clash} masks would share a file, because only their suffix differs: rename them.", "H208")
    taken = [path for path in writer.paths(names) if path.exists()]
    if taken and not overwrite:
        raise DataError(
            f"{min(taken)} exists ({len(taken)} of the results do). Choose another --out, or give --overwrite.", "H408"
        )
    writer.files.require_unchanged(taken)
