"""Turn a scene into an image and a mask by sphere tracing (Hart 1996), one thing at a time.

Only rays that meet a thing's bounding sphere are marched, so the work grows with the pixels a thing covers.
"""

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray

from halfmask.demo.noise import Array, float32
from halfmask.demo.scene import Placed, Scene

_STEPS, _SHADOW_STEPS, _NEAR_ENOUGH = 48, 20, 0.002
# Corners of a tetrahedron: four samples of the field give its gradient.
_TETRAHEDRON = np.array([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]], np.float32)


def render(
    scene: Scene, size: int, rng: np.random.Generator, supersample: int = 2
) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]:
    """Render a square image in sRGB and the class of each pixel.

    `rng` draws the sensor's noise; `supersample` rays per pixel are followed along each axis.
    """
    side = size * supersample
    rays = _camera_rays(scene, side)
    points, normal, albedo, gloss, label = _first_hits(scene, rays)
    lit = _shadows(scene, points, normal)
    color = _shade(scene, rays, points, normal, albedo, gloss, lit)
    image = color.reshape(size, supersample, size, supersample, 3).mean((1, 3))
    image = _develop(image, rng)
    votes = np.sort(label.reshape(size, supersample, size, supersample).transpose(0, 2, 1, 3).reshape(size, size, -1))
    return image, votes[..., votes.shape[-1] // 2]  # a class with most of the votes covers the middle


def _camera_rays(scene: Scene, side: int) -> Array:
    v, u = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    plane = np.stack([(2 * u + 1 - side) / side, (side - 2 * v - 1) / side, np.full(u.shape, scene.zoom)], -1)
    rays = float32(plane.reshape(-1, 3) @ scene.axes)
    return float32(rays / np.sqrt(_dot(rays, rays))[:, None])


def _first_hits(scene: Scene, rays: Array) -> tuple[Array, Array, Array, Array, NDArray[np.uint8]]:
    """Find what each ray sees first: point, normal, albedo, gloss, label."""
    with np.errstate(divide="ignore"):
        to_table = np.where(rays[:, 1] < 0, -scene.eye[1] / rays[:, 1], np.inf)
        to_wall = np.where(rays[:, 2] > 0, (scene.wall - scene.eye[2]) / rays[:, 2], np.inf)
    on_table = to_table < to_wall
    depth = np.minimum(to_table, to_wall).astype(np.float32)
    owner = np.full(len(rays), -1)
    for index, thing in enumerate(scene.things):
        near, far, met = _meet_sphere(thing, scene.eye, rays)
        met &= near < depth
        rows = np.flatnonzero(met)
        found = _march(thing, scene.eye, rays[rows], near[rows], np.minimum(far, depth)[rows])
        hit = np.isfinite(found)
        depth[rows[hit]], owner[rows[hit]] = found[hit], index
    points = (scene.eye + rays * depth[:, None]).astype(np.float32)
    normal = np.where(on_table[:, None], [[0, 1, 0]], [[0, 0, -1]]).astype(np.float32)
    albedo = np.empty_like(points)
    table, wall = (owner < 0) & on_table, (owner < 0) & ~on_table
    albedo[table] = scene.backdrop.table(points[table][:, [0, 2]])
    albedo[wall] = scene.backdrop.wall(points[wall][:, :2])
    gloss = np.where(table, scene.backdrop.gloss, 0).astype(np.float32)
    label = np.zeros(len(rays), np.uint8)
    for index, thing in enumerate(scene.things):
        rows = np.flatnonzero(owner == index)
        if len(rows) == 0:
            continue
        local = thing.to_local(points[rows])
        local_normal = _gradient(thing, local)
        normal[rows] = local_normal @ thing.rotation.T
        albedo[rows] = thing.shape.color(local, local_normal)
        gloss[rows], label[rows] = thing.shape.gloss, thing.label
    return points, normal, albedo, gloss, label


def _meet_sphere(thing: Placed, start: Array, rays: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Intersect rays with the bounding sphere: entry, exit, and whether they meet ahead."""
    to_center = thing.center - start
    along = _dot(rays, to_center)
    gap = _dot(to_center, to_center) - along**2
    half = np.sqrt(np.maximum(thing.radius**2 - gap, 0))
    return (
        np.maximum(along - half, 0).astype(np.float32),
        (along + half).astype(np.float32),
        (gap < thing.radius**2) & (along + half > 0),
    )


def _dot(a: Array, b: Array) -> Array:
    # Three products: numpy's sum over an axis of length 3 is several times slower.
    return float32(a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2])


def _march(thing: Placed, start: Array, rays: Array, near: Array, far: Array) -> Array:
    """Advance along rays by the distance to the surface; the depth of the hit, or infinity."""
    t = near.copy()
    result = np.full(len(rays), np.inf, np.float32)
    alive = np.arange(len(rays))
    for _ in range(_STEPS):
        if len(alive) == 0:
            break
        gap = thing.distance(start + rays[alive] * t[alive, None])
        hit = gap < _NEAR_ENOUGH
        result[alive[hit]] = t[alive[hit]]
        t[alive] += np.maximum(gap, _NEAR_ENOUGH / 2)
        alive = alive[~hit & (t[alive] < far[alive])]
    return result


def _gradient(thing: Placed, local: Array) -> Array:
    total = np.zeros_like(local)
    for corner in _TETRAHEDRON:
        total += corner * thing.shape.distance(local + corner * np.float32(0.004))[:, None]
    return float32(total / np.maximum(np.sqrt(_dot(total, total)), 1e-9)[:, None])


def _shadows(scene: Scene, points: Array, normal: Array) -> Array:
    """Return the share of the lamp each point sees; a ray that passes close to a thing is half in shade."""
    light = scene.light
    start = points + normal * np.float32(0.02)
    lit = np.ones(len(points), np.float32)
    facing = normal @ light.direction > 0
    for thing in scene.things:
        near, far, met = _meet_sphere(thing, start, np.broadcast_to(light.direction, start.shape))
        rows = np.flatnonzero(met & facing)
        t = np.maximum(near[rows], 0.02)
        share = np.ones(len(rows), np.float32)
        alive = np.arange(len(rows))
        for _ in range(_SHADOW_STEPS):
            if len(alive) == 0:
                break
            gap = thing.distance(start[rows[alive]] + light.direction * t[alive, None])
            share[alive] = np.minimum(share[alive], np.clip(light.sharpness * gap / t[alive], 0, 1))
            t[alive] += np.clip(gap, 0.015, 0.25)
            alive = alive[(share[alive] > 0.01) & (t[alive] < far[rows[alive]])]
        lit[rows] *= share
    return lit


def _openness(scene: Scene, points: Array, normal: Array) -> Array:
    """Return the share of the sky each point sees, with things taken as balls."""
    share = np.ones(len(points), np.float32)
    for thing in scene.things:
        away = thing.center - points
        distance = np.sqrt(_dot(away, away)) + np.float32(1e-6)
        radius = np.float32(0.62 * thing.radius)
        facing = np.clip(_dot(normal, away) / distance, 0, 1)
        share *= 1 - 0.85 * facing * np.clip(radius / np.maximum(distance, radius), 0, 1) ** 2 * (distance > radius)
    return share


def _shade(
    scene: Scene, rays: Array, points: Array, normal: Array, albedo: Array, gloss: Array, lit: Array
) -> Float32[np.ndarray, "N 3"]:
    """Add lamp, sky, light from the table, and the highlight (Blinn 1977)."""
    light = scene.light
    lamp = (np.clip(normal @ light.direction, 0, 1) * lit)[:, None] * light.color
    share = _openness(scene, points, normal)
    low = np.clip(points[:, 1] / 0.25, 0, 1) * 0.5 + 0.5  # corners between thing and table are dark
    share = np.where(normal[:, 1] < 0.9, share * low, share)
    up = normal[:, 1:2] * 0.5 + 0.5
    fill = (up * light.sky + (1 - up) * light.bounce) * share[:, None]
    half = light.direction - rays
    half /= np.sqrt(_dot(half, half))[:, None]
    shine = np.clip(_dot(normal, half), 0, 1)
    highlight = (gloss * (0.6 * shine**90 + 0.12 * shine**18) * lit)[:, None] * light.color
    rim = (gloss * 0.35 * np.clip(1 + _dot(normal, rays), 0, 1) ** 4)[:, None] * light.sky * share[:, None]
    return float32(albedo * (lamp + fill) + highlight + rim)


def _develop(image: Array, rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Take the picture as some camera would: exposure, white balance, a film-like curve, color, vignette, noise.

    No two cameras agree: what a few labeled pictures show of this is not what all the others look like.
    """
    x = np.linspace(-1, 1, len(image))
    fall = 1 - rng.uniform(0.1, 0.35) * (x[:, None] ** 2 + x**2) / 2
    warm, tint = rng.uniform(-0.35, 0.35), rng.uniform(-0.08, 0.08)
    balance = np.exp([warm, tint, -warm])
    exposed = image * fall[..., None] * balance * np.exp(rng.uniform(-0.9, 0.2))
    curved = exposed * (2.51 * exposed + 0.03) / (exposed * (2.43 * exposed + 0.59) + 0.14)  # Narkowicz 2015
    srgb = np.clip(curved, 0, 1) ** (1 / 2.2)
    gray: np.ndarray = srgb @ np.array([0.299, 0.587, 0.114])
    colored = gray[..., None] + (srgb - gray[..., None]) * rng.uniform(0.3, 1.3)
    noisy = 255 * colored + rng.normal(0, rng.uniform(1.0, 6.0), image.shape)
    return np.asarray(np.clip(noisy + 0.5, 0, 255), dtype=np.uint8)
