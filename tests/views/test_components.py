"""Boxes of objects: three rules, one definition."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from halfmask.errors import MissingExtraError
from halfmask.testing import no_host_sync
from halfmask.views.components import cell_boxes, object_boxes


def blobs(seed: int, size: int = 48, level: float = 0.3) -> torch.Tensor:
    coarse = torch.randn(2, 1, 9, 9, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=size, mode="bicubic")[:, 0] > level


def box_sets(boxes) -> list[set[tuple[int, ...]]]:
    return [{tuple(box) for box in own[used].tolist()} for own, used in zip(boxes.corners, boxes.used, strict=True)]


def flood(mask: np.ndarray) -> set[tuple[int, int, int, int]]:
    """Boxes by flood filling, written without any library: holes first, then components."""
    height, width = mask.shape
    straight = ((0, 1), (1, 0), (0, -1), (-1, 0))
    around = (*straight, (1, 1), (1, -1), (-1, 1), (-1, -1))

    def reach(start, inside, steps):
        seen, queue = {start}, [start]
        while queue:
            y, x = queue.pop()
            for dy, dx in steps:
                place = (y + dy, x + dx)
                if place not in seen and inside(*place):
                    seen.add(place)
                    queue.append(place)
        return seen

    def free(y, x):
        if not (-1 <= y <= height and -1 <= x <= width):
            return False
        return not (0 <= y < height and 0 <= x < width) or not mask[y, x]

    outside = reach((-1, -1), free, straight)
    left = {(y, x) for y in range(height) for x in range(width)} - outside
    boxes = set()
    while left:
        own = reach(next(iter(left)), lambda y, x, left=left: (y, x) in left, around)
        ys, xs = [y for y, _ in own], [x for _, x in own]
        boxes.add((min(xs), min(ys), max(xs), max(ys)))
        left -= own
    return boxes


@pytest.mark.parametrize("seed", range(4))
def test_cells_are_the_boxes_of_filled_8_connected_components(seed):
    mask = blobs(seed) if seed % 2 else torch.rand(2, 12, 9, generator=torch.Generator().manual_seed(seed)) > 0.6
    found = box_sets(object_boxes(mask, "cells", cell=1, min_area=0.0))
    assert found == [flood(image) for image in mask.numpy()]


@pytest.mark.parametrize("seed", range(6))
def test_components_on_the_host_find_the_same(seed):
    pytest.importorskip("scipy")
    mask = blobs(seed)
    for share in (0.0, 1 / 400, 1 / 20):
        cells = box_sets(object_boxes(mask, "cells", cell=1, min_area=share))
        assert cells == box_sets(object_boxes(mask, "components", min_area=share))


def test_what_lies_in_a_hole_is_ignored_and_diagonals_connect():
    mask = torch.zeros(1, 9, 9, dtype=torch.bool)
    mask[0, 1:6, 1:6] = True
    mask[0, 2:5, 2:5] = False
    mask[0, 3, 3] = True  # inside the ring
    mask[0, 6, 6] = True  # touches its corner
    mask[0, 8, 0] = True
    corners, area = cell_boxes(mask)
    assert corners[0, :2].tolist() == [[1, 1, 6, 6], [0, 8, 0, 8]]
    assert area[0, :3].tolist() == [26, 1, 0]


def test_boxes_of_cells_are_whole_cells_within_the_image():
    mask = torch.zeros(1, 40, 44, dtype=torch.bool)
    mask[0, 16:24, 8:40] = True
    mask[0, 32:, 40:] = True
    boxes = object_boxes(mask, "cells", cell=8, min_area=0.0)
    assert box_sets(boxes) == [{(8, 16, 39, 23), (40, 32, 43, 39)}]
    assert boxes.size == (40, 44)


def test_small_objects_do_not_count():
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, :8, :8] = True  # 1/64 of the image
    mask[0, 32:, 32:] = True
    assert box_sets(object_boxes(mask, min_area=1 / 64)) == [{(0, 0, 7, 7), (32, 32, 63, 63)}]
    assert box_sets(object_boxes(mask, min_area=1 / 63)) == [{(32, 32, 63, 63)}]


def test_the_64_largest_are_kept():
    mask = torch.zeros(1, 40, 40, dtype=torch.bool)
    mask[0, ::2, ::2] = True
    mask[0, 1, 0] = True  # joins two of the 400 dots
    corners, area = cell_boxes(mask)
    assert corners.shape == (1, 64, 4)
    assert area[0].tolist() == [3] + [1] * 63


def test_cells_need_no_host():
    with no_host_sync():
        object_boxes(blobs(0), "cells")


@pytest.mark.parametrize(("rule", "module"), [("components", "scipy.ndimage"), ("contours", "cv2")])
def test_a_missing_library_is_named(monkeypatch, rule, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{rule}.*halfmask\[fast\]"):
        object_boxes(blobs(0), rule)
