"""What a failed command prints, and the code it exits with."""

import errno
import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, ParamSpec

import typer

from halfmask.errors import DataError, HalfmaskError, Interrupted, OutOfMemoryError

P = ParamSpec("P")
_DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.ENOENT,
    errno.EEXIST,
)


def reporting_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn the exceptions of a verb into a message on stderr and an exit code.

    A mendable error prints its message alone; with `--debug` the traceback comes first. `command` keeps its
    signature, which typer reads.
    """

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except (Exception, KeyboardInterrupt) as error:
            message, code = describe_failure(error)
            if kwargs.get("debug"):
                traceback.print_exc()
            print(message, file=sys.stderr)
            raise typer.Exit(code) from None

    return guarded


def describe_failure(error: BaseException) -> tuple[str, int]:
    """Give the message and the exit code for an exception.

    >>> from halfmask.errors import DataError
    >>> describe_failure(DataError("no images in field/"))
    ('DataError: no images in field/', 3)
    >>> describe_failure(DataError("no images in field/", "H208"))  # docs/errors.md lists the codes
    ('DataError[H208]: no images in field/', 3)
    >>> describe_failure(KeyboardInterrupt())
    ('interrupted', 130)
    """
    if isinstance(error, Interrupted):
        return str(error), error.exit_code
    if isinstance(error, HalfmaskError):
        code = getattr(error, "code", "")
        return f"{type(error).__name__}{f'[{code}]' if code else ''}: {error}", error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", Interrupted.exit_code
    if is_out_of_memory(error):
        first = str(error).partition("\n")[0]
        message = (
            f"OutOfMemoryError: {first}\n  Next to try: a smaller batch (data.batch.labeled, data.batch.unlabeled)"
        )
        return f"{message}, then a smaller data.crop; to evaluate or predict: eval.batch=1 eval.mode=slide.", (
            OutOfMemoryError.exit_code
        )
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        place = f"{error.filename}: " if error.filename else ""
        return (
            f"DataError: {place}{os.strerror(error.errno)}. Free space, make the folder writable, or choose another "
            "folder (--out).",
            DataError.exit_code,
        )
    return (
        f"{type(error).__name__}: {error}\n"
        "  This is not an error that halfmask foresees: a bug, or a plugin's. Run again with --debug for the "
        "traceback, and please report it.",
        1,
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether memory ran out, on an accelerator or on the host."""
    torch: Any = sys.modules.get("torch")  # never imported for this: without torch no tensor was too large
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "not enough memory" in str(error).lower()
    )
