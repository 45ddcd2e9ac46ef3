"""One thing that `halfmask check` found: its code, how often, one example, and what mends it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from halfmask.codes import describe

Level = Literal["error", "warning", "note"]


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
    """

    level: Level
    code: str
    message: str
    count: int = 1
    example: str = ""
    cure: str = ""

    def __post_init__(self) -> None:
        if not self.cure:
            object.__setattr__(self, "cure", describe(self.code).cure)

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        shown = f"  {self.example}" if self.example and self.example not in self.message else ""
        return f"{self.level}[{self.code}]: {self.message}{shown}\n  fix: {self.cure}"


def plural(count: int, one: str, many: str = "") -> str:
    """Count things.

    >>> plural(1, "mask"), plural(3, "mask"), plural(2, "class", "classes")
    ('1 mask', '3 masks', '2 classes')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"
