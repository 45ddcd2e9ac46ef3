"""Read the one layer of a mask file: ids in whatever type they are stored, never converted by a guess."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from halfmask.data.folder.images.decode import decode, open_geotiff, png_depth, stored_pixels
from halfmask.data.folder.masks.forms import MaskForm, form_of_raster, gray_ids, record_form, several_layers
from halfmask.errors import DataError


class Stored(NamedTuple):
    """What a mask file holds: ids (H, W) of any integer type, or colors (H, W, 3); where alpha is 0; and how."""

    values: Shaped[np.ndarray, "H W *C"]
    form: MaskForm
    transparent: Shaped[np.ndarray, "H W"] | None = None

    @property
    def is_color(self) -> bool:
        """Whether the mask holds colors instead of ids, with at least one pixel that is not gray."""
        return self.values.ndim == 3


def recorded(stored: Stored) -> Stored:
    """Return a mask as it came, after adding its fingerprint to the list of `collected_forms`."""
    record_form(stored.form)
    return stored


def direct_ids(image: Image.Image, data: bytes) -> np.ndarray | None:
    """Return palette indices, bits or gray bytes of an opened file; `None` for anything else."""
    if image.mode == "P":
        return np.array(image)
    if image.mode == "1":
        return np.array(image).astype(np.uint8)
    if image.mode == "L":
        ids = stored_pixels(image, data)
        # Pillow stretches gray PNGs of 2 or 4 bits, and PGM files, to 0..255: ids 0..3 would become 0, 85, 170, 255.
        most = 2 ** png_depth(data)[0] - 1 if image.format == "PNG" else largest_of_pgm(data)
        return np.round(ids.astype(np.float64) * most / 255).astype(np.uint8) if most < 255 else ids
    return None


def largest_of_pgm(data: bytes) -> int:
    """Read the largest value that a PGM file says it has; 255 for other files."""
    found = re.match(rb"P[25](?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+(\d+)\s", data[:4096])
    return min(int(found[1]), 255) if found else 255


def renumbered(ids: np.ndarray, form: MaskForm, container: str) -> Stored:
    """Undo what a writer did that put gray ids into a palette of its own."""
    table = gray_ids(form, container)
    if table is None:
        return Stored(ids, form)
    return Stored(look_up_bytes(ids, table), replace(form, kind="8-bit gray", colors=()))


def read_array(path: Path) -> Stored:
    """Read a mask saved as .npy. Raises DataError: several bands, or values that are not whole."""
    values = decode(path, channels=1)
    if values.shape[2] > 1:
        raise several_layers(path, f"an array of {values.shape[2]} bands")
    return Stored(integers(values[:, :, 0], path), MaskForm("array"))


def read_raster(path: Path) -> Stored:
    """Read a mask that only GDAL knows, such as a TIFF of 64 bits.

    Raises:
        DataError: lossy coding, several bands, or values that are not whole.
    """
    with open_geotiff(path) as source:
        form = form_of_raster(source, path)
        return Stored(integers(np.asarray(source.read(1)), path), form)


def look_up_bytes(ids: np.ndarray, table: Mapping[int, int]) -> np.ndarray:
    """Replace byte values by a table; the others stay."""
    lut = np.arange(256, dtype=np.int64)
    lut[list(table)] = list(table.values())
    return np.asarray(lut.astype(np.uint8)[ids] if lut.max() < 256 and lut.min() >= 0 else lut[ids])


def integers(values: np.ndarray, path: Path) -> np.ndarray:
    """Return values of any type as integers. Raises DataError: values with fractions, or that are no numbers."""
    if np.issubdtype(values.dtype, np.integer):
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if np.iscomplexobj(values) or not np.isfinite(values).all():
        raise DataError(
            f"{path}: {values.dtype} values that are no numbers (NaN, infinite or complex); a mask holds whole class "
            "ids. Fill these pixels with 255 (ignored), and save it as integers.",
            "H203",
        )
    whole = values.astype(np.int64)
    if (whole != values).any():
        raise DataError(f"{path}: {values.dtype} values with fractions; a mask holds whole class ids.", "H203")
    return whole
