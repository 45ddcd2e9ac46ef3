"""Remember which files were found to be good, so that the next start of a run need not read them again.

A stamp belongs to one state of its files (size, time of change) and one meaning of the masks; an edited file, or other
classes, are looked at anew. Broken files are never remembered.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

State = list[list[int]]  # size and time of change of each file of an entry


def default_folder() -> Path:
    """Give `$HALFMASK_CACHE/verified`, by default below the user's cache folder."""
    base = os.environ.get("HALFMASK_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "halfmask"
    return Path(base).expanduser() / "verified"


def state_of(paths: Iterable[Path]) -> State | None:
    """Give the state of some files, `None` if one of them is missing."""
    try:
        return [[state.st_size, state.st_mtime_ns] for state in map(os.stat, paths)]
    except OSError:
        return None


class Stamps:
    """What is known of the files of one dataset.

    Args:
        folder: where the stamps of all datasets lie; `None` remembers nothing.
        owner: dataset, classes, meaning of masks: whatever decides if a file is good.
    """

    def __init__(self, folder: Path | None, owner: str) -> None:
        self._path = folder and folder / f"{hashlib.sha256(owner.encode()).hexdigest()[:32]}.json"
        self._known: dict[str, tuple[State, dict[str, int]]] = {}
        self._changed = False
        if self._path is not None:
            with suppress(OSError, ValueError, TypeError, AttributeError):  # a damaged memory is no memory
                loaded = json.loads(self._path.read_text(encoding="utf-8"))
                self._known = {str(id): (state, counts) for id, (state, counts) in loaded.items()}

    def recall(self, id: str, state: State) -> dict[str, int] | None:
        """Give what was found in the files of an id, if they are as they were then."""
        known = self._known.get(id)
        return known[1] if known is not None and known[0] == state else None

    def remember(self, id: str, state: State, counts: dict[str, int]) -> None:
        """Note that the files of an id are good, with the pixels of each class (empty: looked at without mask)."""
        self._known[id], self._changed = (state, counts), True

    def save(self) -> None:
        """Write the stamps; a place that cannot be written only costs time at the next start."""
        if self._path is None or not self._changed:
            return
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._path.parent, delete=False, encoding="utf-8") as file:
                json.dump(self._known, file)
            os.replace(file.name, self._path)
