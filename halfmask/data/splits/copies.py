"""Find copies of images under any name: of the same bytes, or of the same pixels in another file."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from halfmask.data.folder.images.decode import decode, read_header
from halfmask.errors import DataError

# Beyond so many images, pixels are not decoded: copies of other bytes are then found by `halfmask check` alone.
MOST_DECODED = 3000


def find_copies(originals: Sequence[Path], others: Sequence[Path]) -> dict[Path, Path]:
    """Return those of the others that show exactly what an original shows, each with its original.

    Bytes are compared where sizes of files agree. Pixels are compared where sizes of images agree, of at most
    `MOST_DECODED` images; files that cannot be read are no copies.
    """
    found = _same_bytes(originals, others)
    rest = [path for path in others if path not in found]
    sizes: dict[tuple[int, int], list[Path]] = defaultdict(list)
    for path in originals:
        if (size := _size(path)) is not None:
            sizes[size].append(path)
    candidates = [path for path in rest if _size(path) in sizes]
    if len(candidates) + len(originals) > MOST_DECODED:
        return found
    known = {digest: path for path in originals if (digest := _pixels(path))} if candidates else {}
    for path in candidates:
        if (digest := _pixels(path)) in known and digest:
            found[path] = known[digest]
    return found


def _same_bytes(originals: Sequence[Path], others: Sequence[Path]) -> dict[Path, Path]:
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in originals:
        if path.is_file():
            by_size[path.stat().st_size].append(path)
    known: dict[int, dict[str, Path]] = {}
    found: dict[Path, Path] = {}
    for path in others:
        size = path.stat().st_size if path.is_file() else -1
        if size not in by_size:
            continue
        if size not in known:
            known[size] = {_digest(one.read_bytes()): one for one in by_size[size]}
        if (original := known[size].get(_digest(path.read_bytes()))) is not None:
            found[path] = original
    return found


def _size(path: Path) -> tuple[int, int] | None:
    try:
        return read_header(path).upright
    except DataError:
        return None


def _pixels(path: Path) -> str:
    """Return a digest of what an image shows: gray in one band and gray in three are the same."""
    try:
        values = decode(path)
    except DataError:
        return ""
    if values.shape[2] == 4 or (values.shape[2] == 2 and values.dtype == np.uint8):
        values = values[:, :, :-1]
    if values.shape[2] == 3 and (values == values[:, :, :1]).all():
        values = values[:, :, :1]
    return _digest(f"{values.shape} {values.dtype}".encode() + np.ascontiguousarray(values).tobytes())


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
