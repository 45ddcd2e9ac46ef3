"""Know which files of a result folder halfmask wrote, so that nothing else is ever replaced or removed.

A folder of results holds `written.sha256`: a line `DIGEST  PATH` for every file in it, so that `sha256sum -c
written.sha256` names what was changed since. The line is there before the file is: an interrupted call leaves no file
of unknown origin. Files that are not listed, or not as they were written, belong to somebody else.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from halfmask.atomic import atomic_path, json_text
from halfmask.errors import DataError, bullet_list

LIST = "written.sha256"
# Files that file managers leave in every folder they show; names that begin with a dot do not count either.
_LEFTOVERS = frozenset({"thumbs.db", "desktop.ini"})


class Written:
    """The files that halfmask wrote into a folder of results.

    Args:
        folder: of the results; need not be there yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def listed(self) -> dict[str, set[str]]:
        """Read the digests that each listed file may have, by its path below the folder."""
        known: dict[str, set[str]] = defaultdict(set)
        try:
            lines = (self.folder / LIST).read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return known
        for line in lines:
            digest, _, name = line.partition("  ")
            if name:
                known[name].add(digest)
        return known

    def others(self) -> list[Path]:
        """List the files in the folder that halfmask did not write; a folder below may have a list of its own."""
        found: list[tuple[Written, Path]] = []
        owners = {self.folder: self}
        for folder, folders, names in os.walk(self.folder):
            here = Path(folder)
            if here not in owners:
                owners[here] = Written(here) if LIST in names else owners[here.parent]
            folders[:] = [name for name in folders if not name.startswith(".")]
            plain = (name for name in names if not name.startswith(".") and name.lower() not in _LEFTOVERS | {LIST})
            found += [(owners[here], here / name) for name in plain]
        # Read last: what another process writes meanwhile is listed first.
        lists = {owner.folder: owner.listed() for owner, _ in found}
        return sorted(path for owner, path in found if owner._name(path) not in lists[owner.folder])

    def changed(self, paths: Iterable[Path]) -> list[Path]:
        """List those of some files that are there, but not as halfmask wrote them."""
        known = self.listed()
        there = (path for path in set(paths) if path.is_file())
        return sorted(path for path in there if digest_of(path) not in known.get(self._name(path), ()))

    def require_alone(self) -> None:
        """Check that nobody else has files in the folder.

        Raises:
            DataError: somebody has.
        """
        if others := self.others():
            names = [self._name(path) for path in others]
            raise DataError(
                f"{self.folder} holds {_files(others)} that halfmask did not write (or wrote before it kept a list, "
                f"{LIST}). Nothing was changed. Choose another --out, a new folder, or move them away:\n"
                f"{bullet_list(names)}",
                "H408",
            )

    def require_unchanged(self, paths: Iterable[Path]) -> None:
        """Check that files which are to be replaced or removed are as halfmask wrote them.

        Raises:
            DataError: somebody worked on one, or made it.
        """
        if changed := self.changed(paths):
            raise DataError(
                f"{_files(changed)} would be replaced that somebody changed since halfmask wrote them, or that it did "
                "not write: work that would be lost. Nothing was changed. Move them away, or choose another --out:\n"
                f"{bullet_list([str(path) for path in changed])}",
                "H408",
            )

    @contextmanager
    def path(self, path: Path) -> Iterator[Path]:
        """Return a temporary path to write to, as `atomic_path` does; the file is listed before it is there.

        Raises:
            DataError: the disk is full, or the folder cannot be written.
        """
        with atomic_path(path, error=DataError) as part:
            yield part
            self.note(path, part)

    def text(self, path: Path, text: str) -> None:
        """Write a text file and list it."""
        with self.path(path) as part:
            part.write_text(text, encoding="utf-8", newline="\n")

    def json(self, path: Path, value: Any, *, compact: bool = False) -> None:
        """Write a JSON file and list it; compact: outlines would double their size with indentation."""
        plain = json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n" if compact else json_text(value)
        self.text(path, plain)

    def note(self, path: Path, content: Path) -> None:
        """List a file that is about to have the content of another one."""
        line = f"{digest_of(content)}  {self._name(path)}\n".encode()
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LIST).open("ab", buffering=0) as file:  # one write of one line: processes do not mix
            file.write(line)

    def _name(self, path: Path) -> str:
        return os.path.relpath(path, self.folder).replace(os.sep, "/")


def digest_of(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(paths: list[Path]) -> str:
    return f"{len(paths):,} file{'s' if len(paths) > 1 else ''}"
