"""Mixing two images by a rectangle, or by the pixels of some classes.

French et al., "Semi-supervised semantic segmentation needs strong, varied perturbations", BMVC 2020,
arXiv:1906.01916 (CutMix for segmentation); rectangle rule of Yang et al., UniMatch, CVPR 2023, arXiv:2208.09910:

    with probability 1 - p: empty
    a ~ U(0.02, 0.4) * H * W                                       once
    repeat  r ~ U(0.3, 1 / 0.3),  h = int(sqrt(a r)),  w = int(sqrt(a / r)),  corner ~ uniform pixel
    until   the rectangle lies inside the image

As r = h / w is uniform (not log-uniform), most rectangles are taller than wide; as the corner is drawn until the
rectangle fits, rectangles gather in the center. Other rectangles: `halfmask.views.boxes`.

Which image shows inside (`partners`): the `next` one of the batch (U2PL, GTA-Seg), the one at the mirrored place
(`flip`, the default of `paste`: CCVC, UniMatch V2), one of a random `permutation` (PS-MT, AugSeg); or a second draw
(CutMix-Seg, CPS), which the caller has.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from halfmask.errors import ShapeError
from halfmask.views.boxes import filled

Pairing = Literal["next", "flip", "permutation"]

_TRIES = 16  # rectangles drawn at once per image; more than 99 % of the images need no second round
_MAX_ROUNDS = 1000


def box_mask(
    shape: tuple[int, ...],
    *,
    p: float = 0.5,
    device: torch.device | str | None = None,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: float = 0.3,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "B *S"]:
    """Draw one rectangle per image, True inside.

    The draws are made on the CPU, whatever the device: rejection would need the device's answer, and so the
    rectangles are the same on every kind of device. Four integers per image are copied, asynchronously.

    Args:
        shape: (B, H, W); or (B,), where there are no spatial axes (classification) and so nothing to mix: all False.
        p: probability of a rectangle; otherwise the mask of that image is empty.
        device: of the mask.
        area: range of the share of the image.
        aspect: h / w is drawn from [aspect, 1 / aspect].
        generator: a CPU generator; default is torch's.

    Raises:
        ShapeError: no rectangle of this area and aspect fits into the image.

    >>> box_mask((2, 32, 32), p=0.0).any().item()
    False
    >>> 0.01 < box_mask((1, 32, 32), p=1.0).float().mean().item() < 0.4
    True
    """
    if len(shape) == 1:
        return torch.zeros(shape, dtype=torch.bool, device=device)
    batch, height, width = shape
    on, share = _uniform(2, batch, generator=generator)
    corners = _draw_corners(share * (area[1] - area[0]) + area[0], height, width, aspect, generator)
    corners[on >= p] = 0
    return filled(torch.from_numpy(corners), (height, width), device)


def paste(box: Bool[Tensor, "B *S"], *tensors: Tensor, partner: Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
    """Replace the inside of each image's box by the partner image; whatever belongs to it travels along.

    Args:
        box: True where the partner shows; (B, H, W), or (B,) for whole images.
        *tensors: (B, ..., H, W) each, or (B, ...): image, label, confidence, validity.
        partner: the partner's tensors, in the same order; default: the batch in reverse order, so that image j
            meets image B - 1 - j (and the middle one of an odd batch itself).

    Returns:
        New tensors; gradients flow to both sources.

    Raises:
        ShapeError: `partner` has not one tensor for each of `tensors`.

    >>> box = torch.tensor([[[True, False]], [[False, False]]])
    >>> paste(box, torch.tensor([[[1, 2]], [[3, 4]]]))[0].tolist()
    [[[3, 2]], [[3, 4]]]
    """
    if partner is None:
        return tuple(_mixed_with_mirror(box, own) for own in tensors)
    if len(partner) != len(tensors):
        raise ShapeError(f"paste got {len(tensors)} tensors but {len(partner)} of the partner. Give one for each.")
    return tuple(_mixed(box, own, other) for own, other in zip(tensors, partner, strict=True))


def partners(by: Pairing, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors of each image's partner in the batch; each image has one partner, and is one's.

    Args:
        by: `next`: image j meets j + 1, the last one the first; `flip`: B - 1 - j; `permutation`: drawn, the same for
            all tensors, on their device.
        *tensors: (B, ...) each.

    >>> partners("next", torch.tensor([1, 2, 3]))[0].tolist(), partners("flip", torch.tensor([1, 2, 3]))[0].tolist()
    ([2, 3, 1], [3, 2, 1])
    """
    if by == "next":
        return tuple(tensor.roll(-1, 0) for tensor in tensors)
    if by == "flip":
        return tuple(tensor.flip(0) for tensor in tensors)
    order = torch.randperm(len(tensors[0]), device=tensors[0].device)
    return tuple(tensor[order] for tensor in tensors)


def class_mask(label: Int[Tensor, "B *S"], chosen: Bool[Tensor, "B K"]) -> Bool[Tensor, "B *S"]:
    """Return the pixels of the chosen classes of each image, for `paste`.

    For ClassMix (Olsson et al., WACV 2021, arXiv:2007.07936: half of the classes of the partner, `half_of`) and the
    copy-paste of AEL (Hu et al., NeurIPS 2021, arXiv:2110.05474: classes that are learned badly). No method here mixes
    by classes yet.

    Args:
        label: of the image that is pasted; labels outside 0 ... K - 1 belong to no class.
        chosen: classes whose pixels are pasted.

    >>> class_mask(torch.tensor([[[0, 2], [255, 1]]]), torch.tensor([[True, False, True]])).tolist()
    [[[True, True], [False, False]]]
    """
    classes = chosen.shape[1]
    known = (label >= 0) & (label < classes)
    place = label.masked_fill(~known, 0).flatten(1).long()
    return chosen.gather(1, place).view(label.shape) & known


def half_of(label: Int[Tensor, "B *S"], classes: int) -> Bool[Tensor, "B K"]:
    """Draw half of the classes that each image shows, rounded up, without asking the device which they are (ClassMix).

    >>> half_of(torch.tensor([[3, 3, 255]]), 5).tolist()
    [[False, False, False, True, False]]
    """
    inside = label.masked_fill((label < 0) | (label >= classes), classes).flatten(1).long()
    shown = torch.zeros(len(label), classes + 1, dtype=torch.bool, device=label.device).scatter_(1, inside, True)
    shown = shown[:, :classes]
    chance = torch.rand(shown.shape, device=label.device).masked_fill(~shown, 2.0)
    place = chance.argsort(1).argsort(1)  # those shown come first, in random order
    return shown & (place < (shown.sum(1, keepdim=True) + 1) // 2)


def _mixed(box: Tensor, own: Tensor, other: Tensor) -> Tensor:
    between = (1,) * (own.dim() - box.dim())  # channel and time axes; for whole images also rows and columns
    return torch.where(box.reshape(box.shape[0], *between, *box.shape[1:]), other, own)


def _mixed_with_mirror(box: Tensor, own: Tensor) -> Tensor:
    if own.device.type != "cpu" or own.requires_grad:
        return _mixed(box, own, own.flip(0))
    # Image by image, straight into the result: no mirrored copy of the batch, whose fresh pages cost as much again.
    result = torch.empty_like(own)
    for place, inside, mine, other in zip(result, box, own, reversed(own.unbind(0)), strict=True):
        torch.where(inside, other, mine, out=place)
    return result


def _draw_corners(
    share: np.ndarray, height: int, width: int, aspect: float, generator: torch.Generator | None
) -> Int[np.ndarray, "B 4"]:
    """Draw (top, left, bottom, right) of one rectangle per image, by rejection."""
    corners = np.zeros((len(share), 4), dtype=np.int64)
    pixels = (share * height * width)[:, None]
    missing = np.arange(len(share))
    for _ in range(_MAX_ROUNDS):
        u_ratio, u_top, u_left = _uniform(3, len(missing), _TRIES, generator=generator)
        ratio = aspect + u_ratio * (1 / aspect - aspect)
        tall = np.sqrt(pixels[missing] * ratio).astype(np.int64)
        wide = np.sqrt(pixels[missing] / ratio).astype(np.int64)
        top, left = (u_top * height).astype(np.int64), (u_left * width).astype(np.int64)
        fits = (top + tall <= height) & (left + wide <= width)
        found, first = fits.any(1), fits.argmax(1)
        candidates = np.stack((top, left, top + tall, left + wide), axis=2)  # (B, tries, 4)
        corners[missing[found]] = candidates[np.arange(len(missing)), first][found]
        missing = missing[~found]
        if not len(missing):
            return corners
    raise ShapeError(
        f"no rectangle with {share[missing[0]]:.0%} of the area and an aspect between {aspect:g} and {1 / aspect:g} "
        f"fits into {width}x{height} pixels. Use a crop closer to a square."
    )


def _uniform(*shape: int, generator: torch.Generator | None) -> np.ndarray:
    # From torch's generator, which the engine seeds at each step; float64, so that u * n never rounds up to n.
    return torch.rand(shape, dtype=torch.float64, device="cpu", generator=generator).numpy()
