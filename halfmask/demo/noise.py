"""Procedural noise: random numbers that are a function of position, and smooth fields made from them."""

import numpy as np
from jaxtyping import Float32, Int64
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float32]

# Large odd factors spread neighboring lattice points over the table (Teschner et al. 2003, section 4).
_PRIMES = (73856093, 19349663, 83492791)
_TABLE = np.random.default_rng(20).random(4096, dtype=np.float32)


def float32(values: ArrayLike) -> Array:
    """Round to the precision that all of the rendering is done in."""
    return np.asarray(values, np.float32)


def lattice(*index: Int64[np.ndarray, " N"], salt: int = 0) -> Float32[np.ndarray, " N"]:
    """Return a random number in [0, 1) for every point of an integer lattice of up to three axes."""
    mixed = np.full_like(index[0], salt * 2654435761 & 0xFFFF)
    for axis, prime in zip(index, _PRIMES, strict=False):
        mixed = mixed ^ (axis * prime)
    return float32(_TABLE[(mixed ^ (mixed >> 13)) & 4095])


def value_noise(points: Float32[np.ndarray, "N D"], salt: int = 0) -> Float32[np.ndarray, " N"]:
    """Interpolate random lattice values smoothly in 1, 2 or 3 dimensions; in [0, 1]."""
    cell = np.floor(points).astype(np.int64)
    local = points - cell.astype(np.float32)
    weight = local * local * (3 - 2 * local)
    total = np.zeros(len(points), np.float32)
    axes = points.shape[1]
    for corner in range(2**axes):
        share = np.ones(len(points), np.float32)
        index = []
        for axis in range(axes):
            upper = corner >> axis & 1
            share *= weight[:, axis] if upper else 1 - weight[:, axis]
            index.append(cell[:, axis] + upper)
        total += share * lattice(*index, salt=salt)
    return total


def fractal_noise(points: Float32[np.ndarray, "N D"], octaves: int = 3, salt: int = 0) -> Float32[np.ndarray, " N"]:
    """Sum noise of doubling frequency and halving strength; in [0, 1], mean near 0.5."""
    total = np.zeros(len(points), np.float32)
    for octave in range(octaves):
        total += value_noise(points * np.float32(2.03**octave), salt + octave) * np.float32(0.5**octave)
    return total / np.float32(2 - 0.5 ** (octaves - 1))


def cells(
    points: Float32[np.ndarray, "N 2"], salt: int = 0
) -> tuple[Float32[np.ndarray, " N"], Float32[np.ndarray, "N 2"], Float32[np.ndarray, " N"]]:
    """Find the nearest of scattered points, one per unit square (Worley 1996).

    Returns:
        Distance to it, offset from it, and its random number in [0, 1).
    """
    base = np.floor(points).astype(np.int64)
    best = np.full(len(points), np.inf, np.float32)
    offset = np.zeros_like(points)
    identity = np.zeros(len(points), np.float32)
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            x, y = base[:, 0] + dx, base[:, 1] + dy
            center = np.stack(
                [x + 0.2 + 0.6 * lattice(x, y, salt=salt + 1), y + 0.2 + 0.6 * lattice(x, y, salt=salt + 2)], 1
            ).astype(np.float32)
            delta = points - center
            distance = np.hypot(delta[:, 0], delta[:, 1])
            nearer = distance < best
            best = np.where(nearer, distance, best)
            offset = np.where(nearer[:, None], delta, offset)
            identity = np.where(nearer, lattice(x, y, salt=salt + 3), identity)
    return best, offset, identity


def smoothstep(low: float, high: float, x: Float32[np.ndarray, "*S"]) -> Float32[np.ndarray, "*S"]:
    """Return 0 below `low`, 1 above `high`, and a smooth rise between them."""
    t = np.clip((x - np.float32(low)) / np.float32(high - low), 0, 1)
    return float32(t * t * (3 - 2 * t))


def blend(
    a: Float32[np.ndarray, "*S 3"], b: Float32[np.ndarray, "*T 3"], t: Float32[np.ndarray, " N"]
) -> Float32[np.ndarray, "N 3"]:
    """Blend color a (t = 0) into color b (t = 1)."""
    return float32(a + (b - a) * t[:, None])


def hsv(hue: float, saturation: float, value: float) -> Array:
    """Convert a color to linear RGB, the space in which light adds up."""
    k = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
    srgb = value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)
    return float32(srgb**2.2)
