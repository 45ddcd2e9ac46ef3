"""Remember which files were found to be good, so that the next start of a run need not read them again.

A stamp belongs to one state of its files (size, time of change) and one meaning of the masks; an edited file, or other
classes, are looked at anew. Broken files are never remembered.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from halfmask.data.folder.masks.forms import MaskForm

Counts = dict[str, int]  # class id -> pixels


class Good(NamedTuple):
    """What is known of a file that can be read."""

    counts: Counts  # class id -> pixels of its mask; empty: looked at without mask
    form: MaskForm | None = None  # how its mask holds the values


State = list[list[int]]  # size and time of change of each file of an entry


class Stamps:
    """What is known of the files of one dataset.

    Args:
        folder: where the stamps of all datasets lie; `None` remembers nothing.
        owner: dataset, classes, meaning of masks: whatever decides if a file is good.
    """

    def __init__(self, folder: Path | None, owner: str) -> None:
        self._path = folder and folder / f"{hashlib.sha256(owner.encode()).hexdigest()[:32]}.json"
        self._known: dict[str, tuple[State, Good]] = {}
        self._changed = False
        if self._path is not None:
            with suppress(OSError, ValueError, TypeError, AttributeError):  # a damaged memory is no memory
                loaded = json.loads(self._path.read_text(encoding="utf-8"))
                self._known = {str(id): (state, _from_plain(*good)) for id, (state, *good) in loaded.items()}

    def recall(self, id: str, state: State) -> Good | None:
        """Return the stored result if the files have not changed."""
        known = self._known.get(id)
        return known[1] if known is not None and known[0] == state else None

    def remember(self, id: str, state: State, good: Good) -> None:
        """Record that the files of an id are good."""
        self._known[id], self._changed = (state, good), True

    def save(self) -> None:
        """Write the stamps; a place that cannot be written only costs time at the next start."""
        if self._path is None or not self._changed:
            return
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._path.parent, delete=False, encoding="utf-8") as file:
                plain = {
                    id: (state, good.counts, *([asdict(good.form)] if good.form else []))
                    for id, (state, good) in self._known.items()
                }
                json.dump(plain, file)
            os.replace(file.name, self._path)


def state_of(paths: Iterable[Path]) -> State | None:
    """Return the state of some files, `None` if one of them is missing."""
    try:
        return [[state.st_size, state.st_mtime_ns] for state in map(os.stat, paths)]
    except OSError:
        return None


def _from_plain(counts: Counts, form: Mapping[str, Any] | None = None) -> Good:
    return Good(counts, None if form is None else MaskForm.from_plain(form))
