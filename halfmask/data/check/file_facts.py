"""Facts about one image and one mask, each file opened once and decoded no further than needed.

JPEG images are decoded at an eighth of their size and without color (which still meets every byte, so truncation
shows); everything that is not plain 8-bit goes through the same reader as in training, so its errors are the same.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from halfmask.data.contract import Dataset
from halfmask.data.folder.files import FileDataset
from halfmask.data.folder.folder_names import MOST_VALUES
from halfmask.data.folder.images.decode import Header, decode, read_header, read_image, stored_pixels, turn_upright
from halfmask.data.folder.images.ground import require_same_ground
from halfmask.data.folder.masks.decode import count_values, read_stored
from halfmask.data.folder.masks.forms import MaskForm
from halfmask.data.folder.masks.ids import read_id_meanings, refuse_mask
from halfmask.errors import DataError, HalfmaskError
from halfmask.palette import Color

THUMB = 32
# Above this, pixels are not decoded: a check must not need gigabytes.
_LARGEST = 64_000_000
_PLAIN_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "PA"}
_PLAIN_FORMATS = {"JPEG", "MPO", "PNG", "BMP", "GIF", "WEBP", "PPM"}
_MOST_COLORS = 1 << 14


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What was seen of an image."""

    id: str  # path relative to the root
    header: Header | None = None  # sizes and orientation; `None` if the file cannot be opened
    mode: str = ""  # Pillow's mode, or type and bands ("uint16 x5")
    frames: int = 1  # of an animation
    limits: tuple[float, float] | None = None  # smallest and largest finite value, of images with more than 8 bits
    finite: bool = True  # no NaN, no infinity
    thumb: UInt8[np.ndarray, "32 32"] | None = None  # gray (32, 32), upright; `None` where pixels were not decoded
    flat: bool = False  # no more values or colors than a mask has, without loss
    error: HalfmaskError | None = None  # why training would refuse it


@dataclass(frozen=True, slots=True)
class MaskFacts:
    """What was seen of a mask."""

    path: str  # relative to the root
    size: tuple[int, int] | None = None  # (height, width); `None` if the file cannot be decoded
    kind: str = "ids"  # "ids", "colors", "gray as rgb", or "painted" (from outlines; values are training ids)
    values: dict[int, int] = field(default_factory=dict)  # value -> pixels
    colors: dict[Color, int] = field(default_factory=dict)  # color -> pixels, where it holds colors
    meanings: Mapping[int, str | None] | None = None  # what its ids mean, where halfmask wrote it
    # shapes that are not in it, by reason and label
    left_out: Mapping[tuple[str, str], int] = field(default_factory=dict)
    error: HalfmaskError | None = None  # why it cannot be read
    form: MaskForm | None = None  # how the file holds its values; `None` if it is not read from a file of its own


def look_at_image(dataset: Dataset, id: str) -> ImageFacts:
    """Open an image; whatever is wrong with it becomes `error`."""
    *earlier, path = dataset.image_files(id)
    try:
        refuse_mask(path)
        if earlier:  # a pair: its reader also compares the two dates
            dataset.read_image(id)
        if dataset.channels == 3 and isinstance(dataset, FileDataset) and path.suffix.lower() != ".npy":
            # What Pillow does not know may be a GeoTIFF of more bits.
            with suppress(UnidentifiedImageError), Image.open(path) as image:
                if image.width * image.height > _LARGEST:
                    return ImageFacts(id, read_header(path), image.mode)
                if _is_plain(image):
                    return _plain_facts(id, path, image)
        return _deep_facts(dataset, id, path)
    except HalfmaskError as error:
        return ImageFacts(id, error=error)
    except Exception:
        return ImageFacts(id, error=_reader_error(dataset, id))


def look_at_mask(dataset: Dataset, id: str) -> MaskFacts | None:
    """Open the mask of an image, if it has one; whatever is wrong with it becomes `error`."""
    path = dataset.mask_path(id)
    if path is None:
        return None
    name = path.relative_to(dataset.root).as_posix() if path.is_relative_to(dataset.root) else str(path)
    try:
        if not isinstance(dataset, FileDataset) or path.suffix.lower() in {".json", ".geojson"}:
            target = np.asarray(dataset.read_target(id))
            area = (target.shape[0], target.shape[1]) if target.ndim == 2 else None  # or the class of a whole image
            left_out = dataset.shapes_left_out(id) if isinstance(dataset, FileDataset) else {}
            return MaskFacts(name, area, "painted", count_values(target), left_out=left_out)
        stored = read_stored(path)
        if stored.form.placed and dataset.dates == 1:
            require_same_ground(path, dataset.root / id)
    except HalfmaskError as error:
        return MaskFacts(name, error=error)
    values = stored.values
    size = (values.shape[0], values.shape[1])
    if not values.size:
        return MaskFacts(name, error=DataError(f"{path}: the mask has no pixels.", "H201"))
    if not stored.is_color:
        return MaskFacts(name, size, "ids", count_values(values), meanings=read_id_meanings(path), form=stored.form)
    kind = "gray as rgb" if (values == values[:, :, :1]).all() else "colors"
    counts = count_values(values[:, :, 0]) if kind != "colors" else {}
    return MaskFacts(name, size, kind, counts, count_colors(values), form=stored.form)


def count_colors(values: np.ndarray) -> dict[Color, int]:
    """Count each color of (H, W, 3) bytes; of more than 16,384 colors, the most frequent ones."""
    if values.dtype == np.uint8:
        listed: Any = Image.fromarray(np.ascontiguousarray(values)).getcolors(_MOST_COLORS)
        if listed is not None:  # counted in C, ten times faster than sorting
            return {color: count for count, color in sorted(listed, reverse=True)}
    found, counts = np.unique(values.reshape(-1, 3), axis=0, return_counts=True)
    order = np.argsort(-counts)[:_MOST_COLORS]
    return {(int(r), int(g), int(b)): int(n) for (r, g, b), n in zip(found[order], counts[order], strict=True)}


def _is_plain(image: Image.Image) -> bool:
    """Return whether it is 8-bit data of up to four bands, which the reader of training takes without a check."""
    deep = any("16" in str(getattr(tile, "args", "")) for tile in getattr(image, "tile", ()))
    return image.format in _PLAIN_FORMATS and image.mode in _PLAIN_MODES and not deep


def _plain_facts(id: str, path: Path, image: Image.Image) -> ImageFacts:
    mode, frames = image.mode, int(getattr(image, "n_frames", 1)) if image.format in {"GIF", "PNG", "WEBP"} else 1
    header = read_header(path) if image.format in {"JPEG", "MPO", "WEBP"} or "exif" in image.info else None
    header = header or Header((image.height, image.width), (image.height, image.width))
    if image.format in {"JPEG", "MPO"} and mode in {"L", "RGB"}:
        image.draft("L", (2 * THUMB, 2 * THUMB))
    if image.format == "PNG" and mode in {"L", "RGB", "RGBA"}:
        image = Image.fromarray(stored_pixels(image, path.read_bytes()))
    image.load()
    flat = image.format not in {"JPEG", "MPO"} and 1 < len(image.getcolors(MOST_VALUES) or ())
    small = image.convert("RGB") if mode in {"P", "PA"} else image.convert("L") if mode == "1" else image
    small = small.reduce(max(1, min(small.size) // (2 * THUMB))).convert("L")
    thumb = np.asarray(small.resize((THUMB, THUMB), Image.Resampling.BOX))
    thumb = np.ascontiguousarray(turn_upright(thumb, header.orientation))
    return ImageFacts(id, header, mode, frames, thumb=thumb, flat=flat)


def _deep_facts(dataset: Dataset, id: str, path: Path) -> ImageFacts:
    """Describe an image that is not plain 8-bit: float, 16 bits, more bands, arrays."""
    if not isinstance(dataset, FileDataset):
        values = dataset.read_image(id)
        return _array_facts(id, values.reshape(-1, *values.shape[-3:])[-1], lambda: None)
    values = decode(path, channels=dataset.channels)
    # Not the dataset's own reader: it would decode once more to look for pixels without data.
    return _array_facts(id, values, lambda: _reader_error(dataset, id, path))


def _array_facts(id: str, values: np.ndarray, judge: Callable[[], HalfmaskError | None]) -> ImageFacts:
    height, width, bands = values.shape
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(bands, "") if values.dtype == np.uint8 else ""
    first = values[:, :, 0].astype(np.float32)
    finite_values = np.isfinite(values)
    limits = None
    if values.dtype != np.uint8 and finite_values.any():
        limits = (float(values[finite_values].min()), float(values[finite_values].max()))
    low, high = limits or (0.0, 255.0)
    gray = (np.nan_to_num(first, nan=low, posinf=high, neginf=low) - low) * (255 / ((high - low) or 1))
    thumb = Image.fromarray(gray.clip(0, 255).astype(np.uint8)).resize((THUMB, THUMB), Image.Resampling.BOX)
    return ImageFacts(
        id,
        Header((height, width), (height, width)),
        mode or f"{values.dtype} x{bands}",
        limits=limits,
        finite=bool(finite_values.all()),
        thumb=np.asarray(thumb),
        error=judge(),
    )


def _reader_error(dataset: Dataset, id: str, path: Path | None = None) -> HalfmaskError | None:
    """Ask the reader of training what is wrong with an image, or with one file of it."""
    try:
        if path is not None:
            read_image(path, channels=dataset.channels, value_range=dataset.value_range)
        else:
            dataset.read_image(id)
    except HalfmaskError as error:
        return error
    return None
