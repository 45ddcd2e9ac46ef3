"""Find images that show the same thing, by a hash of their coarse structure, confirmed on thumbnails.

The hash is the sign pattern of the 8 x 8 lowest frequencies of a 32 x 32 gray thumbnail against their median: 64 bits
that recompression and resizing leave alone (Zauner, "Implementation and Benchmarking of Perceptual Image Hash
Functions", 2010). The nearest image by Hamming distance counts as a twin if the thumbnails agree, too.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8, UInt64

# Bits in which hashes of pairs may differ; recompression at quality 30 changes up to 6.
MOST_BITS = 8
# Mean difference of pairs' thumbnails, in gray levels.
MOST_LEVELS = 3.0
# Thumbnails of less contrast (standard deviation in gray levels) have no structure to compare.
LEAST_CONTRAST = 4.0
_ROWS = 512


class Duplicate(NamedTuple):
    """Positions of two images that show the same thing."""

    first: int
    second: int


def hashes(thumbs: UInt8[np.ndarray, "N 32 32"]) -> UInt64[np.ndarray, " N"]:
    """Hash thumbnails.

    >>> scene = np.random.default_rng(0).integers(40, 200, (1, 32, 32), dtype=np.uint8)
    >>> bool((hashes(scene) == hashes(scene + np.uint8(20))).all())  # brighter
    True
    """
    side = thumbs.shape[1]
    positions = np.arange(side) + 0.5
    basis = np.cos(np.pi / side * np.arange(8)[:, None] * positions).astype(np.float32)  # (8, 32)
    frequencies = (basis @ thumbs.astype(np.float32) @ basis.T).reshape(len(thumbs), 64)
    # The first one is the brightness: it would be above the median always.
    bits = frequencies > np.median(frequencies[:, 1:], axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def find_near_duplicates(
    thumbs: UInt8[np.ndarray, "N 32 32"], groups: Integer[np.ndarray, " N"], wanted: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], list[Duplicate]]:
    """Find, for each image of the first group of a pair, its nearest duplicate in the second.

    Args:
        thumbs: gray thumbnails, upright.
        groups: group of each.
        wanted: pairs of groups; (g, g) looks for copies within a group, each pair once.

    Returns:
        Duplicates per pair of groups, for which the first image is of the first group.
    """
    codes = hashes(thumbs)
    textured = thumbs.reshape(len(thumbs), -1).std(axis=1) >= LEAST_CONTRAST
    places = {group: np.flatnonzero((groups == group) & textured) for group in {g for pair in wanted for g in pair}}
    found: dict[tuple[int, int], list[Duplicate]] = {}
    for one, other in wanted:
        rows, columns = places[one], places[other]
        pairs: list[Duplicate] = []
        for start in range(0, len(rows) if len(columns) else 0, _ROWS):
            part = rows[start : start + _ROWS]
            distance = np.bitwise_count(codes[part, None] ^ codes[None, columns]).astype(np.int16)
            if one == other:
                distance[part[:, None] <= columns[None]] = 65  # an image is no copy of itself; each pair once
            nearest = distance.argmin(axis=1)
            close = distance[np.arange(len(part)), nearest] <= MOST_BITS
            first, second = part[close], columns[nearest[close]]
            levels = np.abs(thumbs[first].astype(np.int16) - thumbs[second]).mean(axis=(1, 2))
            same = levels <= MOST_LEVELS
            pairs += [Duplicate(a, b) for a, b in zip(first[same].tolist(), second[same].tolist(), strict=True)]
        found[one, other] = pairs
    return found
