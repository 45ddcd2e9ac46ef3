"""Read split lists in every form in use, and find the images they name.

One sample per line: `image`, `image mask` or `before after mask`; separated by spaces, tabs, or (`.csv`) commas;
with or without a leading `/`; `None` where there is no mask; UNIX or Windows line ends; perhaps no final line end.
Paths with spaces work where every column ends in a file suffix, else with tabs or CSV.
"""

import csv
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from halfmask.data.contract import Dataset
from halfmask.data.folder.files import read_text
from halfmask.data.folder.images.decode import IMAGE_SUFFIXES
from halfmask.errors import DataError

_SUFFIXES = (*sorted(IMAGE_SUFFIXES), ".npz", ".h5", ".mat")
# A column ends where a file suffix is followed by white space or the end.
_COLUMN = re.compile(rf"\s*(.+?(?:{'|'.join(map(re.escape, _SUFFIXES))})|None)(?=\s|$)", re.IGNORECASE)
_HEADERS = {"image", "img", "path", "file", "image_path", "filename", "a"}


class ListEntry(NamedTuple):
    """One line: an image, its mask if the line names one, and the later image of a pair."""

    image: str
    mask: str | None = None
    after: str | None = None


def read_list(path: Path) -> list[ListEntry]:
    """Read a split list. Raises DataError: missing, not text, empty, or lines with more columns than three."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such list. Give the path of a text file with one image per line.", "H211")
    text = read_text(Path(path), "H211")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    is_csv = Path(path).suffix.lower() == ".csv"
    try:
        rows = list(csv.reader(lines)) if is_csv else [_split_line(line) for line in lines]
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV file ({error}). Write it anew, one image per line.", "H211") from None
    if is_csv and rows and rows[0][0].strip().lower() in _HEADERS:
        rows = rows[1:]
    if not rows:
        raise DataError(f"{path}: the list is empty. Write one image per line, relative to the dataset's root.", "H211")
    for number, row in enumerate(rows, 1):
        if len(row) > 3:
            raise DataError(
                f"{path}: entry {number} has {len(row)} columns ({' | '.join(row)}); expected `image`, `image mask` or "
                "`before after mask`. Separate paths that contain spaces by tabs.",
                "H211",
            )
    return [_entry([_clean(column) for column in row]) for row in rows]


def _is_file(path: Path) -> bool:
    """Look for a file; a name too long for the disk is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def write_list(path: Path, ids: Sequence[str]) -> None:
    """Write ids as a list of one column that `read_list` reads back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{id}\n" for id in ids), encoding="utf-8")


class Finder:
    """Find the ids that lists mean: exact paths, paths of another machine's root, bare names and bare stems.

    For image pairs a line may also be the name both dates share, whatever its suffix; `before after`; or
    `before after mask`.

    Args:
        dataset: whose ids are searched.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.root = dataset, dataset.root
        self.known = dataset.every_id()
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_form = {unicodedata.normalize("NFC", id): id for id in sorted(self.known, reverse=True)}
        for id in sorted(self.known):
            name = unicodedata.normalize("NFC", id.rpartition("/")[2])
            self._by_name[name].append(id)
            self._by_name[name.rpartition(".")[0]].append(id)
        self._dropped = 0  # leading folders of the last re-rooted path: the same for a whole list

    def take_list(self, path: Path, *, masks: bool = False) -> tuple[list[str], list[str]]:
        """Return the ids of a list file, and the names of images that are not there; `masks`: take over masks."""
        ids: list[str] = []
        absent: list[str] = []
        for entry in read_list(path):
            id = self.take(entry, masks=masks)
            if id is None:
                absent.append(entry.after or entry.image)
            else:
                ids.append(id)
        return ids, absent

    def take(self, entry: ListEntry, *, masks: bool = False) -> str | None:
        """Return the id of a line, or `None` if there is none, and tell the dataset what else the line names."""
        if self.dataset.dates > 1:
            return self._take_pair(entry, masks=masks)
        id = self.id_of(entry.image)
        self._take_mask(id, entry.mask if masks else None)
        return id

    def _take_pair(self, entry: ListEntry, *, masks: bool) -> str | None:
        before, after, mask = entry.image, entry.after, entry.mask
        if after is None and mask is not None and self._later(mask) is not None:
            after, mask = mask, None  # two columns: both dates
        if after is None:
            id = self._later(before)
        else:
            id = self._later(after) or self.id_of(after)
            if id is not None and (earlier := self.mask_of(before)) is not None:
                self.dataset.before_overrides[id] = earlier
        self._take_mask(id, mask if masks else None)
        return id

    def _take_mask(self, id: str | None, name: str | None) -> None:
        if id is not None and name is not None and (mask := self.mask_of(name)) is not None:
            self.dataset.mask_overrides[id] = mask

    def _later(self, name: str) -> str | None:
        """Return the pair whose later image has this path, name or stem."""
        if name in self.known:
            return name
        if (rerooted := self.reroot(name)) in self.known:
            return rerooted
        last = unicodedata.normalize("NFC", name.rpartition("/")[2])
        found = self._by_name.get(last) or self._by_name.get(last.rpartition(".")[0], [])
        return found[0] if len(found) == 1 else None

    def id_of(self, name: str) -> str | None:
        """Return the id of an image as named in a list, or `None` if there is no such image."""
        if name in self.known or _is_file(self.root / name):
            return name
        if (rerooted := self.reroot(name)) is not None:
            return rerooted
        name = unicodedata.normalize("NFC", name)
        if name in self._by_form:
            return self._by_form[name]
        found = self._by_name.get(name, []) if "/" not in name else []
        return found[0] if len(found) == 1 else None

    def reroot(self, name: str) -> str | None:
        """Drop leading folders until the path exists below the root: lists may carry the paths of another machine."""
        parts = name.split("/")
        for dropped in (self._dropped, *range(1, len(parts) - 1)):
            tail = "/".join(parts[dropped:])
            if dropped and tail and (tail in self.known or _is_file(self.root / tail)):
                self._dropped = dropped
                return tail
        return None

    def mask_of(self, name: str) -> str | None:
        """Return the path of a mask as named in a list, relative to the root, or `None` if there is no such file."""
        return name if _is_file(self.root / name) else self.reroot(name)


def _split_line(line: str) -> list[str]:
    if "\t" in line:
        return [column for column in line.split("\t") if column.strip()]
    words = line.split()
    if all(word == "None" or word.lower().endswith(_SUFFIXES) for word in words):  # the usual case, ten times faster
        return words
    columns, position = [], 0
    while match := _COLUMN.match(line, position):
        columns.append(match[1])
        position = match.end()
    # Bare ids have no suffix to go by: white space separates.
    return columns if columns and not line[position:].strip() else words


def _clean(column: str) -> str:
    path = column.strip().replace("\\", "/").removeprefix("./")
    return path.lstrip("/")


def _entry(columns: list[str]) -> ListEntry:
    image, *rest = columns
    mask = rest[-1] if rest and rest[-1] not in {"None", ""} else None
    return ListEntry(image, mask, rest[0] if len(rest) == 2 else None)
