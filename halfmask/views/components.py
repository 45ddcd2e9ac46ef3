"""Boxes of connected objects in a predicted foreground, by three rules.

    cells        on the device, without reading a value: coarse cells, fixed number of rounds
    components   full resolution on the host, SciPy
    contours     full resolution on the host, OpenCV; the rule of CCT's code (Ouali et al., CVPR 2020, arXiv:2003.09005)

An object is an 8-connected component of the foreground after its holes (4-connected background that does not reach
the border) are filled: its box is that of its outer contour, and whatever lies in a hole is ignored.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from halfmask.errors import MissingExtraError

BoxRule = Literal["cells", "components", "contours"]

_MOST_BOXES = 64  # per image, of the `cells` rule
_LEAST_VERTICES = 50  # of the `contours` rule: contours with more are used


class Boxes(NamedTuple):
    """Objects of a batch, at the resolution of the prediction."""

    corners: Int[Tensor, "B N 4"]  # x0, y0, x1, y1 of each object, all inclusive
    used: Bool[Tensor, "B N"]  # False for the filling of images with fewer objects than others
    size: tuple[int, int]  # height and width of the prediction


def object_boxes(
    foreground: Bool[Tensor, "B H W"], rule: BoxRule = "cells", *, cell: int = 8, min_area: float = 1 / 400
) -> Boxes:
    """Find the objects of each image.

    Args:
        foreground: of the prediction.
        rule: `cells` and `components` take objects by area, `contours` those with more than 50 vertices on their
            outline, in which straight and diagonal runs count once: a measure of roughness rather than of size.
        cell: side of a cell of the `cells` rule; its top-left pixel stands for it.
        min_area: smallest share of the image an object must cover; unused by `contours`.

    Raises:
        MissingExtraError: `components` without SciPy, `contours` without OpenCV.
    """
    height, width = foreground.shape[-2:]
    if rule == "cells":
        corners, area = cell_boxes(foreground[:, ::cell, ::cell])
        x0, y0, x1, y1 = (corners * cell).unbind(-1)
        x1, y1 = (x1 + cell - 1).clamp_max(width - 1), (y1 + cell - 1).clamp_max(height - 1)
        corners = torch.stack((x0, y0, x1, y1), dim=-1)
        return Boxes(corners, (area > 0) & (area * cell**2 >= min_area * height * width), (height, width))
    find = _contours if rule == "contours" else _components
    # One copy of the whole batch; every image is then looked at once.
    found = [find(mask, min_area * height * width) for mask in foreground.cpu().numpy()]
    most = max(1, *(len(boxes) for boxes in found))
    table = np.zeros((len(found), most, 5), np.int64)
    for image, boxes in enumerate(found):
        table[image, : len(boxes), :4] = np.array(boxes, np.int64).reshape(-1, 4)
        table[image, : len(boxes), 4] = 1
    there = torch.from_numpy(table).to(foreground.device)
    return Boxes(there[..., :4], there[..., 4] == 1, (height, width))


def cell_boxes(foreground: Bool[Tensor, "B h w"]) -> tuple[Int[Tensor, "B N 4"], Int[Tensor, "B N"]]:
    """Return x0, y0, x1, y1 (inclusive, in cells) and the area in cells of the largest objects; area 0: none.

    Holes are filled and components labeled by masked max-pooling of cell numbers, h + w rounds. A snake longer than
    that falls into several boxes. The 64 largest objects are kept.

    >>> cells = torch.tensor([[[1, 1, 0, 0], [0, 1, 0, 1]]]).bool()
    >>> corners, area = cell_boxes(cells)
    >>> corners[0, :2].tolist(), area[0, :3].tolist()
    ([[0, 0, 1, 1], [3, 1, 3, 1]], [3, 1, 0])
    """
    batch, height, width = foreground.shape
    label = _label(_fill_holes(foreground)).flatten(1)  # (B, h * w), 0 = background
    slots = height * width + 1
    area = torch.zeros(batch, slots, dtype=torch.int64, device=label.device)
    area = area.scatter_add_(1, label, torch.ones_like(label))
    area[:, 0] = 0
    area, object_id = area.topk(min(_MOST_BOXES, slots), dim=1)
    ys = torch.arange(height, device=label.device).repeat_interleave(width).expand_as(label)
    xs = torch.arange(width, device=label.device).repeat(height).expand_as(label)
    corners = []
    for positions, reduce, start in ((xs, "amin", width), (ys, "amin", height), (xs, "amax", -1), (ys, "amax", -1)):
        extreme = torch.full((batch, slots), start, dtype=torch.int64, device=label.device)
        corners.append(extreme.scatter_reduce_(1, label, positions, reduce).gather(1, object_id))
    found = area > 0
    return torch.stack(corners, dim=-1).masked_fill(~found[..., None], 0), area


def _fill_holes(foreground: Tensor) -> Tensor:
    """Add the background cells from which no 4-connected path of background leads out of the image."""
    inside = F.pad((~foreground).float(), (1, 1, 1, 1), value=1.0)
    outside = torch.zeros_like(inside)
    outside[:, 0], outside[:, -1], outside[:, :, 0], outside[:, :, -1] = 1, 1, 1, 1
    # Views of one buffer, made once: the rounds are nothing but small kernels.
    center, background = outside[:, 1:-1, 1:-1], inside[:, 1:-1, 1:-1]
    sides = outside[:, 1:-1, :-2], outside[:, 1:-1, 2:], outside[:, :-2, 1:-1], outside[:, 2:, 1:-1]
    near, other = torch.empty_like(background), torch.empty_like(background)
    for _ in range(sum(foreground.shape[-2:])):
        torch.maximum(sides[0], sides[1], out=near)
        torch.maximum(sides[2], sides[3], out=other)
        torch.maximum(near, other, out=near)
        torch.maximum(center, near.mul_(background), out=near)
        center.copy_(near)
    return center == 0


def _label(foreground: Tensor) -> Tensor:
    """Label each 8-connected component by the largest number of its cells, background 0."""
    height, width = foreground.shape[-2:]
    inside = foreground.float()
    # float32 holds integers exactly up to 16 million cells.
    label = torch.arange(1, height * width + 1, device=foreground.device, dtype=torch.float32).view(1, height, width)
    padded = F.pad(label * inside, (1, 1, 1, 1))
    center, middle = padded[:, 1:-1, 1:-1], padded[:, :, 1:-1]
    left, right = padded[:, :, :-2], padded[:, :, 2:]
    rows = torch.empty_like(middle)  # largest of three neighbors in a row
    top, low, up, down = torch.empty_like(center), rows[:, 1:-1], rows[:, :-2], rows[:, 2:]
    for _ in range(height + width):
        torch.maximum(left, right, out=rows)
        torch.maximum(rows, middle, out=rows)
        torch.maximum(up, down, out=top)
        torch.maximum(top, low, out=top)
        torch.mul(top, inside, out=center)
    return center.long()


def _components(mask: np.ndarray, min_pixels: float) -> list[tuple[int, int, int, int]]:
    ndimage = _optional("scipy.ndimage", "G-Cutout with cutout_boxes=components")
    filled = ndimage.binary_fill_holes(mask)
    label, count = ndimage.label(filled, structure=np.ones((3, 3)))
    area = np.bincount(label.ravel(), minlength=count + 1)
    return [
        (columns.start, rows.start, columns.stop - 1, rows.stop - 1)
        for number, (rows, columns) in enumerate(ndimage.find_objects(label), start=1)
        if area[number] >= min_pixels
    ]


def _contours(mask: np.ndarray, min_pixels: float) -> list[tuple[int, int, int, int]]:
    cv2 = _optional("cv2", "G-Cutout with cutout_boxes=contours")
    outlines = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[-2]
    boxes = []
    for outline in outlines:
        if len(outline) > _LEAST_VERTICES:
            points = outline.reshape(-1, 2)
            boxes.append((*points.min(0).tolist(), *points.max(0).tolist()))
    return boxes


def _optional(module: str, feature: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(feature, "fast") from error
