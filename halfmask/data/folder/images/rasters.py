"""Read an image band of rows by band of rows, so that one of any size can be predicted.

    TIFF, PNG   windows of the file, where rasterio (extra `geo`) is installed: memory does not grow with the image
    .npy        mapped from the disk
    the rest    decoded once, and kept as it was stored: one byte per pixel and band

JPEG is always decoded by the same library as in training: decoders differ in how they enlarge the colors.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image

from halfmask.data.folder.images.decode import (
    decode,
    fit_bands,
    open_geotiff,
    png_depth,
    read_header,
    read_npy,
    to_uint8,
    without_data,
)
from halfmask.data.folder.images.ground import SUFFIXES
from halfmask.errors import DataError

# What both libraries read alike; the rest (bits, CMYK, ...) Pillow turns into RGB.
_WINDOWED_MODES = frozenset({"L", "I;16", "I;16B", "I", "F", "P", "RGB", "RGBA", "YCbCr"})
_PNG_GRAY_AND_COLORS = frozenset({0, 2, 4, 6})
_BYTE = 256  # ids that a color table has room for

Values = Shaped[np.ndarray, "H W C"]
Empty = Bool[np.ndarray, "H W"] | None


@dataclass(frozen=True)
class Reading:
    """How the images of a model are read."""

    channels: int = 3
    value_range: tuple[float, float] | None = None  # values that become 0 and 255, for anything but 8-bit data
    nodata: float | None = None  # value, in all bands, of pixels without data; they become black, as in training


@dataclass(frozen=True)
class Picture:
    """Decoded rows of an image."""

    pixels: UInt8[np.ndarray, "H W C"]  # as the model was trained on
    empty: Empty = None  # where there is no data; `None`: nowhere


@runtime_checkable
class _Rows(Protocol):
    size: tuple[int, int]

    def read(self, top: int, bottom: int) -> tuple[Values, Empty]: ...


class Raster:
    """An open image.

    Args:
        path: the file, for messages.
        source: gives stored values.
        reading: what becomes of them.
    """

    def __init__(self, path: Path, source: _Rows, reading: Reading) -> None:
        self.path, self.size = path, source.size
        self._source, self._reading = source, reading

    def rows(self, top: int, bottom: int) -> Picture:
        """Decode the rows from `top` to `bottom` (exclusive).

        Raises:
            DataError: a broken file, or other bands or values than the model was trained on.
        """
        return _picture(*self._source.read(top, bottom), self.path, self._reading)


def read_picture(path: Path, reading: Reading, *, georeferenced: bool = False) -> Picture:
    """Decode a whole image.

    Args:
        path: of the image.
        reading: how.
        georeferenced: a TIFF with coordinates; where there is no data is read off the file, too.

    Raises:
        DataError: a broken file, or other bands or values than the model was trained on.
    """
    empty = None
    if georeferenced:
        with open_geotiff(path) as source:
            rows = GeoRows(source)
            empty = rows.read(0, rows.size[0])[1]
    return _picture(decode(path, channels=reading.channels), empty, path, reading)


def image_size(path: Path) -> tuple[int, int]:
    """Return rows and columns of the upright image, whatever its size. Raises DataError: a broken file."""
    try:
        return read_header(path).upright
    except DataError as error:
        if not isinstance(error.__cause__, Image.DecompressionBombError) or not _has_windows(path):
            raise
    with open_geotiff(path) as source:
        return GeoRows(source).size


@contextmanager
def open_raster(path: Path, reading: Reading, *, georeferenced: bool = False) -> Iterator[Raster]:
    """Open an image to read it row by row. Raises DataError: missing or broken."""
    if _has_windows(path):
        with open_geotiff(path) as source:
            yield Raster(path, GeoRows(source, masked=georeferenced), reading)
    elif path.suffix.lower() == ".npy":
        yield Raster(path, _ArrayRows(read_npy(path, reading.channels, mapped=True)), reading)
    else:
        yield Raster(path, _ArrayRows(decode(path, channels=reading.channels)), reading)


class _ArrayRows:
    def __init__(self, values: Values) -> None:
        self._values = values
        self.size = values.shape[:2]

    def read(self, top: int, bottom: int) -> tuple[Values, Empty]:
        return self._values[top:bottom], None


def _picture(values: Values, empty: Empty, path: Path, reading: Reading) -> Picture:
    try:
        pixels = fit_bands(to_uint8(values, path, reading.value_range), path, reading.channels)
    except DataError as error:
        low, high = reading.value_range or (0, 255)
        depth = "8 bits" if reading.value_range is None else f"values from {low:g} to {high:g}"
        raise DataError(
            f"{path}: {values.shape[2]} bands of {values.dtype}, but the model was trained on {reading.channels} of "
            f"{depth}. Convert the image to these, or train on such images.",
            error.code,
        ) from error
    if reading.nodata is not None:
        blank = without_data(values, reading.nodata)
        pixels = np.where(blank[:, :, None], np.uint8(0), pixels)
        empty = blank if empty is None else blank | empty
    return Picture(pixels, empty if empty is not None and empty.any() else None)


def _has_windows(path: Path) -> bool:
    """Return whether GDAL gives windows of a file, and the same pixels as the decoder of training."""
    suffix = path.suffix.lower()
    if suffix not in {*SUFFIXES, ".png"} or find_spec("rasterio") is None:
        return False
    if suffix == ".png":
        with path.open("rb") as file:
            bits, kind = png_depth(file.read(26).ljust(26, b"\0"))
        return bits >= 8 and kind in _PNG_GRAY_AND_COLORS and _is_upright(path)
    try:
        with Image.open(path) as image:
            upright = getattr(image, "tag_v2", {}).get(274, 1) == 1
            return upright and image.mode in _WINDOWED_MODES
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return True


def _is_upright(path: Path) -> bool:
    try:
        return read_header(path).orientation == 1
    except DataError:
        return True  # too large to be opened by Pillow; no camera rotates such files


class GeoRows:
    """Rows of an open raster, read when they are asked for.

    Args:
        source: opened by `open_geotiff`.
        masked: ask it where there is no data.
    """

    def __init__(self, source: Any, *, masked: bool = True) -> None:
        self._source = source
        self.size: tuple[int, int] = source.shape
        self._whole = not masked or all(
            [flag.name for flag in flags] == ["all_valid"] for flags in source.mask_flag_enums
        )
        self._colors = _color_table(source)

    def read(self, top: int, bottom: int) -> tuple[Shaped[np.ndarray, "H W C"], Bool[np.ndarray, "H W"] | None]:
        """Return the stored values of some rows, and where the file says that there is no data (`None`: nowhere)."""
        window = ((top, bottom), (0, self.size[1]))
        values = np.moveaxis(np.asarray(self._source.read(window=window)), 0, 2)
        empty = None if self._whole else self._source.dataset_mask(window=window) == 0
        return (values if self._colors is None else self._colors[values[:, :, 0]]), empty


def _color_table(source: Any) -> np.ndarray | None:
    """Return the RGB color of each value, of an image that is stored as indices of colors."""
    if source.count != 1 or source.colorinterp[0].name != "palette" or source.dtypes[0] != "uint8":
        return None
    table = np.zeros((_BYTE, 3), dtype=np.uint8)
    for value, color in source.colormap(1).items():
        table[value] = color[:3]
    return table
