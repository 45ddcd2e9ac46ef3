"""Training geometry of one image, in a loader worker: random scale, crop with padding, flip; uint8 in, uint8 out.

Order and ranges are those of UniMatch (Yang et al., CVPR 2023, arXiv:2208.09910), AllSpark (Wang et al., CVPR 2024,
arXiv:2403.01818) and CCT (Ouali et al., CVPR 2020, arXiv:2003.09005): the long side becomes a uniform integer of
[int(lo L), int(hi L)], the other side keeps the aspect; padding goes to the right and the bottom; the corner of the
crop is uniform; the flip comes last, so it may move the padding to the left.

Only the crop is resampled, never the whole image: 2 to 8 times less work. Against a crop of the resized whole image,
bytes differ by at most 2 levels, few where the image shrinks, up to a sixth where it grows.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

Resample = Literal["bilinear", "bicubic"]

# Pillow's filter and how many source pixels it reaches to each side of a target pixel's center.
_FILTERS = {"bilinear": (Image.Resampling.BILINEAR, 1), "bicubic": (Image.Resampling.BICUBIC, 2)}


class Window(NamedTuple):
    """Where a crop lies in the scaled image."""

    size: tuple[int, int]  # width and height of the whole scaled image
    corner: tuple[int, int]  # left and top of the crop
    extent: tuple[int, int]  # width and height of the part of the crop that the image covers; the rest is padding
    flip: bool  # mirror the crop left and right


class Geometry(NamedTuple):
    """Ranges of the random geometry."""

    crop: int  # side of the crop in pixels
    scale: tuple[float, float] = (0.5, 2.0)  # range of the long side, relative to the image
    flip: float = 0.5  # probability of a horizontal flip

    def sample(
        self, rng: np.random.Generator, width: int, height: int, around: tuple[float, float] | None = None
    ) -> Window:
        """Draw the window of one image; `around`: one that holds this point, (x, y) as fractions of the sides.

        >>> Geometry(crop=64, scale=(1, 1), flip=0).sample(np.random.default_rng(0), 100, 48)
        Window(size=(100, 48), corner=(31, 0), extent=(64, 48), flip=False)
        """
        longest = max(width, height)
        lower, upper = (max(1, int(factor * longest)) for factor in self.scale)
        size = scaled_size(width, height, int(rng.integers(lower, upper, endpoint=True)))
        left, top = (self._corner(rng, side, None if around is None else around[i]) for i, side in enumerate(size))
        extent = (min(self.crop, size[0]), min(self.crop, size[1]))
        return Window(size, (left, top), extent, bool(rng.random() < self.flip))

    def _corner(self, rng: np.random.Generator, side: int, point: float | None) -> int:
        first, last = 0, max(side, self.crop) - self.crop
        if point is not None:
            pixel = min(int(point * side), side - 1)
            first, last = max(first, pixel - self.crop + 1), min(last, pixel)
        return int(rng.integers(first, last, endpoint=True))


def point_of(target: UInt8[np.ndarray, "H W"], value: int, rng: np.random.Generator) -> tuple[float, float] | None:
    """Draw a pixel of a class; its center (x, y) as fractions of the sides, `None` where there is none.

    >>> point_of(np.array([[0, 0], [0, 1]], np.uint8), 1, np.random.default_rng(0))
    (0.75, 0.75)
    """
    found = np.flatnonzero(target == value)
    if not len(found):
        return None
    row, column = divmod(int(found[rng.integers(len(found))]), target.shape[1])
    return (column + 0.5) / target.shape[1], (row + 0.5) / target.shape[0]


def scaled_size(width: int, height: int, long_side: int) -> tuple[int, int]:
    """Return width and height for a new long side; the other side is rounded half up.

    >>> scaled_size(500, 375, 250), scaled_size(333, 500, 617)
    ((250, 188), (411, 617))
    """
    if height > width:
        return max(1, int(width * long_side / height + 0.5)), long_side
    return long_side, max(1, int(height * long_side / width + 0.5))


def cut_image(
    image: UInt8[np.ndarray, "H W C"],
    window: Window,
    crop: int,
    *,
    fill: UInt8[np.ndarray, " C"],
    resample: Resample = "bilinear",
) -> UInt8[np.ndarray, "C S S"]:
    """Resample the window of an image, antialiased when it shrinks, and pad it with a color.

    Any number of bands: Pillow takes them three at a time.
    """
    (left, top), (width, height) = window.corner, window.extent
    kernel, reach = _FILTERS[resample]
    across = _source_span(left, width, window.size[0], image.shape[1], reach)
    down = _source_span(top, height, window.size[1], image.shape[0], reach)
    # Converting to a Pillow image copies: hand over only what the filter can reach.
    source = np.ascontiguousarray(image[down.first : down.last, across.first : across.last])
    box = (across.start, down.start, across.stop, down.stop)
    out = np.empty((image.shape[2], crop, crop), dtype=np.uint8)
    out[:] = fill[:, None, None]
    for band in range(0, image.shape[2], 3):
        part = source[:, :, band : band + 3]
        for offset, plane in enumerate(_resize(part, (width, height), kernel, box)):
            out[band + offset, :height, :width] = plane
    return np.ascontiguousarray(out[:, :, ::-1]) if window.flip else out


def cut_target(
    target: UInt8[np.ndarray, "H W"], window: Window, crop: int, *, ignore: int = 255
) -> UInt8[np.ndarray, "S S"]:
    """Take the nearest labels of the window and pad them with `ignore`."""
    (left, top), (width, height) = window.corner, window.extent
    columns = _nearest(left, width, window.size[0], target.shape[1])
    rows = _nearest(top, height, window.size[1], target.shape[0])
    out = np.full((crop, crop), ignore, dtype=np.uint8)
    out[:height, :width] = target[rows[:, None], columns]
    return np.ascontiguousarray(out[:, ::-1]) if window.flip else out


def covered(window: Window, crop: int) -> tuple[int, int, int]:
    """Return (left, right, bottom) of the real pixels in the crop; outside them is padding.

    >>> covered(Window((40, 30), (0, 0), (40, 30), flip=True), 64)
    (24, 64, 30)
    """
    width, height = window.extent
    return (crop - width, crop, height) if window.flip else (0, width, height)


class _Span(NamedTuple):
    first: int  # source pixels the filter can reach: first <= i < last
    last: int
    start: float  # the window's edges in source pixels, counted from `first`
    stop: float


def _source_span(corner: int, extent: int, scaled: int, source: int, reach: int) -> _Span:
    ratio = source / scaled
    start, stop = corner * ratio, min((corner + extent) * ratio, float(source))
    margin = math.ceil(reach * max(1.0, ratio)) + 1
    first, last = max(0, math.floor(start) - margin), min(source, math.ceil(stop) + margin)
    return _Span(first, last, start - first, float(min(stop - first, last - first)))


def _resize(
    part: UInt8[np.ndarray, "h w b"],
    size: tuple[int, int],
    kernel: Image.Resampling,
    box: tuple[float, float, float, float],
) -> UInt8[np.ndarray, "b ch cw"]:
    if part.shape[2] == 3:
        return np.asarray(Image.fromarray(np.ascontiguousarray(part)).resize(size, kernel, box)).transpose(2, 0, 1)
    planes = [Image.fromarray(np.ascontiguousarray(part[:, :, band])) for band in range(part.shape[2])]
    return np.stack([np.asarray(plane.resize(size, kernel, box)) for plane in planes])


def _nearest(corner: int, extent: int, scaled: int, source: int) -> Int[np.ndarray, " n"]:
    """Return floor((corner + i + 1/2) * source / scaled) for i < extent.

    Where that number is whole, two labels are equally near. Pillow, which the papers' code uses, decides by the
    rounding of a running sum; the same sum here makes the labels equal to theirs.
    """
    steps = np.full(corner + extent, source / scaled)
    steps[0] *= 0.5
    return np.minimum(np.cumsum(steps)[corner:].astype(np.int64), source - 1)
