"""Predict one image from its bytes: return the picture to show, the mask, and the share of each class.

    picture    JPEG of the upright image, at most 1600 pixels a side; of more than three bands the first three
    mask       palette PNG of the image's own size, pixel value = class id: the file that `halfmask predict` writes

A model of classification gives the probability of each class, and no mask.
"""

import io
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from PIL import Image, PngImagePlugin

from halfmask.data.convert.convert import mask_image
from halfmask.data.folder.images.decode import IMAGE_SUFFIXES
from halfmask.data.folder.images.ground import is_georeferenced
from halfmask.data.folder.images.rasters import Picture, image_size, read_picture
from halfmask.data.folder.masks.ids import IdTable, id_meanings_in_png
from halfmask.errors import DataError, RecipeError
from halfmask.infer.bundle import load_bundle, own_bundle
from halfmask.infer.devices import pick_device
from halfmask.infer.inference import class_map, probabilities
from halfmask.infer.predict.outputs import reading_of
from halfmask.infer.predict.tiled import without_data
from halfmask.infer.runs import memory_cure, open_run
from halfmask.palette import palette_of

LARGEST = 30_000_000  # pixels: `halfmask predict` takes larger ones in tiles
_SHOWN_SIDE = 1600


@dataclass(frozen=True)
class Look:
    """The prediction for one image."""

    name: str  # of the image file
    size: tuple[int, int]  # rows and columns of the upright image
    shares: tuple[float, ...]  # by class: part of the pixels that have a class, or the probability of the image's label
    picture: bytes  # JPEG to show
    seconds: float  # that reading and prediction took
    mask: bytes | None = None  # PNG of class ids; `None` for classification
    table: IdTable | None = None  # of its ids; `None`: they are training ids

    def pixels(self) -> UInt8[np.ndarray, "h w 3"]:
        """Return the picture."""
        return np.asarray(Image.open(io.BytesIO(self.picture)))

    def class_ids(self) -> Integer[np.ndarray, "h w"] | None:
        """Return the class of each pixel of the picture; `None` for classification."""
        if self.mask is None:
            return None
        size = Image.open(io.BytesIO(self.picture)).size
        stored = np.asarray(Image.open(io.BytesIO(self.mask)).resize(size, Image.Resampling.NEAREST))
        return stored if self.table is None else self.table.restore(stored)


class Looker:
    """Predicts images one at a time with one model, from any thread.

    Args:
        run: run folder, bundle folder or model.json.
        overrides: dotted `eval.*` keys.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.

    Raises:
        CheckpointError: no bundle, or a damaged one.
        RecipeError: an override is wrong, or the model compares two dates.
    """

    def __init__(self, run: str | Path, overrides: Sequence[str] = (), device: str = "auto") -> None:
        self._device = pick_device(device)
        opened = open_run(run, overrides, sections=("eval",))
        self._protocol = opened.protocol
        self._bundle = load_bundle(own_bundle(opened.folder), self._device)
        self.task = self._bundle.task
        if self.task.kind == "change":
            raise RecipeError(
                f"{opened.folder} compares images of two dates, and a page takes one. Use halfmask predict "
                f"{opened.folder} --input DIR, where DIR holds A/ and B/."
            )
        self._reading = reading_of(self._bundle)
        self._busy = threading.Lock()

    @property
    def bands(self) -> int:
        """Number of bands that an image must have."""
        return self._reading.channels

    def wait(self) -> None:
        """Wait until no image is being looked at."""
        with self._busy:
            pass

    def look(self, data: bytes, name: str) -> Look:
        """Predict one image.

        Args:
            data: content of an image file.
            name: of the file; its suffix tells the format where the content does not, and messages use it.

        Raises:
            DataError: not an image, a broken one, one that is too large, or of other bands than the model's.
            OutOfMemoryError: the device has too little memory.
        """
        with self._busy:
            start = time.perf_counter()
            picture = self._read(data, name)
            shown = _reduced(picture.pixels)
            pixels = torch.from_numpy(np.moveaxis(picture.pixels, -1, 0).copy())[None].to(self._device)
            pixels = pixels.to(self._bundle.model.mean.dtype) / 255
            with memory_cure(self._protocol):
                if self.task.kind == "classification":
                    found = probabilities(self._bundle.model, pixels, self._protocol, self._bundle.crop)[0]
                    size = (picture.pixels.shape[0], picture.pixels.shape[1])
                    return Look(name, size, tuple(found.tolist()), shown, time.perf_counter() - start)
                classes = class_map(self._bundle.model, pixels, self._protocol, self._bundle.crop)[0]
            mask = np.asarray(classes.cpu().numpy())
            empty = without_data((picture,))
            if empty is not None:
                mask = np.where(empty, np.asarray(self.task.ignore_index, mask.dtype), mask)
            known = mask[mask < self.task.n_classes]
            shares = np.bincount(known.ravel(), minlength=self.task.n_classes) / max(known.size, 1)
            table = IdTable.of_meta(self._bundle.meta, self.task)
            png = _png(mask_image(mask, palette_of(self.task), table), id_meanings_in_png(table, self.task))
            size = (mask.shape[0], mask.shape[1])
            return Look(name, size, tuple(shares.tolist()), shown, time.perf_counter() - start, png, table)

    def _read(self, data: bytes, name: str) -> Picture:
        suffix = Path(name).suffix.lower()
        if suffix and suffix not in IMAGE_SUFFIXES:
            known = ", ".join(sorted(one.removeprefix(".") for one in IMAGE_SUFFIXES))
            raise DataError(f"{name}: not an image that can be read. Give one of these kinds: {known}.", "H201")
        with tempfile.TemporaryDirectory() as folder:
            # Readers take files. Pillow tells formats by content, so a nameless (pasted) image may be called PNG.
            path = Path(folder) / f"image{suffix or '.png'}"
            path.write_bytes(data)
            try:
                rows, columns = image_size(path)
                if rows * columns > LARGEST:
                    raise DataError(
                        f"{name}: {columns} x {rows} pixels are more than a page shows ({LARGEST:,}). Use halfmask "
                        "predict, which takes images of any size in tiles.",
                        "H302",
                    )
                return read_picture(path, self._reading, georeferenced=is_georeferenced(path))
            except DataError as error:
                raise DataError(str(error).replace(str(path), name or "image"), error.code) from error


def _reduced(pixels: UInt8[np.ndarray, "H W C"]) -> bytes:
    """Return a JPEG of the image, its sides divided by a whole number where they are too long for a page."""
    bands = pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, axis=2)
    ratio = -(-max(pixels.shape[:2]) // _SHOWN_SIDE)
    image = Image.fromarray(np.ascontiguousarray(bands))
    buffer = io.BytesIO()
    (image if ratio == 1 else image.reduce(ratio)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _png(image: Image.Image, told: PngImagePlugin.PngInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=told)
    return buffer.getvalue()
