"""The rendered scenes: repeatable, labeled truly, and varied."""

import numpy as np
import pytest

from halfmask.demo.dataset import render_scene
from halfmask.demo.noise import cells, fractal_noise, value_noise
from halfmask.demo.render import render
from halfmask.demo.scene import CLASSES, PALETTE, Placed, draw_scene
from halfmask.demo.shapes import SHAPES


def test_equal_seeds_give_equal_scenes_and_others_do_not():
    image, mask = render_scene((1, 0, 0), 32)
    again, mask_again = render_scene((1, 0, 0), 32)
    other, _ = render_scene((1, 0, 1), 32)
    assert (image == again).all()
    assert (mask == mask_again).all()
    assert (image != other).mean() > 0.5


def test_asked_kinds_are_in_the_scene():
    scene = draw_scene(np.random.default_rng(0), kinds=(3, 6))
    assert {3, 6} <= {thing.label for thing in scene.things}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_distance_fields_never_overshoot_and_fit_their_bounding_sphere(shape):
    """Sphere tracing is right if a step of distance * stride never leaves the surface behind."""
    rng = np.random.default_rng(0)
    thing = shape(rng)
    points = rng.uniform(-1.4, 1.4, (4000, 3)).astype(np.float32)
    values = thing.distance(points)
    assert values.dtype == np.float32
    from_center = np.linalg.norm(points - [0, thing.center, 0], axis=1)
    assert (values[from_center > thing.radius] > 0).all()
    assert (values < 0).any() or shape.name == "leaf"  # a leaf is thinner than the samples are dense
    nearby = points + rng.normal(0, 0.02, points.shape).astype(np.float32)
    slope = np.abs(thing.distance(nearby) - values) / np.linalg.norm(nearby - points, axis=1)
    assert np.quantile(slope, 0.999) * thing.stride < 1.1


@pytest.mark.parametrize("label", range(1, len(CLASSES)))
def test_a_thing_alone_is_seen_where_it_stands(label):
    rng = np.random.default_rng(label)
    scene = draw_scene(rng)
    shape = SHAPES[label - 1](rng)
    alone = Placed(shape, label, np.eye(3, dtype=np.float32), np.array([0, 0.05, 0], np.float32), 1.0)
    empty, background = render(type(scene)(**{**vars(scene), "things": ()}), 48, np.random.default_rng(0))
    image, mask = render(type(scene)(**{**vars(scene), "things": (alone,)}), 48, np.random.default_rng(0))
    assert set(np.unique(background)) == {0}
    assert set(np.unique(mask)) == {0, label}
    assert 0.01 < (mask == label).mean() < 0.6
    _, columns = np.nonzero(mask)
    assert abs(columns.mean() - 24) < 12  # near the middle, where the camera looks
    assert np.abs(image.astype(int) - empty).mean() > 1


def test_noise_is_smooth_bounded_and_repeatable():
    points = np.random.default_rng(0).uniform(-5, 5, (2000, 2)).astype(np.float32)
    for field in (value_noise, fractal_noise):
        values = field(points)
        assert 0 <= values.min() < values.max() <= 1
        assert (values == field(points)).all()
        assert np.abs(field(points + np.float32(1e-3)) - values).max() < 0.05
    distance, offset, identity = cells(points)
    assert np.allclose(np.hypot(*offset.T), distance, atol=1e-5)
    assert distance.max() < 1.2
    assert len(np.unique(identity)) > 20


def test_one_color_per_class():
    assert len(set(PALETTE)) == len(PALETTE) == len(CLASSES)
