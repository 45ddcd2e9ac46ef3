"""Plain form of the rectangle mixing: one draw at a time, one image at a time, boolean indexing."""

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor


def draw_box(height: int, width: int, rng: random.Random, p: float = 0.5) -> tuple[int, int, int, int] | None:
    """Draw (top, left, bottom, right) by rejection, or `None` for an empty box."""
    if rng.random() >= p:
        return None
    area = rng.uniform(0.02, 0.4) * height * width
    while True:
        ratio = rng.uniform(0.3, 1 / 0.3)
        tall, wide = int(math.sqrt(area * ratio)), int(math.sqrt(area / ratio))
        top, left = rng.randrange(height), rng.randrange(width)
        if top + tall <= height and left + wide <= width:
            return top, left, top + tall, left + wide


def paste_by_index(box: Tensor, own: Tensor, partner: Tensor) -> Tensor:
    """Copy the partner's pixels into the box: (B, H, W) bool, (B, ..., H, W) images or labels."""
    mixed = own.clone()
    inside = box.reshape(len(box), *(1,) * (own.ndim - box.ndim), *box.shape[1:]).expand_as(own)
    mixed[inside] = partner[inside]
    return mixed


def paste(box: Tensor, *tensors: Tensor, partner: Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
    """Paste into all that belongs to an image what belongs to its partner, by default the mirrored place in the batch.

    Of whole images, without axes of space, the box is (B,).
    """
    partners = [tensor.flip(0) for tensor in tensors] if partner is None else partner
    return tuple(paste_by_index(box, own, other) for own, other in zip(tensors, partners, strict=True))


def boxes_to_mask(boxes: Sequence[tuple[int, int, int, int] | None], height: int, width: int) -> Tensor:
    """Fill a (B, H, W) bool mask by slices."""
    mask = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for image, box in zip(mask, boxes, strict=True):
        if box is not None:
            top, left, bottom, right = box
            image[top:bottom, left:right] = True
    return mask
