"""Decode images upright to uint8, bands last.

Where the extra `fast` is installed, JPEG goes through simplejpeg (about twice as fast for large images) and 8-bit PNG
through imagecodecs (1.7 times), everything else through Pillow, with the same pixels. torchvision's decoders are
deprecated since 0.29. Three traps are closed here:

  * EXIF orientation is applied, because annotators saw the upright image;
  * data with more than 8 bits is never converted by clipping: it needs an explicit range of values;
  * a 16-bit RGB file is not silently cut to its upper bytes, as Pillow would do.
"""

import functools
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image, UnidentifiedImageError

from halfmask.errors import DataError, MissingExtraError

try:
    import simplejpeg
except ImportError:  # the `fast` extra; Pillow decodes the same pixels more slowly
    simplejpeg = None

JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"})
IMAGE_SUFFIXES = JPEG_SUFFIXES | {
    ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".avif", ".jp2", ".j2k", ".jpx", ".jpf", ".tif", ".tiff", ".ppm",
    ".pgm", ".pbm", ".pnm", ".tga", ".npy",
}  # fmt: skip

_ORIENTATION_TAG = 0x0112
_TIFF_BITS_TAG = 258
_GDAL_CACHE = 64 * 2**20  # bytes
_INTERLACED = 28  # the byte of a PNG file that says so
_PNG_MODES = frozenset({"L", "LA", "RGB", "RGBA"})  # of Pillow; the values of a palette would be looked up


class Header(NamedTuple):
    """What is known of an image without decoding it; sizes are (height, width)."""

    upright: tuple[int, int]
    stored: tuple[int, int]
    orientation: int = 1


def is_image(path: Path) -> bool:
    """Tell image files from everything else: known suffix, not hidden (`.x`, `._x`)."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def read_image(
    path: Path, *, channels: int = 3, value_range: tuple[float, float] | None = None
) -> UInt8[np.ndarray, "H W C"]:
    """Decode an image upright.

    Args:
        path: any format Pillow knows, `.npy` with bands first or last, or GeoTIFF (extra `geo`).
        channels: bands to return. With 3, gray images are repeated and alpha is dropped.
        value_range: values that become 0 and 255, needed for anything but 8-bit data.

    Raises:
        DataError: missing, empty, truncated, more than 8 bits without `value_range`, or another number of bands.
    """
    values = decode(path, channels=channels)
    return fit_bands(to_uint8(values, path, value_range), path, channels)


def decode(path: Path, *, channels: int = 3) -> Shaped[np.ndarray, "H W C"]:
    """Decode an image upright with the values it holds, in whatever type they are stored.

    Palette, CMYK and the like become RGB; gray stays one band, alpha stays a band.

    Raises:
        DataError: missing, empty or broken file.
    """
    if path.suffix.lower() == ".npy":
        return read_npy(path, channels)
    return decode_bytes(_read_bytes(path), path)


def decode_bytes(data: bytes, path: Path) -> Shaped[np.ndarray, "H W C"]:
    """Decode the content of an image file that is no `.npy`; `path` is for messages and for what GDAL has to open.

    Raises:
        DataError: broken.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _decode_opened(image, data, path)
    except UnidentifiedImageError as error:
        if path.suffix.lower() in {".tif", ".tiff"}:
            return _read_geotiff(path)
        raise broken(path, error) from error
    except Image.DecompressionBombError as error:
        raise _too_large(path, error) from error
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        raise broken(path, error) from error


def read_header(path: Path) -> Header:
    """Read an image's size and orientation without its pixels. Raises DataError: missing, empty or broken file."""
    if path.suffix.lower() == ".npy":
        shape = read_npy(path, 3, mapped=True).shape
        return Header((shape[0], shape[1]), (shape[0], shape[1]))
    try:
        with Image.open(path) as image:
            # Pillow turns TIFF upright by itself and reports the upright size.
            orientation = 1 if image.format == "TIFF" else orientation_of(image)
            size = (image.height, image.width)
    except FileNotFoundError as error:
        raise missing(path) from error
    except UnidentifiedImageError as error:
        if path.stat().st_size and path.suffix.lower() in {".tif", ".tiff"}:
            with open_geotiff(path) as source:
                return Header(source.shape, source.shape)
        raise broken(path, error) from error
    except Image.DecompressionBombError as error:
        raise _too_large(path, error) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise broken(path, error) from error
    return Header(size[::-1] if orientation >= 5 else size, size, orientation)


def turn_upright(pixels: Shaped[np.ndarray, "H W *C"], orientation: int) -> Shaped[np.ndarray, "H2 W2 *C"]:
    """Apply an EXIF orientation (1 to 8) to stored pixels.

    >>> turn_upright(np.array([[1, 2]]), 6).tolist()  # stored lying on its left side: rotate clockwise
    [[1], [2]]
    """
    match orientation:
        case 2:
            return pixels[:, ::-1]
        case 3:
            return pixels[::-1, ::-1]
        case 4:
            return pixels[::-1]
        case 5:
            return pixels.swapaxes(0, 1)
        case 6:
            return pixels[::-1].swapaxes(0, 1)
        case 7:
            return pixels[::-1, ::-1].swapaxes(0, 1)
        case 8:
            return pixels.swapaxes(0, 1)[::-1]
    return pixels


def to_uint8(
    values: Shaped[np.ndarray, "H W C"], path: Path, value_range: tuple[float, float] | None
) -> UInt8[np.ndarray, "H W C"]:
    """Scale stored values to 0..255, pixel by pixel. Raises DataError: not 8 bits, and no range of values is given."""
    if values.dtype == np.uint8:
        return values
    if value_range is None:
        finite = values[np.isfinite(values)]
        low, high = (finite.min().item(), finite.max().item()) if finite.size else (0, 0)
        black, white = likely_range(low, high)
        raise DataError(
            f"{path}: {values.dtype} pixels (here {low} to {high}), not 8 bits. Say which values are black and white: "
            f"`range: [{black}, {white}]` in halfmask.yaml, or data.dataset.range='[{black}, {white}]', for example.",
            "H207",
        )
    low, high = value_range
    scaled = np.nan_to_num((values.astype(np.float32) - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
    return np.asarray(scaled.clip(0, 1) * 255 + 0.5, dtype=np.uint8)


def likely_range(low: int | float, high: int | float) -> tuple[int | float, int | float]:
    """Return black and white of such values: of integers the sensor's depth, not the brightest pixel by chance.

    >>> likely_range(3, 3000)
    (0, 4095)
    """
    if isinstance(low, int) and isinstance(high, int):
        return min(0, low), 2 ** max(8, high.bit_length()) - 1
    return low, high


def fit_bands(pixels: UInt8[np.ndarray, "H W D"], path: Path, channels: int) -> UInt8[np.ndarray, "H W C"]:
    """Return so many bands: gray is repeated to three, alpha dropped. Raises DataError: another number of bands."""
    bands = pixels.shape[2]
    if bands == channels:
        return np.ascontiguousarray(pixels)
    if channels == 3 and bands in {1, 2}:  # gray, gray with alpha
        return np.repeat(pixels[:, :, :1], 3, axis=2)
    if channels == 3 and bands == 4:
        return np.ascontiguousarray(pixels[:, :, :3])
    if channels == 1 and bands == 3 and (pixels == pixels[:, :, :1]).all():
        return np.ascontiguousarray(pixels[:, :, :1])
    raise DataError(
        f"{path}: {bands} bands, but the dataset has {channels}. Set `bands: {bands}` in halfmask.yaml "
        f"(or data.dataset.bands={bands}) if every image has {bands}.",
        "H207",
    )


def read_npy(path: Path, channels: int, *, mapped: bool = False) -> Shaped[np.ndarray, "H W C"]:
    """Read an array as an image, bands last.

    Args:
        path: of the file.
        channels: tells bands that come first from bands that come last.
        mapped: leave it on the disk until it is used.

    Raises:
        DataError: missing or broken, or of another shape.
    """
    try:
        values = np.load(path, allow_pickle=False, mmap_mode="r" if mapped else None)
    except FileNotFoundError as error:
        raise missing(path) from error
    except (OSError, ValueError, EOFError) as error:
        raise broken(path, error) from error
    if not values.size:
        raise DataError(
            f"{path}: an array without pixels, of shape {values.shape}. Write it again, or remove it.", "H201"
        )
    if values.ndim == 2:
        return np.asarray(values[:, :, None])
    if values.ndim != 3:
        raise DataError(f"{path}: array of shape {values.shape}; an image is (H, W), (H, W, C) or (C, H, W).", "H207")
    if values.shape[2] != channels and (values.shape[0] == channels or values.shape[0] < min(values.shape[1:])):
        values = np.moveaxis(values, 0, 2)
    return values if mapped else np.asarray(values)


def without_data(values: Shaped[np.ndarray, "H W C"], nodata: float) -> Bool[np.ndarray, "H W"]:
    """Find the pixels that hold `nodata` in every band; it may be NaN.

    >>> without_data(np.array([[[0, 0], [0, 7]]]), 0.0).tolist()
    [[True, False]]
    """
    return np.asarray((np.isnan(values) if np.isnan(nodata) else values == nodata).all(axis=2))


def png_depth(data: bytes) -> tuple[int, int]:
    """Return bits per sample and color type of a PNG file, which Pillow's mode hides."""
    return data[24], data[25]


def stored_pixels(image: Image.Image, data: bytes) -> Shaped[np.ndarray, "H W *C"]:
    """Decode an opened file to the array that Pillow gives; `data` are its bytes."""
    plain = image.format == "PNG" and image.mode in _PNG_MODES and "transparency" not in image.info
    if plain and png_depth(data)[0] == 8 and not data[_INTERLACED] and (fast := _png_decoder()) is not None:
        # Strict about harmless oddities, with errors of many kinds; Pillow decides whether the file is really broken.
        with suppress(Exception):
            return fast(data)
    return np.array(image)


def missing(path: Path) -> DataError:
    """Make the error for a file that does not exist."""
    return DataError(f"{path}: no such file. Restore it, or remove it from the lists.", "H201")


def broken(path: Path, error: Exception) -> DataError:
    """Make the error for a file that cannot be decoded."""
    empty = path.exists() and path.stat().st_size == 0
    # Pillow's own text for it holds an address in memory.
    why = "no image, or a damaged beginning" if isinstance(error, UnidentifiedImageError) else error
    reason = "the file is empty (0 bytes)" if empty else f"cannot be decoded, broken or truncated ({why})"
    return DataError(
        f"{path}: {reason}. Copy it again from its source, or remove it and its line in the lists.", "H201"
    )


def _too_large(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: too many pixels to open at once ({error}). Cut it into tiles; or, to predict it, "
        "save it as PNG or TIFF, which are read in windows (extra `geo`).",
        "H201",
    )


def _decode_opened(image: Image.Image, data: bytes, path: Path) -> np.ndarray:
    orientation = orientation_of(image)
    if simplejpeg is not None and image.format in {"JPEG", "MPO"} and image.mode in {"L", "RGB"}:
        try:
            return turn_upright(np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB")), orientation)
        except ValueError:
            pass  # strict about harmless oddities; Pillow decides whether the file is really broken
    if image.format == "PNG" and len(image.getbands()) > 1 and png_depth(data)[0] == 16:
        return turn_upright(_decode_deep_png(data, path), orientation)
    if (
        image.format == "TIFF"
        and len(image.getbands()) > 1
        and max(getattr(image, "tag_v2", {}).get(_TIFF_BITS_TAG, (8,))) > 8
    ):
        return _read_geotiff(path)
    if image.format == "TIFF":
        image.load()  # and so turned upright
        orientation = 1
    if image.mode in {"P", "PA"}:
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode in {"CMYK", "YCbCr", "LAB", "HSV", "RGBX", "RGBa", "La"}:
        image = image.convert("RGB")
    values = stored_pixels(image, data)
    return turn_upright(values if values.ndim == 3 else values[:, :, None], orientation)


@functools.cache
def _png_decoder() -> Callable[[bytes], np.ndarray] | None:
    try:
        from imagecodecs import png_decode
    except ImportError:  # the `fast` extra
        return None
    logging.getLogger("imagecodecs").setLevel(logging.ERROR)  # Pillow does not report odd color profiles either
    return png_decode


def _decode_deep_png(data: bytes, path: Path) -> np.ndarray:
    """Decode 16-bit color PNG, of which Pillow by itself gives the upper bytes only.

    The samples are stored with the upper byte first. Unpacked as if it came last, they give the lower bytes.
    """
    halves = []
    for order in ("16B", "16L"):
        with Image.open(io.BytesIO(data)) as image:
            tile = image.tile[0]
            mode = str(tile.args).partition(";")[0]
            if mode not in {"RGB", "RGBA"}:
                raise DataError(f"{path}: 16-bit gray with transparency; save it as gray or RGB without.", "H207")
            image.tile = [tile._replace(args=f"{mode};{order}")]
            halves.append(np.array(image).astype(np.uint16))
    return (halves[0] << 8) | halves[1]


@contextmanager
def open_geotiff(path: Path) -> Iterator[Any]:
    """Open a file with rasterio, to read windows of it; it may be any raster that GDAL knows.

    Raises:
        MissingExtraError: rasterio is not installed.
        DataError: a broken file, on opening or while it is read.
    """
    try:
        import rasterio
    except ImportError:
        raise MissingExtraError(f"{path}: TIFF with coordinates, more than 8 bits or 4 bands", "geo") from None
    try:
        # Its cache would otherwise grow to a twentieth of the machine's memory.
        with rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                source = rasterio.open(path)
            with source:
                yield source
    except rasterio.errors.RasterioError as error:
        raise broken(path, error) from error


def _read_geotiff(path: Path) -> np.ndarray:
    with open_geotiff(path) as source:
        return np.moveaxis(np.asarray(source.read()), 0, 2)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise missing(path) from error
    except OSError as error:
        raise broken(path, error) from error


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an opened file, 1 to 8."""
    # `getexif` of a PNG without the chunk would decode all pixels to look for one at the end.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    value = image.getexif().get(_ORIENTATION_TAG, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
