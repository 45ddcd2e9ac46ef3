"""Predict an image of any size by overlapping tiles whose borders are blended, in constant memory.

Along each axis the tiles start at multiples of (side - overlap). Where two overlap, the weight of the one falls from 1
to 0 while that of the other rises; the outer quarter of the overlap, where a tile has seen the least context, has the
weight 0. At the border of the image the weight is 1, because nothing lies beyond it for the whole image either.

    p(y, x) = sum over tiles of r(y) c(x) p_tile(y, x),     sum of r = sum of c = 1 at each pixel

A network that looks no farther than a quarter of the overlap therefore gives the same as on the whole image. Tiles
start at multiples of the network's coarsest stride, so that its cells lie where they would in the whole image.

The image is walked row of tiles by row of tiles. At a time there are in memory: the pixels of a few rows of tiles, a
group of tiles, and, for the overlap with the next row of tiles, K * overlap * W probabilities.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from halfmask.data.folder.images.rasters import Picture
from halfmask.errors import RecipeError
from halfmask.infer.inference import probabilities
from halfmask.models.model import Network
from halfmask.recipe.read import EvalRecipe

_LEAST_SIDE = 512
_IN_MEMORY = 256 * 2**20  # bytes of the overlap between rows of tiles; more of it goes to a file

Span = tuple[int, int]  # start, stop


class Tiling(NamedTuple):
    """How an image is cut."""

    side: int  # of a tile, in pixels
    overlap: int  # of neighboring tiles
    align: int  # tiles start at multiples of it


class Block(NamedTuple):
    """A finished rectangle of the result."""

    top: int  # first row
    left: int  # first column
    probabilities: Float[Tensor, "K H W"]  # of each class; a pixel without data may have less than 1 in all
    dates: tuple[Picture, ...]  # the pixels they are of


def choose_tiling(
    model: Network, protocol: EvalRecipe, crop: int | None, side: int | None = None, overlap: int | None = None
) -> Tiling:
    """Choose tiles: the window of the protocol, or two training crops but at least 512 pixels; a quarter overlaps.

    Args:
        model: its strides align the tiles.
        protocol: with `slide`, tiles are its windows.
        crop: side of the training crop.
        side: asked for by the user; it is rounded up.
        overlap: likewise.

    Raises:
        RecipeError: the overlap leaves no progress from tile to tile.
    """
    align = math.lcm(model.size_multiple, *(member.encoder.strides[-1] for member in model.members))
    if side is None and protocol.mode == "slide":
        side = protocol.window or crop
        if overlap is None and side is not None:
            overlap = side - (protocol.stride or max(side * 2 // 3, 1))
    side = _up(side or max(2 * (crop or 0), _LEAST_SIDE), align)
    wanted = side // 4 if overlap is None else overlap
    if wanted > side // 2:
        raise RecipeError(f"--overlap {wanted} is more than half of a tile of {side}: use at most {side // 2}.", "H303")
    # The step between tiles is what has to be aligned; it is rounded down, so that the overlap is at least as asked.
    side = max(side, _up(wanted + align, align))
    return Tiling(side, side - (side - wanted) // align * align, align)


def spans(length: int, tiling: Tiling) -> list[Span]:
    """Cut one axis into overlapping spans; the last one ends with the image.

    >>> spans(100, Tiling(side=48, overlap=16, align=8))
    [(0, 48), (32, 80), (56, 100)]
    """
    side, overlap, align = tiling
    last = max(_up(length - side, align), 0)
    starts = [*range(0, last, side - overlap), last]
    return [(start, min(start + side, length)) for start in starts]


def ramps(cut: list[Span], overlap: int) -> list[Float[np.ndarray, "_N"]]:
    """Return the weights of each span's pixels; at each pixel they sum to 1.

    >>> [ramp.round(2).tolist() for ramp in ramps([(0, 6), (2, 8)], 4)]
    [[1.0, 1.0, 1.0, 0.75, 0.25, 0.0], [0.0, 0.25, 0.75, 1.0, 1.0, 1.0]]
    """
    length, zero = cut[-1][1], overlap // 4
    weights = []
    for start, stop in cut:
        place = np.arange(start, stop) + 0.5
        rise = np.ones(stop - start) if start == 0 else (place - start - zero) / max(overlap - 2 * zero, 1)
        fall = np.ones(stop - start) if stop == length else (stop - zero - place) / max(overlap - 2 * zero, 1)
        weights.append(np.minimum(rise, fall).clip(0, 1))
    total = np.zeros(length)
    for (start, stop), weight in zip(cut, weights, strict=True):
        total[start:stop] += weight
    return [(weight / total[start:stop]).astype(np.float32) for (start, stop), weight in zip(cut, weights, strict=True)]


@dataclass
class Sweep:
    """One image on its way through the tiles."""

    # gives probabilities (N, K, h, w) of N tiles of one size
    predict: Callable[[list[UInt8[np.ndarray, "*T H W C"]]], Float[Tensor, "B K H W"]]
    size: tuple[int, int]  # rows and columns of the image
    classes: int  # K
    tiling: Tiling  # how it is cut
    at_once: int  # tiles per call of `predict`
    scratch: Path  # folder for what does not fit into memory

    @property
    def bands(self) -> list[Span]:
        """First row of pixels and end (exclusive) of each row of tiles."""
        return spans(self.size[0], self.tiling)

    def blocks(self, pictures: Iterator[tuple[Picture, ...]]) -> Iterator[Block]:
        """Predict the image; every pixel is in one block.

        Args:
            pictures: pixels of each row of tiles in order: one picture, or one per date.
        """
        bands, columns = self.bands, spans(self.size[1], self.tiling)
        weights, across = ramps(bands, self.tiling.overlap), ramps(columns, self.tiling.overlap)
        most = max([0, *(above[1] - below[0] for above, below in pairwise(bands))])
        carried = _zeros((self.classes, most, self.size[1]), self.scratch)
        reached = 0  # rows above this one are in `carried`, as far as they belong to the rows of tiles so far
        for (top, bottom), weight, dates, following in zip(bands, weights, pictures, [*bands[1:], None], strict=True):
            final = bottom if following is None else following[0]
            for left, part in self._columns(dates, columns, across, weight):
                right = left + part.shape[2]
                part[:, : reached - top] += carried[:, : max(reached - top, 0), left:right].to(part.device)
                carried[:, : bottom - final, left:right] = part[:, final - top :].cpu()
                shown = tuple(_cut(picture, final - top, (left, right)) for picture in dates)
                yield Block(top, left, part[:, : final - top], shown)
            reached = bottom

    def _columns(
        self,
        dates: tuple[Picture, ...],
        columns: list[Span],
        across: list[Float[np.ndarray, "_N"]],
        weight: Float[np.ndarray, "_M"],
    ) -> Iterator[tuple[int, Float[Tensor, "K H W"]]]:
        """Blend the tiles of one row from left to right."""
        pending: Tensor | None = None
        tiles = self._tiles(dates, columns)
        for number, ((left, right), found) in enumerate(zip(columns, tiles, strict=True)):
            down, along = torch.from_numpy(weight).to(found), torch.from_numpy(across[number]).to(found)
            found = found * down[:, None] * along
            if pending is not None:
                found[:, :, : pending.shape[2]] += pending.to(found.device)
            final = right if right == self.size[1] else columns[number + 1][0]
            pending = found[:, :, final - left :]
            yield left, found[:, :, : final - left]

    def _tiles(self, dates: tuple[Picture, ...], columns: list[Span]) -> Iterator[Tensor]:
        """Return the probabilities of each tile of a row; tiles without any data are not worth a forward pass."""
        for _, same in groupby(columns, key=lambda span: (span[1] - span[0], _has_data(dates, span))):
            group = list(same)
            if not _has_data(dates, group[0]):
                height, width = dates[0].pixels.shape[0], group[0][1] - group[0][0]
                yield from (torch.zeros(self.classes, height, width) for _ in group)
                continue
            for start in range(0, len(group), self.at_once):
                yield from self.predict([_stack(dates, span) for span in group[start : start + self.at_once]])


def tiled_class_map(
    model: Network, image: Float[Tensor, "*T C H W"], protocol: EvalRecipe, crop: int | None, scratch: Path
) -> Integer[Tensor, "H W"]:
    """Predict the class of every pixel of an image, without holding the probabilities of all its pixels.

    Returns:
        Class ids on the image's device, uint8 if K <= 255, else int64.
    """
    whole, size = protocol.model_copy(update={"mode": "whole"}), (image.shape[-2], image.shape[-1])
    stored = (image * 255).round().to(torch.uint8).movedim(-3, -1).cpu().numpy()
    dates = stored.reshape(-1, *stored.shape[-3:])  # (T, H, W, C)

    def predict(tiles: list[UInt8[np.ndarray, "*T H W C"]]) -> Tensor:
        stack = torch.from_numpy(np.moveaxis(np.stack(tiles), -1, -3).copy()).to(image)
        return probabilities(model, stack / 255, whole)

    sweep = Sweep(predict, size, model.classes, choose_tiling(model, protocol, crop), protocol.batch, scratch)
    found = torch.empty(size, dtype=torch.uint8 if model.classes <= 255 else torch.int64, device=image.device)
    for block in sweep.blocks(tuple(Picture(date[top:bottom]) for date in dates) for top, bottom in sweep.bands):
        height, width = block.probabilities.shape[1:]
        place = found[block.top : block.top + height, block.left : block.left + width]
        place.copy_(block.probabilities.max(0).indices)
    return found


def _cut(picture: Picture, rows: int, span: Span) -> Picture:
    rectangle = np.s_[:rows, span[0] : span[1]]
    return Picture(picture.pixels[rectangle], None if picture.empty is None else picture.empty[rectangle])


def _stack(dates: tuple[Picture, ...], span: Span) -> UInt8[np.ndarray, "*T H W C"]:
    cuts = [picture.pixels[:, span[0] : span[1]] for picture in dates]
    return cuts[0] if len(cuts) == 1 else np.stack(cuts)


def _has_data(dates: tuple[Picture, ...], span: Span) -> bool:
    return not any(picture.empty is not None and picture.empty[:, span[0] : span[1]].all() for picture in dates)


def _zeros(shape: tuple[int, int, int], scratch: Path) -> Tensor:
    if 4 * math.prod(shape) <= _IN_MEMORY:
        return torch.zeros(shape)
    with tempfile.TemporaryFile(dir=scratch) as file:
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
