"""The table and the wall behind it: class background, in many materials."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from halfmask.demo.noise import Array, blend, cells, float32, fractal_noise, hsv, smoothstep

Plane = Float32[np.ndarray, "N 2"]
Colors = Float32[np.ndarray, "N 3"]
Paint = Callable[[Plane], Colors]


@dataclass(frozen=True)
class Backdrop:
    """Albedo of the table (by x, z) and of the wall (by x, y), and how much the table mirrors the light."""

    table: Paint
    wall: Paint
    gloss: float


def draw_backdrop(rng: np.random.Generator) -> Backdrop:
    """Draw a table and a wall."""
    makers = (_planks, _gingham, _terrazzo, _linen, _parquet, _marble)
    which = int(rng.integers(len(makers)))
    return Backdrop(
        table=makers[which](rng, int(rng.integers(1 << 16))),
        wall=_wall(rng, int(rng.integers(1 << 16))),
        gloss=(0.25, 0.0, 0.35, 0.0, 0.3, 0.5)[which],
    )


def _planks(rng: np.random.Generator, salt: int) -> Paint:
    tone = hsv(rng.uniform(0.05, 0.1), rng.uniform(0.3, 0.65), rng.uniform(0.4, 0.8))
    width = rng.uniform(0.5, 0.9)

    def paint(q: Plane) -> Colors:
        plank = np.floor(q[:, 0] / width)
        along = np.stack([q[:, 0] * 9, q[:, 1] * 1.1 + plank * 7.3], 1).astype(np.float32)
        warp = fractal_noise(along * np.float32(0.5), 2, salt)[:, None] * np.float32(2)
        grain = fractal_noise(along + warp, 4, salt + 9)
        shade = 0.55 + 0.6 * grain + 0.16 * np.sin(plank * 12.9 + salt)
        seam = smoothstep(0.0, 0.03, (np.abs(q[:, 0] / width - np.round(q[:, 0] / width)) * width).astype(np.float32))
        return float32(tone * (shade * (0.4 + 0.6 * seam))[:, None])

    return paint


def _gingham(rng: np.random.Generator, salt: int) -> Paint:
    stripe, size = hsv(rng.uniform(), rng.uniform(0.2, 0.45), rng.uniform(0.5, 0.8)), rng.uniform(0.25, 0.45)
    white, angle = hsv(0.12, 0.05, 0.95), rng.uniform(0, np.pi)

    def paint(q: Plane) -> Colors:
        turned = _rotate(q, angle)
        bars = (np.sin(turned * np.pi / size) > 0).sum(1).astype(np.float32) / 2
        weave = 0.88 + 0.24 * fractal_noise((turned * 30).astype(np.float32), 2, salt)
        return blend(white, stripe, bars) * weave[:, None]

    return paint


def _terrazzo(rng: np.random.Generator, salt: int) -> Paint:
    ground, hue = hsv(rng.uniform(), rng.uniform(0.03, 0.2), rng.uniform(0.6, 0.92)), rng.uniform()
    scale = rng.uniform(3, 6)

    def paint(q: Plane) -> Colors:
        near, _, identity = cells((q * scale).astype(np.float32), salt)
        jag = 0.14 * fractal_noise((q * scale * 2.5).astype(np.float32), 2, salt)
        chips = 0.25 + 0.5 * (0.5 + 0.5 * np.cos(6.28 * (hue + identity[:, None] * 2 + np.array([0, 0.1, 0.25]))))
        return blend(ground, chips.astype(np.float32), smoothstep(0.02, -0.02, near + jag - 0.12 - 0.25 * identity))

    return paint


def _linen(rng: np.random.Generator, salt: int) -> Paint:
    cloth = hsv(rng.uniform(), rng.uniform(0.05, 0.25), rng.uniform(0.45, 0.85))
    angle, stripes = rng.uniform(0, np.pi), rng.uniform() < 0.5

    def paint(q: Plane) -> Colors:
        turned = _rotate(q, angle)
        warp = fractal_noise((turned * np.array([60, 6])).astype(np.float32), 2, salt)
        weft = fractal_noise((turned * np.array([6, 60])).astype(np.float32), 2, salt + 5)
        folds = fractal_noise((turned * 1.2).astype(np.float32), 2, salt + 7)
        color = cloth * (0.5 + 0.3 * (warp + weft) + 0.4 * folds)[:, None]
        lines = smoothstep(0.9, 0.95, np.sin(turned[:, 0] * 9).astype(np.float32)) if stripes else 0 * warp
        return blend(color.astype(np.float32), hsv(0.1, 0.1, 0.9), 0.6 * lines)

    return paint


def _parquet(rng: np.random.Generator, salt: int) -> Paint:
    tone, size = hsv(rng.uniform(0.05, 0.1), rng.uniform(0.35, 0.6), rng.uniform(0.45, 0.75)), rng.uniform(0.5, 0.8)

    def paint(q: Plane) -> Colors:
        tile = np.floor(q / size)
        across = (tile.sum(1) % 2).astype(bool)
        local = np.where(across[:, None], q, q[:, ::-1])
        slat = np.floor(local[:, 0] / size * 4)
        grain = fractal_noise(np.stack([local[:, 0] * 16, local[:, 1] * 2 + slat * 3.7], 1).astype(np.float32), 3, salt)
        seam = smoothstep(
            0.0, 0.08, np.abs(local[:, 0] / size * 4 - np.round(local[:, 0] / size * 4)).astype(np.float32)
        )
        shade = (0.6 + 0.5 * grain + 0.12 * np.sin(slat * 5.1 + tile[:, 0])) * (0.55 + 0.45 * seam)
        return float32(tone * shade[:, None])

    return paint


def _marble(rng: np.random.Generator, salt: int) -> Paint:
    stone, vein = hsv(rng.uniform(), rng.uniform(0.02, 0.15), rng.uniform(0.7, 0.95)), hsv(rng.uniform(), 0.2, 0.3)

    def paint(q: Plane) -> Colors:
        bend = fractal_noise((q * 1.4).astype(np.float32), 4, salt) - np.float32(0.5)
        line = np.abs(np.sin(q[:, 0] * 1.7 + q[:, 1] * 1.1 + bend * 9))
        cloud = fractal_noise((q * 5).astype(np.float32), 3, salt + 3)
        strength = 0.75 * smoothstep(0.16, 0.0, line.astype(np.float32)) + 0.25 * smoothstep(0.4, 0.8, cloud)
        return blend(stone, vein, strength)

    return paint


def _wall(rng: np.random.Generator, salt: int) -> Paint:
    hue, pattern, pitch = rng.uniform(), int(rng.integers(4)), rng.uniform(0.35, 0.7)
    base = hsv(hue, rng.uniform(0.05, 0.25), rng.uniform(0.5, 0.9))
    mark = hsv(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.1, 0.3), rng.uniform(0.45, 0.95))

    def paint(q: Plane) -> Colors:
        plaster = 0.85 + 0.3 * fractal_noise((q * 1.5).astype(np.float32), 3, salt)
        if pattern == 0:
            share = smoothstep(-0.2, 0.2, np.sin(q[:, 0] * 2 * np.pi / pitch).astype(np.float32))
        elif pattern == 1:
            shifted = q + np.stack([np.floor(q[:, 1] / pitch) % 2 * pitch / 2, 0 * q[:, 1]], 1)
            local = shifted / pitch - np.floor(shifted / pitch) - 0.5
            share = smoothstep(0.26, 0.18, np.hypot(local[:, 0], local[:, 1]).astype(np.float32))
        elif pattern == 2:
            row = np.floor(q[:, 1] / (pitch / 2))
            brick = np.stack([q[:, 0] / pitch + row % 2 / 2, q[:, 1] / (pitch / 2)], 1)
            gap = np.abs(brick - np.round(brick)).min(1)
            share = smoothstep(0.1, 0.02, gap.astype(np.float32))
        else:
            share = smoothstep(0.0, 5.0, q[:, 1])
        return blend(base, mark, 0.6 * share) * plaster[:, None]

    return paint


def _rotate(q: Plane, angle: float) -> Array:
    c, s = np.cos(angle), np.sin(angle)
    return float32(q @ np.array([[c, -s], [s, c]]))
