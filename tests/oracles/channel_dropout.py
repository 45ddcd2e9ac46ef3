"""Complementary dropout one image and one channel at a time, from coin tosses that the caller made."""

import torch
from torch import Tensor


def complementary_mask(tosses: Tensor, undropped: list[int]) -> Tensor:
    """Return the factors of [view 1; view 2] from (b, D) tosses, True = view 1 keeps; images `undropped` keep all."""
    images, width = tosses.shape
    mask = torch.empty(2 * images, width)
    for image in range(images):
        for channel in range(width):
            first = 2.0 if tosses[image, channel] else 0.0
            if image in undropped:
                first = 1.0
            mask[image, channel], mask[images + image, channel] = first, 2 - first
    return mask


def apply_mask(features: list[Tensor], mask: Tensor) -> list[Tensor]:
    """Multiply (B, D, h, w) maps channel by channel."""
    scaled = [x.clone() for x in features]
    for x in scaled:
        for image in range(len(x)):
            for channel in range(x.shape[1]):
                x[image, channel] *= mask[image, channel]
    return scaled
