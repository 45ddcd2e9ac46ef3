"""Compose a still life: what stands where, from where it is seen, and how it is lit."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32

from halfmask.demo.backdrop import Backdrop, draw_backdrop
from halfmask.demo.noise import Array, hsv
from halfmask.demo.shapes import SHAPES, Shape

CLASSES = ("background", *(shape.name for shape in SHAPES))
# Display colors of the masks.
PALETTE: tuple[tuple[int, int, int], ...] = (
    (38, 40, 52), (226, 74, 74), (77, 163, 255), (250, 190, 60),
    (160, 110, 230), (245, 140, 190), (80, 190, 110), (70, 210, 210),
)  # fmt: skip


@dataclass(frozen=True)
class Placed:
    """A thing at its place: world = rotation @ local * scale + origin."""

    shape: Shape
    label: int
    rotation: Array
    origin: Array
    scale: float

    @cached_property
    def center(self) -> Array:
        """Center of the bounding sphere in the world."""
        local = np.array([0, self.shape.center, 0], np.float32)
        return np.asarray(self.rotation @ local * self.scale + self.origin, np.float32)

    @property
    def radius(self) -> float:
        """Radius of the bounding sphere."""
        return self.shape.radius * self.scale

    def to_local(self, points: Float32[np.ndarray, "N 3"]) -> Float32[np.ndarray, "N 3"]:
        """Bring world points into the thing's own coordinates."""
        return ((points - self.origin) @ self.rotation / np.float32(self.scale)).astype(np.float32)

    def distance(self, points: Float32[np.ndarray, "N 3"]) -> Float32[np.ndarray, " N"]:
        """Return a lower bound of the distance of world points to the surface."""
        return self.shape.distance(self.to_local(points)) * np.float32(self.scale * self.shape.stride)


@dataclass(frozen=True)
class Light:
    """A far lamp, and the sky and the table that fill its shadows."""

    direction: Array
    color: Array
    sky: Array
    bounce: Array
    sharpness: float


@dataclass(frozen=True)
class Scene:
    """Everything the renderer needs."""

    things: tuple[Placed, ...]
    backdrop: Backdrop
    light: Light
    eye: Array
    axes: Array
    zoom: float
    wall: float


def draw_scene(rng: np.random.Generator, *, kinds: tuple[int, ...] | None = None) -> Scene:
    """Draw a scene of six to ten things; labels (1 to 7) of `kinds` must occur, `None` leaves it to chance."""
    count = int(rng.integers(6, 11))
    labels = [*(kinds or ()), *rng.integers(1, len(CLASSES), count).tolist()][: max(count, len(kinds or ()))]
    eye = np.array([rng.uniform(-1, 1), rng.uniform(2.2, 3.6), -rng.uniform(4.0, 4.8)], np.float32)
    target = np.array([rng.uniform(-0.3, 0.3), 0.35, rng.uniform(0.1, 0.5)], np.float32)
    return Scene(
        things=_place(rng, labels),
        backdrop=draw_backdrop(rng),
        light=_draw_light(rng),
        eye=eye,
        axes=_look(eye, target),
        zoom=rng.uniform(2.3, 3.0),
        wall=rng.uniform(2.4, 3.6),
    )


def _place(rng: np.random.Generator, labels: list[int]) -> tuple[Placed, ...]:
    """Put things down one by one where they do not stand inside each other; seen from the side they overlap."""
    placed: list[Placed] = []
    for label in labels:
        shape = SHAPES[label - 1](rng)
        for _ in range(40):
            rotation, lift = shape.pose(rng)
            scale = rng.uniform(0.6, 1.0)
            spot = np.array([rng.uniform(-1.5, 1.5), lift * scale, rng.uniform(-1.2, 1.6)], np.float32)
            spot[[0, 2]] -= (rotation @ np.array([0, shape.center, 0], np.float32) * scale)[[0, 2]]
            thing = Placed(shape, label, rotation, spot, scale)
            apart = [np.hypot(*(thing.center - other.center)[[0, 2]]) for other in placed]
            reach = [0.72 * (thing.radius + other.radius) for other in placed]
            if all(distance > needed for distance, needed in zip(apart, reach, strict=True)):
                placed.append(thing)
                break
    return tuple(placed)


def _draw_light(rng: np.random.Generator) -> Light:
    warmth = rng.uniform(0.05, 0.12)
    direction = np.array([rng.choice([-1, 1]) * rng.uniform(0.4, 1.2), rng.uniform(0.8, 1.6), rng.uniform(-1.0, 0.4)])
    return Light(
        direction=(direction / np.linalg.norm(direction)).astype(np.float32),
        color=(hsv(warmth, rng.uniform(0.05, 0.3), 1.0) * rng.uniform(1.5, 2.3)).astype(np.float32),
        sky=(hsv(rng.uniform(0.52, 0.68), rng.uniform(0.05, 0.3), 1.0) * rng.uniform(0.3, 0.6)).astype(np.float32),
        bounce=(hsv(rng.uniform(0.05, 0.12), 0.3, 1.0) * rng.uniform(0.1, 0.25)).astype(np.float32),
        sharpness=rng.uniform(5, 16),
    )


def _look(eye: Array, target: Array) -> Array:
    """Return the camera's right, up and forward axes as rows."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(np.array([0, 1, 0]), forward)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward]).astype(np.float32)
