"""Write files so that a reader, or the next run, never meets half of one; check a folder before long work.

The new content goes to a temporary file in the same folder, is flushed to the disk, and replaces the old file
in one operation of the file system. When writing fails, the earlier file is untouched.
"""

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from halfmask.errors import CheckpointError, DataError, HalfmaskError

# torch.save hides the operating system's error: these are what a full disk looks like from above.
_FULL_DISK_SIGNS = ("no space left", "os error 28", "unexpected pos", "pytorchstreamwriter failed", "iostream error")


@contextmanager
def atomic_path(path: str | Path, *, error: type[HalfmaskError] = CheckpointError) -> Iterator[Path]:
    """Return a temporary path to write to; it becomes `path` when the block ends without an exception.

    Args:
        path: the file to create or replace; missing parent folders are made.
        error: what a full disk or a missing permission is reported as.

    Raises:
        HalfmaskError: of type `error`, when the disk is full or the folder cannot be written. `path` then still
            holds what it held before.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "note.txt"
    >>> with atomic_path(file) as part:
    ...     _ = part.write_text("done", encoding="utf-8")
    >>> file.read_text(encoding="utf-8"), len(list(file.parent.iterdir()))
    ('done', 1)
    """
    path = Path(path)
    # The writer's suffix stays last: some writers choose the format by it.
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        flush(part)
        os.replace(part, path)
        _flush_folder(path.parent)
    except Exception as cause:
        message = _explain(cause, path)
        if message is None:
            raise
        raise error(message, "H502") from cause
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str, *, error: type[HalfmaskError] = CheckpointError) -> None:
    """Write UTF-8 text with Unix line ends, atomically.

    Raises:
        HalfmaskError: of type `error`, when the disk is full or the folder cannot be written.
    """
    with atomic_path(path, error=error) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any, *, error: type[HalfmaskError] = CheckpointError) -> None:
    """Write plain data as indented UTF-8 JSON, atomically.

    Raises:
        HalfmaskError: of type `error`, when the disk is full or the folder cannot be written.
        ValueError: the data holds nan or infinity, which JSON has no word for.
    """
    write_text(path, json_text(value), error=error)


def json_text(value: Any) -> str:
    """Write plain data as indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def flush(path: Path) -> None:
    """Wait until a file's content is on the disk: a rename must not overtake it, and a full disk must show now."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    with suppress(OSError):  # Windows cannot open folders; the rename itself has happened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _explain(cause: Exception, path: Path) -> str | None:
    """Return the message for a file-system failure, or `None` for an error of another kind."""
    number = cause.errno if isinstance(cause, OSError) else None
    text = str(cause).lower()
    if number in {errno.ENOSPC, errno.EDQUOT} or any(sign in text for sign in _FULL_DISK_SIGNS):
        return (
            f"{path}: the disk is full; nothing was changed, the earlier file (if any) is intact. "
            "Free some space, or choose another folder with --out."
        )
    if number in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}:
        return (
            f"{path}: cannot be written ({os.strerror(number or 0)}). "
            "Make the folder writable, or choose another one with --out."
        )
    return None


def require_writable(folder: Path, flag: str = "--out") -> None:
    """Check that a folder can be written, or be made; nothing is left behind.

    Args:
        folder: where results will go.
        flag: that chooses it.

    Raises:
        DataError: it is a file or lies below one, or the system refuses.
    """
    folder = Path(folder)
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise DataError(
            f"{nearest} is a file, so there can be no folder {folder}. Choose another folder with {flag}.", "H502"
        )
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(
            f"{folder}: cannot be written: {nearest} refuses new files ({reason}). Make it writable, or choose another "
            f"folder with {flag}.",
            "H502",
        ) from None
