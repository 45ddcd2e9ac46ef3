"""Read the class files that tools write beside the data: `classes.txt`, `class_names.txt` or `labelmap.txt`.

    NAME                        one per line, numbered from 0
    NAME:R,G,B::                CVAT, with or without the color
    ID: NAME   ID<TAB>NAME      also with `=`, `,`, `;` or a space between, if every line starts with a number
    NAME: ID                    if every line ends with a number
    ID<TAB>NAME<TAB>R,G,B       with the color of masks saved as colors

Lines that start with `#` are comments. A line that says something else is refused with its number.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from halfmask.data.folder.files import read_text
from halfmask.data.folder.masks.decode import IGNORE
from halfmask.errors import DataError

_FILES = ("classes.txt", "class_names.txt", "labelmap.txt")
_IGNORED_NAMES = {"__ignore__", "void", "ignore", "unlabeled"}
_ID_FIRST = re.compile(r"^(-?\d+)\s*[:=,;\t ]\s*(\S.*)$")
_ID_LAST = re.compile(r"^(.*\S)\s*[:=,;\t]\s*(-?\d+)$")
_COLORED = re.compile(r"^[^:]*:\s*\d+\s*,\s*\d+\s*,\s*\d+")
_COLOR = re.compile(r"^\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*$")


class ClassLine(NamedTuple):
    """One class: its id, its name and perhaps its color as `R,G,B`."""

    id: int
    name: str
    color: str = ""


@dataclass(frozen=True)
class ClassFile:
    """What a class file says."""

    path: Path
    names: dict[int, str] = field(default_factory=dict)  # by id
    colors: dict[int, str] = field(default_factory=dict)  # by id, of those that have one


def read_class_file(root: Path) -> ClassFile | None:
    """Return the classes that the class file of a folder names, or `None` if there is none.

    Raises:
        DataError: it is no text, a line says something else than the others, or an id is given twice.
    """
    path = next((root / name for name in _FILES if (root / name).is_file()), None)
    if path is None:
        return None
    lines = read_text(path, "H209").splitlines()
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    found = ClassFile(path)
    lines_of: dict[int, int] = {}
    for number, line in _parse(path, numbered):
        if line.id in lines_of:
            raise DataError(
                f"{path}: the id {line.id} stands in line {lines_of[line.id]} and in line {number}. Give each id once.",
                "H209",
            )
        lines_of[line.id] = number
        if line.name == "__ignore__":
            continue
        if not (line.id == IGNORE and line.name.lower() in _IGNORED_NAMES):
            found.names[line.id] = line.name
        if line.color:
            found.colors[line.id] = line.color
    return found


def named_in_file(root: Path) -> tuple[Path, tuple[str, ...]] | None:
    """Return the class file of a folder and the names in it by id, or `None` if there is none.

    Raises:
        DataError: it is no text, or no class file.
    """
    found = read_class_file(root)
    return None if found is None else (found.path, tuple(name for _, name in sorted(found.names.items())))


def _parse(path: Path, lines: Sequence[tuple[int, str]]) -> list[tuple[int, ClassLine]]:
    texts = [line.strip() for _, line in lines]
    if _are_numbered(texts):
        return _each(path, lines, _with_id)
    if all(_ID_LAST.match(text) and not _COLORED.match(text) for text in texts):
        return _each(path, lines, _with_last_id)
    some = [number for number, line in lines if re.match(r"^-?\d+\s*[:=\t]", line.strip())]
    if some:
        bare = next(number for number, line in lines if not re.match(r"^-?\d+\s*[:=\t]", line.strip()))
        raise DataError(
            f"{path}: line {some[0]} starts with an id, line {bare} does not. Write `ID: NAME` on every line, or "
            "names alone.",
            "H209",
        )
    named: list[tuple[int, ClassLine]] = []
    used = 0
    for number, line in lines:
        name, _, rest = line.strip().partition(":")
        color = rest.partition(":")[0].strip()
        named.append((number, ClassLine(used, name.strip(), _checked(path, number, color))))
        used += name.strip() != "__ignore__"
    return named


def _are_numbered(texts: Sequence[str]) -> bool:
    """Return whether every line starts with an id: with only a space behind it, it could be part of a name (`2 doors`).

    >>> _are_numbered(["1 wall", "2 door"]), _are_numbered(["2 doors", "4 doors"]), _are_numbered(["2: a", "4: b"])
    (True, False, True)
    """
    matches = [_ID_FIRST.match(text) for text in texts]
    if not matches or not all(matches):
        return False
    found = [match for match in matches if match is not None]
    if all(text[len(match[1]) :].lstrip(" ")[0] in ":=,;\t" for text, match in zip(texts, found, strict=True)):
        return True
    ids = sorted(int(match[1]) for match in found)
    return ids[0] in {0, 1} and ids == list(range(ids[0], ids[0] + len(ids)))


def _each(
    path: Path, lines: Sequence[tuple[int, str]], read: Callable[[str], ClassLine]
) -> list[tuple[int, ClassLine]]:
    found = [(number, read(line.strip())) for number, line in lines]
    return [(number, line._replace(color=_checked(path, number, line.color))) for number, line in found]


def _with_id(text: str) -> ClassLine:
    match = _ID_FIRST.match(text)
    assert match is not None  # of every line
    name, _, rest = match[2].partition("\t")
    if not rest and ":" in name:  # `0: road: 128,64,128`
        head, _, tail = name.rpartition(":")
        name, rest = (head, tail) if _COLOR.match(tail) else (name, "")
    return ClassLine(int(match[1]), name.strip(), rest.partition("\t")[0].strip())


def _with_last_id(text: str) -> ClassLine:
    match = _ID_LAST.match(text)
    assert match is not None  # of every line
    return ClassLine(int(match[2]), match[1].strip())


def _checked(path: Path, number: int, color: str) -> str:
    """Return a color that can be one, or nothing."""
    if not color:
        return ""
    match = _COLOR.match(color)
    if match is None or any(int(part) > 255 for part in match.groups()):
        raise DataError(
            f"{path}: line {number}: {color!r} is no color. Write `NAME:R,G,B` with numbers from 0 to 255, or "
            "`ID: NAME`.",
            "H209",
        )
    return ",".join(match.groups())
