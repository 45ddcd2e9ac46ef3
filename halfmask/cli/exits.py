"""What a failed command prints, and the code it exits with."""

import errno
import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer

from halfmask.cli import flags
from halfmask.cli.groups import option, set_parameters, with_options
from halfmask.errors import DataError, HalfmaskError, Interrupted, OutOfMemoryError

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


def reporting_errors(verb: Callable[..., None]) -> Callable[..., None]:
    """Turn the exceptions of a verb into a message on stderr and an exit code.

    The verb's options, which typer reads off the signature, get two more at their end that no verb looks at itself:
    `--debug`, with which the traceback comes before the message, and, where there is `--quiet`, `--verbose`.
    """
    verb = with_options(verb)
    parameters = list(inspect.signature(verb).parameters.values())
    quiet = any(parameter.name == "quiet" for parameter in parameters)
    added = {"verbose": flags.Verbose, "debug": flags.Debug} if quiet else {"debug": flags.Debug}
    parameters += [option(name, annotation, False) for name, annotation in added.items()]

    @functools.wraps(verb)
    def guarded(verbose: bool = False, debug: bool = False, **options: Any) -> None:
        try:
            if quiet:
                flags.set_verbosity(options["quiet"], verbose)
            verb(**options)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except (Exception, KeyboardInterrupt) as error:
            message, code = describe_failure(error)
            if debug:
                traceback.print_exc()
            print(message, file=sys.stderr)
            raise typer.Exit(code) from None

    set_parameters(guarded, parameters)
    return guarded


def describe_failure(error: BaseException) -> tuple[str, int]:
    """Return the message and the exit code for an exception.

    >>> from halfmask.errors import DataError
    >>> describe_failure(DataError("no images in field/"))
    ('DataError[H200]: no images in field/', 3)
    >>> describe_failure(DataError("no images in field/", "H208"))  # docs/errors.md lists the codes
    ('DataError[H208]: no images in field/', 3)
    >>> describe_failure(KeyboardInterrupt())
    ('interrupted', 130)
    """
    if isinstance(error, Interrupted):
        return str(error), error.exit_code
    if isinstance(error, HalfmaskError):
        code = f"[{error.code}]" if error.code else ""  # a plugin's own class may have none
        return f"{type(error).__name__}{code}: {error}", error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", Interrupted.exit_code
    if is_out_of_memory(error):
        first = str(error).partition("\n")[0]
        cure = (
            "Next to try: a smaller batch (data.batch.labeled, data.batch.unlabeled), then a smaller data.crop; to "
            "evaluate or predict: eval.batch=1 eval.mode=slide."
        )
        return describe_failure(OutOfMemoryError(f"{first}\n  {cure}"))
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        place = f"{error.filename}: " if error.filename else ""
        cure = "Free space, make the folder writable, or choose another folder (--out)."
        return describe_failure(DataError(f"{place}{os.strerror(error.errno)}. {cure}", "H502"))
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
