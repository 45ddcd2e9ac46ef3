"""Decode masks as class ids, and map what is stored to training ids; nothing is ever guessed.

A mask on disk holds ids (palette indices, gray values, bits, 16-bit numbers) or display colors. `read_stored` says
which of the two a file holds; a `LabelMap` turns either into training ids 0..K-1 with 255 = ignore, or names every
value that has no meaning, with its pixel count.
"""

import io
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Integer, Shaped, UInt8
from PIL import Image, UnidentifiedImageError

from halfmask.data.folder.images.decode import broken, decode_bytes, missing, orientation_of, read_header, turn_upright
from halfmask.data.folder.images.ground import SUFFIXES, require_same_ground
from halfmask.data.folder.masks.forms import form_of_opened, hidden_layer, palette_ids, several_layers
from halfmask.data.folder.masks.layers import (
    Stored,
    direct_ids,
    integers,
    look_up_bytes,
    read_array,
    read_raster,
    recorded,
    renumbered,
)
from halfmask.errors import DataError
from halfmask.palette import Color

IGNORE = 255
_UNKNOWN = -1
_LUT_SPAN = 1 << 16


@dataclass(frozen=True)
class LabelMap:
    """From stored values to training ids."""

    classes: int  # K; without an entry in `values`, stored ids 0..K-1 mean themselves
    stored_ignore: int = IGNORE  # stored id of "unknown"
    # stored id -> training id (255 = ignore); wins over the rules above
    values: Mapping[int, int] = field(default_factory=dict)
    complete: bool = False  # `values` lists everything that may occur
    colors: Mapping[Color, int] | None = None  # color -> stored id, for masks saved as colors
    binary: bool = False  # 255 (and 1) mean class 1, 0 means class 0
    transparent_ignored: bool = False  # pixels with alpha 0 are ignored
    resize: bool = False  # bring masks of another size to the image's by nearest neighbor instead of refusing them

    def training_id(self, stored: int) -> int:
        """Return the training id of one stored id, -1 if it has no meaning."""
        if stored in self.values:
            return self.values[stored]
        if self.complete:
            return _UNKNOWN
        if self.binary and stored in {0, 1, 255}:
            return min(stored, 1)
        if stored == self.stored_ignore:
            return IGNORE
        return stored if 0 <= stored < self.classes else _UNKNOWN

    def apply(self, ids: Integer[np.ndarray, "H W"], path: Path) -> UInt8[np.ndarray, "H W"]:
        """Turn stored ids into training ids.

        Raises:
            DataError: values that are no class, each with its count, and the ways to mend it.
        """
        if ids.size == 0:
            raise DataError(f"{path}: the mask has no pixels.", "H201")
        if ids.dtype == np.uint8:
            mapped = self._byte_table[ids]
        else:
            mapped = self._map_wide(ids)
        if (mapped == _UNKNOWN).any():
            values, counts = np.unique(ids[mapped == _UNKNOWN], return_counts=True)
            raise self.unknown_values(path, dict(zip(values.tolist(), counts.tolist(), strict=True)), ids)
        return np.asarray(mapped, dtype=np.uint8)

    def unknown_values(
        self, path: Path, found: Mapping[int, int], ids: Integer[np.ndarray, "H W"] | None = None
    ) -> DataError:
        """Make the error for stored values that are no class.

        Args:
            path: the mask.
            found: value -> number of pixels.
            ids: the whole mask, to recognize ids that start at 1 and 0/255 masks.
        """
        present = set(np.unique(ids).tolist()) if ids is not None else set(found)
        counts = ", ".join(f"{value} ({count} px)" for value, count in list(found.items())[:8])
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        known = [value for value in range(256) if self.training_id(value) not in {_UNKNOWN, IGNORE}]
        shown = f"{known[0]} to {known[-1]}" if len(known) == known[-1] + 1 - known[0] else ", ".join(map(str, known))
        void = [str(value) for value in range(256) if self.training_id(value) == IGNORE]
        text = (
            f"{path}: values that are no class: {counts}{more}. Known: {shown}; ignored: {', '.join(void) or 'none'}."
        )
        if present <= {0, 1, 255} and 255 in found:
            return DataError(f"{text} {binary_cure()}", "H204")
        labels = present - {self.stored_ignore}
        if 0 not in labels and max(labels) == self.classes and self.training_id(0) == 0:
            return DataError(f"{text} {off_by_one_cure(self.classes)}", "H205")
        first = next(iter(found))
        return DataError(
            f"{text} Add the class in halfmask.yaml (`classes: {{..., {first}: NAME}}`), or map the value: "
            f"data.dataset.map='{{{first}: 255}}' ignores it.",
            "H203",
        )

    @cached_property
    def _byte_table(self) -> np.ndarray:
        return np.array([self.training_id(value) for value in range(256)], dtype=np.int16)

    def _map_wide(self, ids: np.ndarray) -> np.ndarray:
        low, high = int(ids.min()), int(ids.max())
        if high - low < _LUT_SPAN:
            table = np.array([self.training_id(value) for value in range(low, high + 1)], dtype=np.int16)
            offsets = ids - ids.dtype.type(low) if low > 0 else ids.astype(np.int64) - low
            return np.asarray(table[offsets])
        values, inverse = np.unique(ids, return_inverse=True)
        table = np.array([self.training_id(value) for value in values.tolist()], dtype=np.int16)
        return np.asarray(table[inverse].reshape(ids.shape))


def read_mask(path: Path, labels: LabelMap, image: Path | None = None) -> UInt8[np.ndarray, "H W"]:
    """Decode a mask as training ids.

    Args:
        path: palette, gray, 1-bit, 16-bit or color image, or `.npy` of integers.
        labels: meaning of the stored values.
        image: the image it belongs to: the mask must have its upright size, or its stored size, in which case
            the mask was drawn on the raw pixels and is turned with them.

    Raises:
        DataError: broken file, value or color without meaning, size or place other than the image's.
    """
    stored = read_stored(path)
    if image is not None and stored.form.placed:
        require_same_ground(path, image)
    ids = stored_ids(stored, labels, path)
    target = labels.apply(ids, path)
    if stored.transparent is not None and labels.transparent_ignored:
        target = np.where(stored.transparent, np.uint8(IGNORE), target)
    return fit_to_image(target, path, image, labels.resize) if image is not None else target


def read_stored(path: Path) -> Stored:
    """Read a mask as it is stored, without any interpretation of its values.

    Raises:
        DataError: missing or broken file, lossy coding, several layers, or values that are not integers.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return recorded(read_array(path))
    data = b""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as opened:
            form = form_of_opened(opened, data, path)
            ids = direct_ids(opened, data)
            if ids is not None and opened.format != "TIFF":  # which Pillow turns by itself
                ids = turn_upright(ids, orientation_of(opened))
            if ids is not None:
                return recorded(renumbered(ids, form, opened.format or ""))
    except FileNotFoundError as error:
        raise missing(path) from error
    except UnidentifiedImageError as error:
        if not data or suffix not in SUFFIXES:
            raise broken(path, error) from error
        return recorded(read_raster(path))  # of 64 bits, or another type that only GDAL knows
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise broken(path, error) from error
    values = decode_bytes(data, path)
    if values.shape[2] == 1:
        return recorded(Stored(integers(values[:, :, 0], path), form))
    if values.dtype != np.uint8:
        raise several_layers(path, f"{values.shape[2]} bands of {values.dtype}")
    transparent = values[:, :, -1] == 0 if values.shape[2] in {2, 4} else None
    return recorded(Stored(values[:, :, 0] if values.shape[2] == 2 else values[:, :, :3], form, transparent))


def stored_ids(stored: Stored, labels: LabelMap, path: Path) -> Integer[np.ndarray, "H W"]:
    """Return the stored ids of a mask, looking colors up where it holds colors.

    Raises:
        DataError: colors without a table, or colors missing from the table, with their counts; or alpha that says
            something else than the colors.
    """
    values = stored.values
    if stored.form.hidden and not labels.transparent_ignored:
        raise hidden_layer(path)
    if values.ndim == 2:
        table = palette_ids(stored.form, labels.colors or {}, path)
        return values if table is None else look_up_bytes(values, table)
    if labels.colors is not None:
        ids, matched = _look_up(values, labels.colors)
        if matched.all():
            return ids
    if (values == values[:, :, :1]).all():
        warnings.warn(
            f"{path}: mask saved as RGB with three equal channels; the first one is read as ids.", stacklevel=2
        )
        return np.ascontiguousarray(values[:, :, 0])
    if labels.colors is None:
        raise DataError(
            f"{path}: the mask holds colors, not class ids: {list_colors(values)}. Name them in halfmask.yaml: "
            "`palette: {0: [R, G, B], 1: ...}`.",
            "H206",
        )
    share = 1 - matched.mean()
    raise DataError(
        f"{path}: {share:.1%} of the pixels have colors that name no class, or more than one: "
        f"{list_colors(values[~matched])}. Correct `palette` in halfmask.yaml (255: [R, G, B] for pixels to ignore).",
        "H206",
    )


def fit_to_image(
    target: UInt8[np.ndarray, "H W"], path: Path, image: Path, resize: bool = False
) -> UInt8[np.ndarray, "H2 W2"]:
    """Bring a mask to the upright size of its image, by turning it or, with `resize`, by nearest neighbor.

    Raises:
        DataError: the mask has neither the upright nor the stored size of the image.
    """
    header = read_header(image)
    if target.shape == header.upright:
        return target
    if target.shape == header.stored:
        return np.ascontiguousarray(turn_upright(target, header.orientation))
    if resize:
        rows, columns = (
            np.minimum((np.arange(new) + 0.5) * old / new, old - 1).astype(np.int64)
            for new, old in zip(header.upright, target.shape, strict=True)
        )
        return np.ascontiguousarray(target[rows[:, None], columns])
    raise DataError(size_mismatch(path, (target.shape[0], target.shape[1]), image, header.upright), "H202")


def count_values(values: Shaped[np.ndarray, "*S"]) -> dict[int, int]:
    """Count each value of a mask.

    >>> count_values(np.array([[0, 255], [0, 3]], np.uint8))
    {0: 2, 3: 1, 255: 1}
    """
    if values.dtype == np.uint8 and values.ndim == 2:
        counts = np.array(Image.fromarray(values).histogram())  # ten times as fast as sorting
        found = np.flatnonzero(counts)
        return dict(zip(found.tolist(), counts[found].tolist(), strict=True))
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def list_colors(colors: Shaped[np.ndarray, "*N C"], limit: int = 8) -> str:
    """List the most frequent colors with their counts.

    >>> list_colors(np.array([[255, 0, 0], [255, 0, 0], [0, 0, 9]]))
    '255,0,0 (2 px), 0,0,9 (1 px)'
    """
    codes, counted = np.unique(_codes(colors), return_counts=True)
    counts = Counter(dict(zip(codes.tolist(), counted.tolist(), strict=True)))
    shown = [f"{code >> 16},{code >> 8 & 255},{code & 255} ({n} px)" for code, n in counts.most_common(limit)]
    return ", ".join(shown) + (f" and {len(counts) - limit} more" if len(counts) > limit else "")


def binary_cure() -> str:
    """Say how to settle what 255 means."""
    return (
        "255 is either the second class or `ignore`, which only you can know: set `binary: true` in halfmask.yaml "
        "(or data.dataset.binary=true) if 255 is the foreground, `map: {255: 255}` if it means ignore."
    )


def off_by_one_cure(classes: int) -> str:
    """Say how to mend ids that run from 1 to K: the whole table, to be copied.

    >>> off_by_one_cure(2)
    'The ids seem to start at 1, training ids start at 0: set `map: {1: 0, 2: 1}` in halfmask.yaml.'
    """
    table = ", ".join(f"{i + 1}: {i}" for i in range(classes))
    return f"The ids seem to start at 1, training ids start at 0: set `map: {{{table}}}` in halfmask.yaml."


def _look_up(values: np.ndarray, colors: Mapping[Color, int]) -> tuple[np.ndarray, np.ndarray]:
    codes = _codes(values)
    table = np.array(sorted((r << 16 | g << 8 | b, id) for (r, g, b), id in colors.items()), dtype=np.int64)
    place = np.searchsorted(table[:, 0], codes).clip(max=len(table) - 1)
    return table[place, 1], table[place, 0] == codes


def _codes(values: np.ndarray) -> np.ndarray:
    wide = values.astype(np.int64)
    return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2])


def size_mismatch(path: Path, mask: tuple[int, int], image: Path, expected: tuple[int, int]) -> str:
    """Say that a mask and its image differ in size (height, width)."""
    return (
        f"{path}: the mask is {mask[1]}x{mask[0]}, its image {image.name} is {expected[1]}x{expected[0]}. "
        "Export masks at the size of the images, or set data.dataset.resize_masks=true (nearest neighbor)."
    )
