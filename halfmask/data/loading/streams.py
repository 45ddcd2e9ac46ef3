"""What loader workers read: lists of images, with or without masks, and how the crops are cut."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from halfmask.errors import DataError
from halfmask.views.weak import Geometry, Resample

# id -> uint8 image (H, W, C), pair of dates (2, H, W, C) or mask (H, W); or the label of an image, without axes
ReadArray = Callable[[str], np.ndarray]


@dataclass(slots=True)
class Cutter:
    """What the recipe says about crops: ranges, filter, padding, seed of the draws."""

    geometry: Geometry
    resample: Resample
    black: bool
    mean: tuple[float, ...]
    seed: int

    def fill(self, bands: int) -> UInt8[np.ndarray, " C"]:
        """Return the color of the padding; the mean of one date serves both dates of a pair."""
        if self.black:
            return np.zeros(bands, dtype=np.uint8)
        if bands % len(self.mean):
            return np.full(bands, 128, dtype=np.uint8)
        color = np.tile(np.asarray(self.mean), bands // len(self.mean))
        return np.rint(color * 255).astype(np.uint8)  # type: ignore[no-any-return]


@dataclass(slots=True)
class ImageStream:
    """A list of images without masks."""

    ids: Sequence[str]
    read_image: ReadArray

    def read(self, index: int) -> tuple[np.ndarray, None]:
        """Decode one image."""
        return _one_image(self.read_image(self.ids[index])), None


@dataclass(slots=True)
class LabeledStream:
    """A list of images with masks, or with a label each."""

    ids: Sequence[str]
    read_image: ReadArray
    read_target: ReadArray

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Decode one image and its mask or label. Raises DataError: image and mask differ in size."""
        name = self.ids[index]
        image, target = _one_image(self.read_image(name)), self.read_target(name)
        if target.ndim and image.shape[:2] != target.shape:
            raise DataError(
                f"{name}: the image is {image.shape[1]}x{image.shape[0]} but its mask is "
                f"{target.shape[1]}x{target.shape[0]} pixels. Export the mask at the size of the image.",
                "H202",
            )
        return image, target


@dataclass(slots=True)
class PseudoStream:
    """A list of images with pseudo-masks from a folder of their own.

    The masks of the dataset stay closed, as in an `ImageStream`: `read_target` gets a name and a size, no dataset.
    """

    ids: Sequence[str]
    read_image: ReadArray
    read_target: Callable[[str, tuple[int, int]], np.ndarray]

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Decode one image and its pseudo-mask."""
        image = _one_image(self.read_image(self.ids[index]))
        return image, self.read_target(self.ids[index], (image.shape[0], image.shape[1]))


def _one_image(image: np.ndarray) -> UInt8[np.ndarray, "H W C"]:
    """Put the bands of a pair of dates behind each other: both are cut by the same window."""
    return np.concatenate(image, axis=-1) if image.ndim == 4 else image
