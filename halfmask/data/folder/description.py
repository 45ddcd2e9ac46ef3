"""What a user says about a folder of images: `halfmask.yaml`, or class files that other tools write.

    classes: {0: background, 1: crack}     or a list; ids may have gaps or start at 1, training ids follow their order
    ignore_index: 255                      stored value of unknown pixels
    binary: true                           255 in the masks means class 1
    map: {3: 255}                          stored value -> class id as numbered in `classes`, or 255 = ignore
    palette: {0: [0, 0, 0], 1: "#ff0000"}  colors of masks saved as colors (255: [..] = ignore), and for display
    foreground: [crack]                    object-like classes
    bands: 3   range: [0, 4095]   mean: [..]   std: [..]   nodata: 0
    crowds: [road]   line_width: 3         COCO crowds that are the class itself; pixels of the lines of labelme
    same_light: true                       image pairs: one camera, one light; another color is a change

Without it `classes.txt`, `class_names.txt` or `labelmap.txt` next to the data name the classes (`class_lines`).
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from halfmask.data.folder.class_lines import read_class_file
from halfmask.data.folder.files import read_text
from halfmask.data.folder.masks.decode import IGNORE, LabelMap
from halfmask.errors import DataError, bullet_list, nearest
from halfmask.palette import Color
from halfmask.recipe.raw import read_yaml

FILE_NAME = "halfmask.yaml"
_SMALLEST_STD, _LARGEST = 1e-5, 1e38  # beyond, pixels or values overflow a float of 32 bits


def _number_classes(value: Any) -> Any:
    return dict(enumerate(value)) if isinstance(value, list | tuple) else value


def _color(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value.startswith("#"):
        return tuple(bytes.fromhex(value[1:]))
    return tuple(int(part) for part in value.split(","))


def _no_flags(value: Any) -> Any:
    """Refuse true and false, which would be read as the ids 1 and 0."""
    if isinstance(value, list | tuple) and any(isinstance(item, bool) for item in value):
        ids = [id for id, flag in enumerate(value) if flag is True]
        raise ValueError(f"list names or ids of classes, not true or false for each class; perhaps {ids}")
    return value


Byte = Annotated[int, Field(ge=0, le=255)]
ClassNames = Annotated[dict[int, str], BeforeValidator(_number_classes)]
ClassKeys = Annotated[list[int | str], BeforeValidator(_no_flags)]
Palette = Annotated[
    dict[int, Annotated[tuple[Byte, Byte, Byte], BeforeValidator(_color)]], BeforeValidator(_number_classes)
]


class Description(BaseModel):
    """Everything known of a folder beyond its files; see the module's docstring for the meaning of the keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: ClassNames | None = None
    ignore_index: int = IGNORE
    binary: bool = False
    map: dict[int, int] = Field(default_factory=dict)
    palette: Palette | None = None
    foreground: ClassKeys | None = None
    bands: Annotated[int, Field(ge=1)] = 3
    range: tuple[float, float] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    nodata: float | None = None
    crowds: list[str] = Field(default_factory=list)
    line_width: Annotated[float, Field(gt=0, le=1000)] | None = None
    same_light: bool | None = None

    @property
    def names(self) -> tuple[str, ...] | None:
        """Names of the classes by training id; `None` if nobody named them."""
        return None if self.classes is None else tuple(name for _, name in sorted(self.classes.items()))

    def label_map(self, classes: int, **options: Any) -> LabelMap:
        """Return the meaning of stored values; `options` are further fields of a `LabelMap`."""
        meaning = self.map if self.binary else self.training_ids()
        return LabelMap(classes, self.ignore_index, meaning, complete=not self.binary, binary=self.binary, **options)

    def training_ids(self) -> dict[int, int]:
        """Return the training id of each stored id: classes, `ignore_index` and `map` (which needs named classes)."""
        known = {id: position for position, id in enumerate(sorted(self.classes or {}))} | {self.ignore_index: IGNORE}
        targets = known | {IGNORE: IGNORE}
        return known | {stored: targets[id] for stored, id in self.map.items()}

    def display_palette(self) -> tuple[Color, ...] | None:
        """Return one color per class, or `None` if some class has none."""
        ids = sorted(self.classes or {})
        if self.palette is None or not ids or any(id not in self.palette for id in ids):
            return None
        return tuple(self.palette[id] for id in ids)

    def foreground_flags(self) -> tuple[bool, ...] | None:
        """Return whether each class is object-like, or `None` if nothing was said."""
        if self.foreground is None:
            return None
        return tuple(
            id in self.foreground or name in self.foreground for id, name in sorted((self.classes or {}).items())
        )


def read_description(root: Path, given: Mapping[str, Any]) -> Description:
    """Collect what is said about a folder: arguments win over halfmask.yaml, that over a class file.

    Args:
        root: the folder.
        given: keys given by arguments; `None` means not given.

    Raises:
        DataError: unknown keys, wrong types, contradictions; all together.
    """
    path = root / FILE_NAME
    said = _read_yaml(path) if path.is_file() else _require_no_other(root)
    said |= {key: value for key, value in given.items() if value is not None}
    where = f"{path} (or data.dataset)"
    if "classes" not in said and (named := read_class_file(root)) is not None:
        said = {"classes": named.names} | ({"palette": named.colors} if named.colors else {}) | said
        where = f"{named.path}, {FILE_NAME} or data.dataset"
    repeated = [problem for key in ("classes", "map", "palette") for problem in _repeated_ids(key, said.get(key))]
    if repeated:
        raise DataError(f"{where}:\n{bullet_list(repeated)}", "H209")
    try:
        description = Description.model_validate(_composed(said))
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors()]
        raise DataError(f"{where}:\n{bullet_list(lines)}", "H209") from None
    problems = _contradictions(description)
    if problems:
        raise DataError(f"{where}:\n{bullet_list(problems)}", "H209")
    return description


def _require_no_other(root: Path) -> dict[str, Any]:
    """Refuse halfmask.yml or Halfmask.yaml, which nobody would read: what it says would be lost (DataError)."""
    others = {FILE_NAME, FILE_NAME.replace(".yaml", ".yml")}
    found = sorted(path.name for path in root.iterdir() if path.name.lower() in others) if root.is_dir() else []
    if found:
        raise DataError(f"{root / found[0]}: the name of this file must be {FILE_NAME}. Rename it.", "H209")
    return {}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        said = read_yaml(read_text(path, "H209"))
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not valid YAML: {error}", "H209") from error
    if not isinstance(said, dict | None):
        raise DataError(f"{path}: expected keys such as `classes: {{0: background, 1: crack}}`.", "H209")
    return dict(said or {})


def _composed(value: Any) -> Any:
    """Write letters and accents of names in one character each, as labels of annotation files are read."""
    if isinstance(value, dict):
        return {key: _composed(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_composed(one) for one in value]
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value


def _repeated_ids(key: str, table: Any) -> Iterator[str]:
    """Find ids that are written in two ways, such as 1 and "1"."""
    if isinstance(table, Mapping):
        written = Counter(str(id).strip() for id in table)
        yield from (f"`{key}` gives the id {id} twice." for id, count in written.items() if count > 1)


def _contradictions(said: Description) -> list[str]:
    problems = [*_repeated_names(said.classes or {}), *_impossible_numbers(said)]
    ids = sorted(said.classes or {})
    if len(ids) > IGNORE:
        problems.append(f"{len(ids)} classes; at most {IGNORE} are possible.")
    if said.ignore_index in ids:
        problems.append(f"{said.ignore_index} is both a class and `ignore_index`; number the classes without it.")
    if said.binary and said.classes is not None and ids != [0, 1]:
        problems.append(f"`binary: true` needs exactly the classes 0 and 1, not {ids}.")
    unknown = sorted({id for id in said.map.values() if id not in {*ids, IGNORE, said.ignore_index}}) if ids else []
    if unknown:
        problems.append(f"`map` leads to {unknown}, which are no classes ({ids}) and not {IGNORE} (ignore).")
    names = {*ids, *(said.classes or {}).values()}
    if said.foreground and said.classes is None:
        problems.append("`foreground` needs `classes`.")
    elif stray := [str(item) for item in said.foreground or [] if item not in names]:
        problems.append(f"`foreground` names {', '.join(stray)}, which are no classes: {list(said.classes or {})}.")
    for key, values in (("mean", said.mean), ("std", said.std)):
        if values is not None and len(values) != said.bands:
            problems.append(f"`{key}` has {len(values)} numbers, the images {said.bands} bands.")
    return problems


def _repeated_names(classes: Mapping[int, str]) -> Iterator[str]:
    """Find names that several ids share: results are told by name."""
    ids: dict[str, list[int]] = {}
    for id, name in sorted(classes.items()):
        ids.setdefault(unicodedata.normalize("NFC", name).strip(), []).append(id)
    for name, sharing in ids.items():
        listed = ", ".join(map(str, sharing))
        if not name:
            yield f"`classes`: {listed} has no name."
        elif len(sharing) > 1:
            yield (
                f"`classes`: {listed} are all called {name}; names must differ. Rename one, or, if they are one class, "
                f"name it once and write `map: {{{sharing[1]}: {sharing[0]}}}`."
            )


def _impossible_numbers(said: Description) -> Iterator[str]:
    """Find numbers that pixels cannot be scaled by."""
    if said.range is not None and not all(abs(value) <= _LARGEST for value in said.range):  # NaN is in no range
        yield f"`range: {_numbers(said.range)}` must be two finite numbers, for example [0, 4095]."
    elif said.range is not None and said.range[0] >= said.range[1]:
        yield f"`range: {_numbers(said.range)}` must increase."
    if said.mean is not None and not all(0 <= value <= 1 for value in said.mean):
        divide = "; divide by 255" if all(0 <= value <= 255 for value in said.mean) else ""
        yield f"`mean: {_numbers(said.mean)}`: means of pixels in [0, 1] are in [0, 1]{divide}."
    if said.std is not None and not all(_SMALLEST_STD <= value <= _LARGEST for value in said.std):
        yield f"`std: {_numbers(said.std)}` must be finite numbers above 0 (at least {_SMALLEST_STD:g})."
    if said.nodata is not None and math.isinf(said.nodata):
        yield "`nodata` must be a finite number or .nan; infinite pixels are read as the ends of `range`."


def _numbers(values: tuple[float, ...]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"


def _explain(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = list(Description.model_fields)
        return f"`{key}` is not known.{nearest(key, known)} Known: {', '.join(known)}."
    return f"`{key}`: {item['msg']}, got {item['input']!r}."
