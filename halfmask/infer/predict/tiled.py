"""Predict one large image into files, tile by tile: nothing of the image's size is held in memory.

Class ids (and probabilities) go into files that are mapped into memory, beside the result; the finished mask is made
from them. An overlay is reduced to at most 2048 pixels a side.
"""

import math
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from halfmask.data.folder.files import date_sizes_differ
from halfmask.data.folder.images.rasters import Picture, Raster, Reading, open_raster
from halfmask.errors import DataError
from halfmask.infer.bundle import Bundle
from halfmask.infer.inference import probabilities, read_ahead
from halfmask.infer.predict.outputs import Job, Writing
from halfmask.infer.predict.tiles import Block, Span, Sweep, Tiling
from halfmask.recipe.read import EvalRecipe

_OVERLAY_SIDE = 2048


@dataclass(frozen=True)
class Predictor:
    """A model with everything that says how to use it."""

    bundle: Bundle  # the model, on `device`
    protocol: EvalRecipe  # how to evaluate
    device: torch.device  # where the model is
    reading: Reading  # how its images are read
    tiling: Tiling  # of large images
    writing: Writing  # where its masks go, and in which ids

    def pixels(self, images: UInt8[np.ndarray, "B *T H W C"]) -> Float[Tensor, "B *T C2 H2 W2"]:
        """Bring images to the device, as the model takes them."""
        there = torch.from_numpy(np.moveaxis(images, -1, -3).copy()).to(self.device)
        return there.to(self.bundle.model.mean.dtype) / 255

    def tiles(self, images: list[UInt8[np.ndarray, "*T H W C"]]) -> Float[Tensor, "B K H W"]:
        """Return the probabilities of tiles of one size."""
        whole = self.protocol.model_copy(update={"mode": "whole"})
        return probabilities(self.bundle.model, self.pixels(np.stack(images)), whole)


def predict_tiled(job: Job, predictor: Predictor, on_rows: Callable[[int, int], Any] = lambda done, of: None) -> None:
    """Predict an image of any size, and write its files.

    Raises:
        DataError: a broken file, dates of different size, a full disk.
    """
    task = predictor.bundle.task
    with ExitStack() as stack:
        rasters = [
            stack.enter_context(open_raster(path, predictor.reading, georeferenced=job.georeferenced))
            for path in job.dates
        ]
        size = rasters[-1].size
        if len({raster.size for raster in rasters}) > 1:
            raise date_sizes_differ(job.dates, [raster.size for raster in rasters])
        folder = _scratch(stack, job.mask.parent)
        ids = np.uint8 if task.n_classes < 256 else np.uint16
        result = _Result(task.ignore_index, _mapped(folder / "mask", size, ids))
        if job.probabilities is not None:
            part = stack.enter_context(predictor.writing.files.path(job.probabilities))
            result.shares = _mapped(part, (task.n_classes, *size), np.float16)
        if job.overlay is not None:
            result.step = -(-max(size) // _OVERLAY_SIDE)
            bands = predictor.reading.channels
            result.shown = np.zeros((-(-size[0] // result.step), -(-size[1] // result.step), bands), np.uint8)
        sweep = Sweep(predictor.tiles, size, task.n_classes, predictor.tiling, predictor.protocol.batch, folder)
        for block in sweep.blocks(read_ahead(_BandReader(rasters), sweep.bands, workers=1)):
            result.keep(block)
            on_rows(block.top + block.probabilities.shape[1], size[0])
        if job.overlay is not None and result.shown is not None:
            predictor.writing.overlay(job.overlay, result.shown, result.mask[:: result.step, :: result.step])
        predictor.writing.mask(job, result.mask)
        result.close()


class _BandReader:
    """Reads the rows of overlapping bands, each row once: some formats can only be read from top to bottom."""

    def __init__(self, rasters: list[Raster]) -> None:
        self._rasters = rasters
        self._last: tuple[Picture, ...] = ()
        self._start = self._reached = 0

    def __call__(self, band: Span) -> tuple[Picture, ...]:
        top, bottom = band
        fresh = [raster.rows(max(top, self._reached), bottom) for raster in self._rasters]
        if self._reached > top:
            kept = self._reached - top
            fresh = [_joined(old, kept, new) for old, new in zip(self._last, fresh, strict=True)]
        self._last, self._start, self._reached = tuple(fresh), top, bottom
        return self._last


def _joined(old: Picture, kept: int, new: Picture) -> Picture:
    pixels = np.concatenate([old.pixels[-kept:], new.pixels])
    if old.empty is None and new.empty is None:
        return Picture(pixels)
    empties = [_emptiness(old)[-kept:], _emptiness(new)]
    return Picture(pixels, np.concatenate(empties))


def _emptiness(picture: Picture) -> np.ndarray:
    return np.zeros(picture.pixels.shape[:2], np.bool_) if picture.empty is None else picture.empty


@dataclass
class _Result:
    """What is kept of an image; arrays of its size lie on the disk."""

    ignore_index: int
    mask: np.ndarray
    shares: np.ndarray | None = None
    step: int = 1
    shown: np.ndarray | None = None

    def keep(self, block: Block) -> None:
        found, (top, left) = block.probabilities, (block.top, block.left)
        bottom, right = top + found.shape[1], left + found.shape[2]
        empty = without_data(block.dates)
        ids = found.max(0).indices.cpu().numpy().astype(self.mask.dtype)
        self.mask[top:bottom, left:right] = ids if empty is None else np.where(empty, self.ignore_index, ids)
        if self.shares is not None:
            shares = found.half().cpu().numpy()
            self.shares[:, top:bottom, left:right] = shares if empty is None else np.where(empty, 0, shares)
        if self.shown is not None:
            step = self.step
            part = block.dates[-1].pixels[-top % step : bottom - top : step, -left % step : right - left : step]
            height, width = part.shape[:2]
            down, along = -(-top // step), -(-left // step)
            self.shown[down : down + height, along : along + width] = part

    def close(self) -> None:
        """Close the mapped files: Windows removes none that is in use."""
        self.mask, self.shares = np.empty((0, 0), np.uint8), None


def without_data(dates: tuple[Picture, ...]) -> np.ndarray | None:
    """Return where an image, or one of the two of a pair, has no data; `None`: nowhere."""
    found = [picture.empty for picture in dates if picture.empty is not None]
    return np.logical_or.reduce(found) if found else None


def _scratch(stack: ExitStack, folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".tiles-", dir=folder)))
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}). Choose another --out.", "H502") from None


def _mapped(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Make an array in a file; its room is taken at once, because a full disk would kill the program later."""
    try:
        array: np.ndarray = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        size = math.prod(shape) * np.dtype(dtype).itemsize / 2**30
        raise DataError(
            f"{path.parent}: no room for a result of {size:.1f} GiB ({error.strerror}). Free some space, or choose "
            "another --out.",
            "H502",
        ) from None
    return array
