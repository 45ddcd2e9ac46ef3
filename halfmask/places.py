"""Find out whether something can be written at a place, before the work whose result goes there."""

import tempfile
from pathlib import Path

from halfmask.errors import DataError


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
