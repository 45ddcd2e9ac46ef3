"""Read the small text files beside a dataset: lists, class names, descriptions."""

from pathlib import Path

from halfmask.errors import DataError


def read_text(path: Path, code: str) -> str:
    """Read a UTF-8 text file, with or without a byte order mark; other encodings are not guessed.

    Args:
        path: the file.
        code: of the error, if it cannot be read.

    Raises:
        DataError: missing, unreadable, or of another encoding: the line, and the command that mends it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise DataError(f"{path}: {reason}. Give the path of a text file that you may read.", code) from error
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        line = data.count(b"\n", 0, error.start) + 1
        found = "UTF-16 text" if wide else f"not UTF-8 text (byte 0x{data[error.start]:02x} in line {line})"
        raise DataError(
            f"{path}: {found}. Save it as UTF-8 in your editor, or: "
            f"iconv -f {'utf-16' if wide else 'latin1'} -t utf-8 {path.name} > utf8.txt && mv utf8.txt {path.name}",
            code,
        ) from None
