"""Plain form of the training geometry: resize the whole image, pad it, crop it, flip it."""

import numpy as np
from PIL import Image


def cut_whole(
    array: np.ndarray,
    *,
    size: tuple[int, int],
    corner: tuple[int, int],
    crop: int,
    flip: bool,
    fill: int | tuple[int, ...],
    resample: Image.Resampling,
) -> np.ndarray:
    """Cut a training crop the way the papers' code does, at the cost of resampling every pixel.

    Args:
        array: uint8 image (H, W, 1 to 4 bands) or mask (H, W).
        size: width and height after the random scale.
        corner: left and top of the crop in the scaled image, padded right and bottom to at least `crop`.
        crop: side of the crop.
        flip: mirror left and right, at the end.
        fill: color or label of the padding.
        resample: Pillow filter; `NEAREST` for masks.

    Returns:
        uint8 (crop, crop) or (crop, crop, bands).
    """
    scaled = Image.fromarray(array).resize(size, resample)
    padded = Image.new(scaled.mode, (max(crop, size[0]), max(crop, size[1])), fill)
    padded.paste(scaled, (0, 0))
    left, top = corner
    cut = padded.crop((left, top, left + crop, top + crop))
    return np.array(cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else cut)
