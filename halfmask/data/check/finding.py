"""One thing that `halfmask check` found: its code, how often, one example, and what mends it."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from halfmask.codes import describe

Level = Literal["error", "warning", "note"]
MOST_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding.

    Args:
        level: "error" (cannot be trained on), "warning" (deserves a look) or "note" (handled, nothing to do).
        code: `H203`; see `halfmask.codes`.
        message: what was found.
        count: how many images, masks, classes or files it concerns.
        example: one of them.
        cure: what to do.
        files: all it concerns, relative to the folder; empty where it is not about single files.
    """

    level: Level
    code: str
    message: str
    count: int = 1
    example: str = ""
    cure: str = ""
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.cure:
            object.__setattr__(self, "cure", describe(self.code).cure)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self) | {"files": list(self.files)}

    def __str__(self) -> str:
        listed = self._listed()
        known = self.example in self.message or (listed and self.example in self.files)
        shown = "" if known else f"  {self.example}"
        return f"{self.level}[{self.code}]: {self.message}{shown}{listed}\n  fix: {self.cure}"

    def _listed(self) -> str:
        """List the files, if there is more than the example; those of notes need no look."""
        if len(self.files) < 2 or self.level == "note":
            return ""
        more = len(self.files) - MOST_SHOWN
        listed = ", ".join(self.files[:MOST_SHOWN]) + (f" and {more:,} more (--json lists all)" if more > 0 else "")
        return f"\n  files: {listed}"


def about(level: Level, code: str, files: Sequence[str], one: str, text: str = "", many: str = "") -> Iterator[Finding]:
    """Report single files, if there are any, the first as the example: how many there are, and what is said of them.

    >>> [found.message for found in about("note", "H110", ["a.png", "b.png"], "mask", "without an image")]
    ['2 masks without an image']
    """
    if files:
        message = f"{plural(len(files), one, many)} {text}".rstrip()
        yield Finding(level, code, message, len(files), files[0], files=tuple(files))


def plural(count: int, one: str, many: str = "") -> str:
    """Count things.

    >>> plural(1, "mask"), plural(3, "mask"), plural(2, "class", "classes")
    ('1 mask', '3 masks', '2 classes')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"
