"""Rectangles of the CutMix rules other than UniMatch's (`halfmask.views.mixing.box_mask`).

All are drawn on the CPU, so that they are the same on every kind of device; True inside; `paste` does the mixing.

    several_boxes   French et al., BMVC 2020, arXiv:1906.01916; with three boxes Chen et al., CPS, CVPR 2021,
                    arXiv:2106.01226:  a ~ U(area), r ~ U(0, 1),  height a^r and width a^(1-r) of the sides, both times
                    sqrt(1 / n);  where two boxes overlap, inside turns into outside again
    half_area_box   Wang et al., U2PL, CVPR 2022, arXiv:2203.03884:  width uniform in (W/2, W], area H W / 2
    beta_box        Yun et al., CutMix, ICCV 2019, arXiv:1905.04899:  both sides times sqrt(1 - lambda), lambda ~ Beta,
                    around a center, cut at the borders; centers in [1/8, 1) of the sides as PS-MT and AugSeg draw them
    component_box   Hu et al., AEL, NeurIPS 2021, arXiv:2110.05474:  the bounding box of one connected component of a
                    class in the prediction of the image that is pasted; half of the area where there is none. No method
                    here mixes by it yet.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from halfmask.views.components import BoxRule, object_boxes


def several_boxes(
    shape: tuple[int, ...],
    *,
    boxes: int,
    area: tuple[float, float] = (0.25, 0.5),
    device: torch.device | str | None = None,
) -> Bool[Tensor, "B H W"]:
    """Draw `boxes` rectangles per image; inside an odd number of them is True.

    Args:
        shape: (B, H, W).
        boxes: n, rectangles per image; their areas are divided by n.
        area: range of the share of the image, of all rectangles together.
        device: of the mask.

    >>> several_boxes((2, 32, 32), boxes=1, area=(0.5, 0.5)).float().mean().item() > 0.4
    True
    """
    low, high = area
    draws = torch.rand(4, shape[0], boxes, dtype=torch.float64)
    return toggled(low + (high - low) * draws[0], draws[1], draws[2:].movedim(0, -1), shape[1:], device)


def toggled(
    area: Float[Tensor, "B n"],
    ratio: Float[Tensor, "B n"],
    place: Float[Tensor, "B n 2"],
    size: tuple[int, ...],
    device: torch.device | str | None = None,
) -> Bool[Tensor, "B H W"]:
    """Make the mask of `several_boxes` from its draws: area, r, and place (down, across) in [0, 1)."""
    shrink = (1 / area.shape[1]) ** 0.5
    share = torch.stack((area**ratio, area ** (1 - ratio)), dim=-1) * shrink  # of height and width
    sides = torch.tensor(size, dtype=area.dtype)
    extent = (share * sides).round()  # (B, n, 2)
    start = ((sides - extent) * place).round()
    inside = filled(torch.cat((start, start + extent), dim=-1).flatten(0, 1).long(), size, device)
    times: Tensor = inside.unflatten(0, area.shape).sum(1)
    return times % 2 == 1


def half_area_box(
    shape: tuple[int, ...], *, p: float = 1.0, device: torch.device | str | None = None
) -> Bool[Tensor, "B H W"]:
    """Draw one rectangle of half the area per image, with probability p; otherwise the mask of the image is empty.

    >>> abs(half_area_box((1, 32, 32)).float().mean().item() - 0.5) < 0.02
    True
    """
    count, height, width = shape
    on, *draws = torch.rand(4, count, dtype=torch.float64)
    wide = (width // 2 + 1 + (draws[0] * (width - width // 2)).floor()).clamp(max=width)  # in (W/2, W]
    tall = (height * width / 2 / wide).round()
    left = (draws[1] * (width - wide + 1)).floor()
    top = (draws[2] * (height - tall + 1)).floor()
    corners = torch.stack((top, left, top + tall, left + wide), dim=1).long()
    corners[on >= p] = 0
    return filled(corners, shape[1:], device)


def component_box(
    foreground: Bool[Tensor, "B H W"], *, min_area: float = 0.03, rule: BoxRule = "cells"
) -> Bool[Tensor, "B H W"]:
    """Draw the bounding box of one large component per image; a box of half the area where there is none.

    Args:
        foreground: pixels predicted as the class that is pasted.
        min_area: smallest share of the image a component must cover.
        rule: how components are found; `cells`, the default, does not visit the host.

    Raises:
        MissingExtraError: `components` without SciPy.
    """
    corners, used, _ = object_boxes(foreground, rule, min_area=min_area)  # (B, N, 4), (B, N)
    chance = torch.rand(used.shape, device=used.device).masked_fill(~used, -1.0)
    left, top, right, bottom = corners.gather(1, chance.argmax(1)[:, None, None].expand(-1, 1, 4))[:, 0].unbind(1)
    inside = filled(torch.stack((top, left, bottom + 1, right + 1), dim=1), foreground.shape[1:], foreground.device)
    other = half_area_box(tuple(foreground.shape), device=foreground.device)
    return torch.where(used.any(1)[:, None, None], inside, other)


def beta_box(
    shape: tuple[int, ...], *, beta: tuple[float, float] = (4.0, 4.0), device: torch.device | str | None = None
) -> Bool[Tensor, "B H W"]:
    """Draw one rectangle per image, all of one size: lambda is drawn once per batch.

    Args:
        shape: (B, H, W).
        beta: the two parameters of the beta distribution of lambda.
        device: of the mask.
    """
    first, second = (torch.tensor(value, dtype=torch.float64) for value in beta)
    share = torch.distributions.Beta(first, second, validate_args=False).sample()
    low = torch.tensor([side // 8 for side in shape[1:]])
    high = torch.tensor(shape[1:])
    center = low + (torch.rand(shape[0], 2, dtype=torch.float64) * (high - low)).long()
    return centered(share, center, shape[1:], device)


def centered(
    share: Float[Tensor, ""],
    center: Int[Tensor, "B 2"],
    size: tuple[int, ...],
    device: torch.device | str | None = None,
) -> Bool[Tensor, "B H W"]:
    """Make the mask of `beta_box` from its draws: lambda, and the centers (row, column) in pixels."""
    side = (1 - share.double()).sqrt()
    sides = torch.tensor(size)
    half = (sides * side).long() // 2
    start, stop = (center - half).clamp(min=0), torch.minimum(center + half, sides)
    return filled(torch.cat((start, stop), dim=1), size, device)


def filled(
    corners: Int[Tensor, "B 4"], size: tuple[int, ...], device: torch.device | str | None = None
) -> Bool[Tensor, "B H W"]:
    """Make masks that are True inside (top, left, bottom, right)."""
    # From pinned memory the copy of four integers per image makes no one wait.
    if device is not None and torch.device(device).type == "cuda" and corners.device.type == "cpu":
        corners = corners.pin_memory()
    top, left, bottom, right = corners.to(device, non_blocking=True)[:, :, None].unbind(1)  # (B, 1) each
    rows, columns = (torch.arange(side, device=top.device) for side in size)
    return ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :]
