"""Errors that a user can cause: each says what happened, where, and how to mend it.

Every class specializes `HalfmaskError` and the built-in exception a library user would expect.
`exit_code` is what the command line returns (0 ok, 1 a check failed, 4 out of memory, 130 Ctrl-C, 143 SIGTERM);
`code` is printed in brackets with the message: one that fits, or that of the class. `halfmask.codes` lists them all.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar


class HalfmaskError(Exception):
    """Base of all errors a user can mend.

    Args:
        message: what, where, how to mend.
        code: stable code of what is wrong (`H203`); left out, that of the class.
    """

    exit_code: ClassVar[int] = 2
    code: str = ""

    def __init__(self, message: str = "", code: str = "") -> None:
        super().__init__(message)
        self.code = code or self.code

    def __str__(self) -> str:
        # KeyError and friends would print the repr of the message.
        return str(self.args[0]) if self.args else ""


class RecipeError(HalfmaskError, ValueError):
    """A recipe or an override is wrong."""

    code = "H301"


class ShapeError(HalfmaskError, ValueError):
    """A tensor, crop or image size does not fit the model."""

    code = "H302"


class DataError(HalfmaskError, ValueError):
    """Images, masks or lists are missing, broken or contradict each other."""

    exit_code = 3
    code = "H200"


class CheckpointError(HalfmaskError, ValueError):
    """A checkpoint, bundle or weight file is missing, broken or made for something else."""

    exit_code = 3
    code = "H401"


class OutOfMemoryError(HalfmaskError, RuntimeError):
    """The device has too little memory for the recipe."""

    exit_code = 4
    code = "H501"


class MissingExtraError(HalfmaskError, ImportError):
    """An optional dependency is not installed.

    Args:
        feature: what needs it.
        extra: of ours that brings it.
        install: how to get it, where no extra does.
    """

    exit_code = 5
    code = "H213"

    def __init__(self, feature: str, extra: str, install: str = "") -> None:
        cure = install or f'pip install "halfmask[{extra}]"'
        super().__init__(f"{feature} needs an optional dependency. Install it: {cure}")


class ParityError(HalfmaskError, RuntimeError):
    """An exported model gives other classes than the original."""

    exit_code = 1
    code = "H601"


class DivergenceError(HalfmaskError, RuntimeError):
    """A run ended because its loss was not finite any more; the last finite weights are kept."""

    exit_code = 1
    code = "H602"


class Interrupted(HalfmaskError, RuntimeError):
    """Ctrl-C stopped a run after its checkpoint was written; 143 if it was SIGTERM.

    Args:
        message: where it stopped and how to continue.
        exit_code: 130 for Ctrl-C, 143 for SIGTERM, as shells count.
        result: of a run that was finished all the same; `None`: it was not.
    """

    exit_code = 130

    def __init__(self, message: str = "", exit_code: int = 130, result: Any = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # of this one instance
        self.result = result


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean `x`?" for the known name closest to `name`, or an empty string.

    >>> nearest("treshold", ["threshold", "cutmix"])
    ' Did you mean `threshold`?'
    >>> nearest("zzz", ["threshold"])
    ''
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean `{close[0]}`?" if close else ""


def gathered(headline: str, errors: Sequence[DataError]) -> DataError:
    """Make one error of several: each below the headline, with its code; the whole has the code of the first.

    >>> error = gathered("2 images are broken:", [DataError("a.png: cut", "H201"), DataError("b.png: deep", "H207")])
    >>> print(error.code, error)
    H201 2 images are broken:
      - [H201] a.png: cut
      - [H207] b.png: deep
    """
    return DataError(f"{headline}\n{bullet_list([f'[{one.code}] {one}' for one in errors])}", errors[0].code)


class Faults:
    """Errors of checks that do not depend on one another, so that the user reads all of them at once.

    >>> faults = Faults()
    >>> with faults.collected():
    ...     raise RecipeError("crop 7 is no multiple of 8")
    >>> faults.check(int, "7")
    >>> with faults.collected():
    ...     raise DataError("a.png: cut off", "H201")
    >>> faults.raise_all()
    Traceback (most recent call last):
    halfmask.errors.RecipeError: 2 problems:
      - [H301] crop 7 is no multiple of 8
      - [H201] a.png: cut off
    """

    def __init__(self) -> None:
        self.found: dict[str, HalfmaskError] = {}

    def __bool__(self) -> bool:
        return bool(self.found)

    def add(self, error: HalfmaskError) -> None:
        """Keep an error; one that is known already counts once."""
        self.found.setdefault(str(error), error)

    def check(self, call: Callable[..., object], *arguments: Any) -> None:
        """Call a check and keep its error."""
        with self.collected():
            call(*arguments)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep the error of a user that ends the block, and go on after it."""
        try:
            yield
        except (RecipeError, ShapeError, DataError, CheckpointError, MissingExtraError) as error:
            self.add(error)

    def raise_all(self) -> None:
        """Raise what was found: one error as it is, several as one of the first one's class and code."""
        errors = list(self.found.values())
        if len(errors) > 1:
            texts = [f"[{error.code}] {error}".replace("\n", "\n  ") for error in errors]
            errors[0].args = (f"{len(errors)} problems:\n{bullet_list(texts, limit=30)}",)
        if errors:
            raise errors[0]


def first_few(names: Sequence[str], most: int = 3) -> str:
    """List names, and dots for those beyond the first few.

    >>> first_few(["a", "b", "c"], 2), first_few(["a"])
    ('a, b, ...', 'a')
    """
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def bullet_list(problems: list[str], limit: int = 10) -> str:
    """Join several problems under one another, the first `limit` in full.

    >>> print(bullet_list(["a", "b", "c"], limit=2))
      - a
      - b
      - ... and 1 more
    """
    lines = [f"  - {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  - ... and {len(problems) - limit} more")
    return "\n".join(lines)
