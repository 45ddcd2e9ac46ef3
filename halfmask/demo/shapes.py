"""The seven things on the table: each is a signed distance field and a surface.

Local coordinates: y is up, the thing stands on y = 0 and is about one unit tall. Hues overlap between the kinds
on purpose: what a thing is shows in its form and its texture, not in one color.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from jaxtyping import Float32

from halfmask.demo.noise import Array, blend, cells, float32, fractal_noise, hsv, smoothstep

Points = Float32[np.ndarray, "N 3"]
Numbers = Float32[np.ndarray, " N"]


class Shape(ABC):
    """One thing; the constructor draws its colors and proportions.

    Attributes:
        name: class name in the masks.
        center: height of the bounding sphere's center.
        radius: of the bounding sphere.
        gloss: strength of the highlight in [0, 1].
        stride: how much of the distance field's value a ray may advance; below 1 for bent fields.
    """

    name: ClassVar[str]
    center: float = 0.5
    radius: float = 0.9
    gloss: float = 0.3
    stride: float = 1.0

    def __init__(self, rng: np.random.Generator) -> None:
        self.salt = int(rng.integers(1 << 16))

    @abstractmethod
    def distance(self, p: Points) -> Numbers:
        """Return a lower bound of the distance to the surface, negative inside."""

    @abstractmethod
    def color(self, p: Points, normal: Points) -> Points:
        """Return the linear RGB albedo of points on the surface."""

    def pose(self, rng: np.random.Generator) -> tuple[Array, float]:
        """Draw a rotation matrix (local to world) and how far it lifts the thing."""
        return turn(rng.uniform(0, 2 * np.pi)), 0.0


class Apple(Shape):
    """A spindle torus with a stem, streaked and speckled."""

    name = "apple"
    center, radius, gloss, stride = 0.6, 0.95, 0.55, 0.8

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        first, second = [(0.0, 0.12), (0.26, 0.16), (0.99, 0.1), (0.02, 0.2)][rng.integers(4)]
        self.base, self.blush = hsv(first, 0.85, rng.uniform(0.6, 0.85)), hsv(second, 0.7, 0.85)
        self.height = rng.uniform(1.05, 1.25)

    def distance(self, p: Points) -> Numbers:
        """Return the distance to a torus around the axis, wider above than below, and a capsule."""
        y = (p[:, 1] - 0.58) / self.height
        r = np.hypot(p[:, 0], p[:, 2]) / (1 + 0.22 * np.clip(y, -0.5, 0.5))
        body = np.hypot(r - 0.25, y) - 0.48
        return float32(np.minimum(body, capsule(p, (0.0, 0.9, 0.0), (0.1, 1.22, 0.03), 0.035)))

    def color(self, p: Points, normal: Points) -> Points:
        """Paint meridian streaks, pale dots, a brown stem."""
        angle = np.arctan2(p[:, 2], p[:, 0])
        around = np.stack([np.cos(angle) * 4, np.sin(angle) * 4, p[:, 1] * 0.8], 1).astype(np.float32)
        streaks = fractal_noise(around, 3, self.salt)
        skin = blend(self.base, self.blush, smoothstep(0.35, 0.8, streaks))
        dots, _, _ = cells(np.stack([angle * 4, p[:, 1] * 9], 1).astype(np.float32), self.salt)
        skin = blend(skin, self.blush * 0.5 + 0.45, 0.6 * smoothstep(0.14, 0.06, dots))
        r = np.hypot(p[:, 0], p[:, 2])
        stem = (r < 0.16) & (p[:, 1] > 0.96)
        return np.where(stem[:, None], hsv(0.08, 0.6, 0.35), skin * (0.45 + 0.55 * smoothstep(0.02, 0.25, r))[:, None])


class Mug(Shape):
    """A glazed cup with a handle and something to drink."""

    name = "mug"
    center, radius, gloss, stride = 0.55, 0.98, 0.8, 0.9

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        hue = rng.uniform(0.5, 0.66)
        self.glaze = hsv(hue, rng.uniform(0.25, 0.75), rng.uniform(0.5, 0.95))
        self.motif = hsv(hue + rng.uniform(-0.15, 0.15), rng.uniform(0.0, 0.4), rng.uniform(0.6, 0.95))
        self.pattern = int(rng.integers(4))
        self.drink = hsv(rng.uniform(0.05, 0.1), 0.75, rng.uniform(0.2, 0.5))

    def distance(self, p: Points) -> Numbers:
        """Return the distance to a wall, a floor, the drink, and half a ring outside."""
        x, y, z = p[:, 0], p[:, 1], p[:, 2]
        r = np.hypot(x, z)
        wall = box2(np.abs(r - 0.47) - 0.015, np.abs(y - 0.56) - 0.5) - 0.035
        filling = box2(r - 0.46, np.abs(y - 0.43) - 0.38)
        ring = np.hypot(np.hypot(x - 0.5, (y - 0.56) * 0.9) - 0.27, z) - 0.065
        return float32(np.minimum(np.minimum(wall, filling), np.maximum(ring, 0.45 - r)))

    def color(self, p: Points, normal: Points) -> Points:
        """Paint stripes, dots, a dipped half, or plain; pale inside."""
        y, angle, r = p[:, 1], np.arctan2(p[:, 2], p[:, 0]), np.hypot(p[:, 0], p[:, 2])
        if self.pattern == 0:
            mark = smoothstep(-0.2, 0.2, np.sin(y * 20).astype(np.float32)) * (np.abs(y - 0.55) < 0.3)
        elif self.pattern == 1:
            near, _, _ = cells(np.stack([angle * 2.2, y * 4.5], 1).astype(np.float32), self.salt)
            mark = smoothstep(0.3, 0.22, near)
        elif self.pattern == 2:
            drip = 0.5 + 0.08 * np.sin(angle * 3 + self.salt) + 0.05 * np.sin(angle * 7)
            mark = smoothstep(-0.015, 0.015, (y - drip).astype(np.float32))
        else:
            grain = fractal_noise((p * 14).astype(np.float32), 2, self.salt)
            mark = 0.5 * smoothstep(0.62, 0.72, grain)
        outside = blend(self.glaze, self.motif, mark.astype(np.float32))
        outside = np.where(((y > 1.05) | (r > 0.54))[:, None], self.glaze, outside)
        surface = np.where(((r < 0.465) & (y < 0.83))[:, None], self.drink, self.glaze * 0.3 + 0.6)
        return float32(np.where((r < 0.465)[:, None], surface, outside))

    def pose(self, rng: np.random.Generator) -> tuple[Array, float]:
        """Choose the pose: standing, the handle to any side."""
        return turn(rng.uniform(0, 2 * np.pi)), 0.0


class Can(Shape):
    """A tin with a printed label, standing or lying."""

    name = "can"
    center, radius, gloss, stride = 0.6, 0.76, 0.7, 0.85

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        hue = [0.36, 0.13][rng.integers(2)] + rng.uniform(-0.04, 0.04)
        self.label = hsv(hue, rng.uniform(0.6, 0.9), rng.uniform(0.45, 0.8))
        self.band = hsv(hue + rng.uniform(-0.05, 0.05), rng.uniform(0.1, 0.4), rng.uniform(0.75, 0.95))
        self.edge = rng.uniform(0.2, 0.4)

    def distance(self, p: Points) -> Numbers:
        """Return the distance to a cylinder with two rims and a sunken lid."""
        y = p[:, 1] - 0.6
        r = np.hypot(p[:, 0], p[:, 2])
        rim = 0.025 * smoothstep(0.5, 0.56, np.abs(y))
        hull = box2(r - 0.4 - rim, np.abs(y) - 0.59) - 0.01
        sunk = np.maximum(r - 0.37, 0.555 - np.abs(y))
        return float32(np.maximum(hull, -sunk))

    def color(self, p: Points, normal: Points) -> Points:
        """Paint bands, badges and lines of print; bare metal at the ends."""
        y, angle, r = p[:, 1] - 0.6, np.arctan2(p[:, 2], p[:, 0]), np.hypot(p[:, 0], p[:, 2])
        print_ = blend(self.label, self.band, smoothstep(self.edge, self.edge + 0.02, np.abs(y)))
        badge = np.hypot((angle % (2 * np.pi / 3) - np.pi / 3) * 0.4, y)
        print_ = np.where((badge < 0.19)[:, None], hsv(0.13, 0.12, 0.95), print_)
        inner = (badge < 0.15) & (np.sin(y * 70) > 0.1)
        print_ = np.where(inner[:, None], self.label * 0.5, print_)
        rings = 0.55 + 0.12 * np.sin(r * 60) + 0.1 * np.cos(angle * 2)
        metal = rings[:, None] * np.array([0.95, 0.97, 1.0])
        return float32(np.where(((np.abs(y) > 0.53) | (r < 0.36))[:, None], metal, print_))

    def pose(self, rng: np.random.Generator) -> tuple[Array, float]:
        """Choose the pose: standing in two cases of three."""
        around = turn(rng.uniform(0, 2 * np.pi))
        if rng.uniform() < 0.66:
            return around, 0.0
        roll = turn(rng.uniform(0, 2 * np.pi))
        return float32(around @ LYING @ roll), 0.425


class Block(Shape):
    """A wooden toy cube with painted frames and signs."""

    name = "block"
    center, radius, gloss = 0.44, 0.74, 0.15

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.wood = hsv(rng.uniform(0.08, 0.12), rng.uniform(0.3, 0.5), rng.uniform(0.75, 0.92))
        self.paint = hsv(
            [0.6, 0.8][rng.integers(2)] + rng.uniform(-0.04, 0.04), rng.uniform(0.55, 0.85), rng.uniform(0.45, 0.8)
        )
        self.signs = rng.permutation(4)

    def distance(self, p: Points) -> Numbers:
        """Return the distance to a rounded cube."""
        q = np.abs(p - np.array([0, 0.44, 0], np.float32)) - 0.37
        x, y, z = (np.maximum(q[:, axis], 0) for axis in range(3))
        inside = np.minimum(np.maximum(np.maximum(q[:, 0], q[:, 1]), q[:, 2]), 0)
        return float32(np.sqrt(x * x + y * y + z * z) + inside - 0.07)

    def color(self, p: Points, normal: Points) -> Points:
        """Paint wood grain below a painted frame and one sign per pair of faces."""
        q = p - np.array([0, 0.44, 0], np.float32)
        face = np.abs(normal).argmax(1)
        u = np.choose(face, [q[:, 2], q[:, 0], q[:, 0]])
        v = np.choose(face, [q[:, 1], q[:, 2], q[:, 1]])
        grain = fractal_noise((q * np.array([3, 22, 14])).astype(np.float32), 3, self.salt)
        wood = self.wood * (0.65 + 0.6 * grain)[:, None]
        signs = [
            np.abs(np.hypot(u, v) - 0.16) < 0.05,
            (np.minimum(np.abs(u), np.abs(v)) < 0.05) & (np.maximum(np.abs(u), np.abs(v)) < 0.2),
            (v > -0.17) & (np.abs(u) < (0.2 - v) * 0.55) & (v < 0.2),
            np.maximum(np.abs(u), np.abs(v)) < 0.16,
        ]
        sign = np.choose(face, [signs[int(index)] for index in self.signs[:3]])
        frame = np.maximum(np.abs(u), np.abs(v)) > 0.31
        painted = self.paint * (0.85 + 0.3 * grain)[:, None]
        return float32(np.where((frame | sign)[:, None], painted, wood))


class Mushroom(Shape):
    """A domed cap with flecks on a pale stem."""

    name = "mushroom"
    center, radius, gloss, stride = 0.5, 0.8, 0.35, 0.75

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        hue = rng.uniform(0.0, 0.06)
        self.cap = hsv(hue, rng.uniform(0.5, 0.9), rng.uniform(0.4, 0.8))
        self.flecked = rng.uniform() < 0.9
        self.dome = rng.uniform(0.38, 0.52)

    def distance(self, p: Points) -> Numbers:
        """Return the distance to half an ellipsoid on a cone that widens below."""
        y, r = p[:, 1], np.hypot(p[:, 0], p[:, 2])
        stretched = np.hypot(r / 0.64, (y - 0.5) / self.dome)
        cap = np.maximum((stretched - 1) * self.dome, 0.5 - y)
        stem = box2(r - (0.15 + 0.09 * (0.55 - y)), np.abs(y - 0.28) - 0.28) - 0.02
        return float32(np.minimum(cap, stem))

    def color(self, p: Points, normal: Points) -> Points:
        """Paint pale flecks on the cap, gills below it, fibers on the stem."""
        y, r, angle = p[:, 1], np.hypot(p[:, 0], p[:, 2]), np.arctan2(p[:, 2], p[:, 0])
        shade = fractal_noise((p * 5).astype(np.float32), 2, self.salt)
        cap = self.cap * (0.6 + 0.7 * shade)[:, None]
        if self.flecked:
            slope = np.arctan2(r, np.maximum(y - 0.4, 0.02)) / np.maximum(r, 0.05)
            flat = np.stack([p[:, 0] * slope, p[:, 2] * slope], 1) * 3.6
            near, _, size = cells(flat.astype(np.float32), self.salt)
            cap = blend(cap, hsv(0.12, 0.1, 0.95), smoothstep(0.04, -0.04, near - 0.16 - 0.16 * size))
        pale = hsv(0.11, 0.16, 0.9)
        gills = pale * (0.55 + 0.25 * np.sin(angle * 40))[:, None]
        stem = pale * (0.75 + 0.35 * fractal_noise((p * np.array([12, 2, 12])).astype(np.float32), 2))[:, None]
        below = np.where((r > 0.24)[:, None], gills, stem)
        return float32(np.where((y > 0.51)[:, None], cap, below))


class Leaf(Shape):
    """A curled leaf on the table, smooth or lobed."""

    name = "leaf"
    center, radius, gloss, stride = 0.1, 1.25, 0.2, 0.45

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        hue = rng.uniform(0.2, 0.32)
        self.blade = hsv(hue, rng.uniform(0.6, 0.9), rng.uniform(0.4, 0.75))
        self.lobes = rng.uniform(0.15, 0.3) if rng.uniform() < 0.5 else 0.0
        self.width, self.curl = rng.uniform(0.36, 0.52), rng.uniform(0.1, 0.45)

    def distance(self, p: Points) -> Numbers:
        """Return the distance to a thin sheet over its outline, bent upward, with a stalk."""
        x, y, z = p[:, 0], p[:, 1], p[:, 2]
        t = np.clip(1 - (x / 0.95) ** 2, 0, 1)
        width = self.width * t**0.75 * (1 - 0.25 * x) * (1 - self.lobes * (1 + np.cos(x * 17)))
        height = 0.03 + self.curl * (0.3 * x**2 + z**2)
        outline = np.maximum(np.abs(z) - width, np.abs(x) - 0.95)
        blade = np.maximum(outline * 0.8, np.abs(y - height) - 0.018)
        return float32(np.minimum(blade, capsule(p, (-1.18, 0.06, 0.05), (-0.85, 0.1, 0.0), 0.025)))

    def color(self, p: Points, normal: Points) -> Points:
        """Paint veins, a wilting edge, brown spots."""
        x, z = p[:, 0], p[:, 2]
        side = np.abs(z)
        vein = np.minimum(np.abs(((x - side * 0.7) * 6) % 1 - 0.5) * 0.16 + 0.01, side)
        patches = fractal_noise((p * 4).astype(np.float32), 3, self.salt)
        blade = blend(self.blade, self.blade * 0.4 + hsv(0.1, 0.8, 0.5) * 0.6, smoothstep(0.5, 0.7, patches))
        return blend(blade, self.blade * 0.5 + np.float32(0.35), smoothstep(0.035, 0.012, vein.astype(np.float32)))

    def pose(self, rng: np.random.Generator) -> tuple[Array, float]:
        """Choose the pose: flat, or a little tilted."""
        tilt = np.eye(3, dtype=np.float32)
        angle = rng.uniform(-0.08, 0.08)
        tilt[0, :2], tilt[1, :2] = (np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))
        return turn(rng.uniform(0, 2 * np.pi)) @ tilt, 0.02 + abs(float(np.sin(angle))) * 0.9


class Donut(Shape):
    """A ring of dough with icing and sprinkles."""

    name = "donut"
    center, radius, gloss = 0.25, 0.72, 0.5

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        hue, saturation, value = [(0.94, 0.5, 0.9), (0.06, 0.7, 0.3)][rng.integers(2)]
        self.icing, self.dough = hsv(hue, saturation, value), hsv(0.09, 0.6, rng.uniform(0.6, 0.8))
        self.sprinkled = rng.uniform() < 0.9
        self.waves = int(rng.integers(5, 10))

    def distance(self, p: Points) -> Numbers:
        """Return the distance to a torus, a little swollen on top."""
        r = np.hypot(p[:, 0], p[:, 2])
        return float32(np.hypot(r - 0.43, (p[:, 1] - 0.25) * 1.02) - 0.24)

    def color(self, p: Points, normal: Points) -> Points:
        """Paint icing down to a wavy edge; short strokes of many colors."""
        angle = np.arctan2(p[:, 2], p[:, 0])
        edge = 0.25 + 0.05 * np.sin(angle * self.waves) + 0.03 * np.sin(angle * 3 + self.salt)
        dough = self.dough * (0.7 + 0.5 * fractal_noise((p * 9).astype(np.float32), 3, self.salt))[:, None]
        icing = np.broadcast_to(self.icing, p.shape)
        if self.sprinkled:
            _, offset, identity = cells((p[:, [0, 2]] * 7).astype(np.float32), self.salt)
            heading = identity * 6.28 * 3
            along = offset[:, 0] * np.cos(heading) + offset[:, 1] * np.sin(heading)
            across = offset[:, 1] * np.cos(heading) - offset[:, 0] * np.sin(heading)
            stroke = (np.abs(along) < 0.3) & (np.abs(across) < 0.11)
            tint = 0.5 + 0.5 * np.cos(6.28 * (identity[:, None] * 5 + np.array([0, 0.33, 0.67])))
            icing = np.where(stroke[:, None], tint, icing)
        return blend(dough, icing.astype(np.float32), smoothstep(-0.015, 0.015, (p[:, 1] - edge).astype(np.float32)))


SHAPES: tuple[type[Shape], ...] = (Apple, Mug, Can, Block, Mushroom, Leaf, Donut)

LYING: Array = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]], np.float32)


def turn(angle: float) -> Array:
    """Return the rotation about the vertical axis."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], np.float32)


def box2(a: Numbers, b: Numbers) -> Numbers:
    """Combine two distances to slabs to the distance to their common part."""
    return float32(np.hypot(np.maximum(a, 0), np.maximum(b, 0)) + np.minimum(np.maximum(a, b), 0))


def capsule(p: Points, start: tuple[float, float, float], end: tuple[float, float, float], radius: float) -> Numbers:
    """Return the distance to a line with round ends."""
    a, line = np.array(start, np.float32), np.array(end, np.float32) - np.array(start, np.float32)
    t = np.clip((p - a) @ line / (line @ line), 0, 1)
    x, y, z = (p[:, axis] - a[axis] - t * line[axis] for axis in range(3))
    return float32(np.sqrt(x * x + y * y + z * z) - radius)
