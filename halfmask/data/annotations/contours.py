"""Trace outlines of a class map along the edges of pixels, holes included; filled again they give the same map.

A region is a set of pixels of one value connected by their sides. Its outline runs through pixel corners: the pixel in
column x and row y is the square from (x, y) to (x + 1, y + 1). Contours of OpenCV run through the centers of pixels and
join regions that touch at a corner: they do not give the map back. All but the last step works on whole arrays.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Integer

_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # east, south, west, north: (x, y), a right turn is the next one


class Region(NamedTuple):
    """Connected pixels of one value."""

    value: int  # class id
    exterior: Int[np.ndarray, "N 2"]  # corners (x, y) of the outline, clockwise as seen on screen; not closed
    holes: tuple[Int[np.ndarray, "M 2"], ...]  # outlines of the holes, counter-clockwise
    area: int  # number of pixels


def polygons(mask: Integer[np.ndarray, "H W"], skip: Iterable[int] = ()) -> list[Region]:
    """Outline every region of a class map.

    Args:
        mask: class ids.
        skip: values without outlines, for example the background.

    Returns:
        Regions in the order of their first pixels.

    >>> (region,) = polygons(np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]]), skip=[0])
    >>> region.exterior.tolist(), [hole.tolist() for hole in region.holes], region.area
    ([[0, 0], [3, 0], [3, 3], [0, 3]], [[[1, 2], [2, 2], [2, 1], [1, 1]]], 8)
    """
    if not mask.size:
        return []
    component, values, areas = components(mask)
    wanted = ~np.isin(values, list(skip))
    exteriors: dict[int, np.ndarray] = {}
    holes: dict[int, list[np.ndarray]] = defaultdict(list)
    owners, points, starts = _rings(component, wanted)
    outer = (_signed_areas(points, starts) > 0).tolist()
    rings = np.split(points, starts[1:-1]) if len(points) else []
    for number, ring, is_outer in zip(owners.tolist(), rings, outer, strict=True):
        if is_outer:
            exteriors[number] = ring
        else:
            holes[number].append(ring)
    return [
        Region(int(values[number]), exteriors[number], tuple(holes[number]), int(areas[number]))
        for number in sorted(exteriors)
    ]


def components(
    mask: Integer[np.ndarray, "H W"],
) -> tuple[Int[np.ndarray, "H W"], Integer[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Number the regions of equal values that are connected by sides.

    Returns:
        Number of the region of each pixel, counted by first pixels; value of each region; its pixels.

    >>> components(np.array([[5, 5, 7], [7, 5, 7]]))[0].tolist()
    [[0, 0, 1], [2, 0, 1]]
    """
    starts = np.ones(mask.shape, dtype=np.bool_)
    starts[:, 1:] = mask[:, 1:] != mask[:, :-1]
    run = (np.cumsum(starts, dtype=np.int64) - 1).reshape(mask.shape)  # of each pixel, within its row
    same = mask[1:] == mask[:-1]
    pairs = np.stack([run[:-1][same], run[1:][same]])
    if pairs.size:  # neighbors in a run repeat the pair of the run
        pairs = pairs[:, np.concatenate([[True], (np.diff(pairs, axis=1) != 0).any(axis=0)])]
    parent = np.arange(int(run[-1, -1]) + 1)
    while pairs.size:
        roots = parent[pairs]
        differ = roots[0] != roots[1]
        pairs, roots = pairs[:, differ], roots[:, differ]
        np.minimum.at(parent, roots.max(axis=0), roots.min(axis=0))
        while not np.array_equal(higher := parent[parent], parent):
            parent = higher
    firsts, numbers = np.unique(parent, return_inverse=True)
    component = numbers[run]
    values = mask.ravel()[np.flatnonzero(starts.ravel())[firsts]]
    return component, values, np.bincount(component.ravel(), minlength=len(firsts))


def _rings(component: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Follow the edges between regions, each region on the right hand.

    Returns:
        Region of each ring; corners (x, y) of all rings; where each ring starts among them, and their number.
    """
    around = np.pad(np.where(wanted[component], component, -1), 1, constant_values=-1)
    # A region that is skipped still ends its neighbors: it differs from all of them, as the frame does.
    north_west, north_east = around[:-1, :-1].ravel(), around[:-1, 1:].ravel()
    south_west, south_east = around[1:, :-1].ravel(), around[1:, 1:].ravel()
    columns = component.shape[1] + 1  # of pixel corners
    corners = len(north_west)
    # Leaving a corner eastwards, the pixel on the right is the south-eastern one, on the left the north-eastern; ...
    right = np.concatenate([south_east, south_west, north_west, north_east])
    left = np.concatenate([north_east, south_east, south_west, north_west])
    edges = np.flatnonzero((right != left) & (right >= 0))
    place = np.full(4 * corners, -1)
    place[edges] = np.arange(len(edges))
    owner = right[edges]
    direction, corner = edges // corners, edges % corners
    reached = corner + np.array([x + y * columns for x, y in _STEPS])[direction]
    following = np.full(len(edges), -1)
    for turn in (-1, 0, 1):  # the last that fits stays: a right turn keeps pixels apart that touch at a corner
        candidate = place[(direction + turn) % 4 * corners + reached]
        fits = (candidate >= 0) & (owner[candidate] == owner)
        following[fits] = candidate[fits]
    # Only edges behind a turn are corners of the ring: skip the others, twice as far in each round.
    behind_turn = np.zeros(len(edges), dtype=np.bool_)
    behind_turn[following] = direction[following] != direction
    while (pending := ~behind_turn[following]).any():
        following = np.where(pending, following[following], following)
    points = np.stack([corner % columns, corner // columns], axis=1)
    order, starts = _walk(following, behind_turn)
    return owner[order[starts[:-1]]], points[order], starts


def _walk(following: np.ndarray, is_corner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """List all rings one after the other; give the positions where each starts, and the length."""
    chain, left_over = following.tolist(), is_corner.tolist()
    order: list[int] = []
    starts: list[int] = []
    for first in np.flatnonzero(is_corner).tolist():
        current = first
        if left_over[current]:
            starts.append(len(order))
        while left_over[current]:
            left_over[current] = False
            order.append(current)
            current = chain[current]
    return np.array(order, dtype=np.int64), np.array([*starts, len(order)], dtype=np.int64)


def _signed_areas(points: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Compute twice the area of each ring; positive where it runs clockwise on screen (y down)."""
    following = np.roll(points, -1, axis=0)
    following[starts[1:] - 1] = points[starts[:-1]]
    terms = points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]
    return np.add.reduceat(terms, starts[:-1]) if len(points) else terms
