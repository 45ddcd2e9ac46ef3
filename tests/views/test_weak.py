"""Training geometry: the same crop as resizing the whole image first, exact sizes, masks and images together."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfmask.views.weak import Geometry, Window, covered, cut_image, cut_target, scaled_size
from tests.oracles.geometry import cut_whole

SIZES = [(500, 375), (375, 500), (333, 500), (101, 67), (480, 360)]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def picture(width: int, height: int, seed: int, bands: int = 3) -> np.ndarray:
    """Large shapes with fine grain, as in a photograph."""
    rng = np.random.default_rng(seed)
    shapes = rng.integers(0, 256, (height // 20 + 2, width // 20 + 2, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(shapes).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    image = np.clip(image + rng.integers(-20, 21, image.shape), 0, 255).astype(np.uint8)
    return np.concatenate([image] * (-(-bands // 3)), axis=2)[:, :, :bands]


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_cutting_the_window_equals_resizing_the_whole_image(resample: str):
    different, total = 0, 0
    for seed in range(40):
        width, height = SIZES[seed % len(SIZES)]
        crop = (321, 96)[seed % 2]
        image = picture(width, height, seed)
        window = Geometry(crop).sample(np.random.default_rng(seed), width, height)
        fast = cut_image(image, window, crop, fill=np.array([9, 8, 7], np.uint8), resample=resample)
        plain = cut_whole(
            image,
            size=window.size,
            corner=window.corner,
            crop=crop,
            flip=window.flip,
            fill=(9, 8, 7),
            resample=FILTERS[resample],
        )
        levels = np.abs(fast.transpose(1, 2, 0).astype(int) - plain)
        assert levels.max() <= 2
        different, total = different + (levels > 0).sum(), total + levels.size
    assert different / total < 0.004


def test_masks_are_cut_exactly():
    for seed in range(150):
        width, height = SIZES[seed % len(SIZES)]
        crop = (321, 518, 64)[seed % 3]
        target = np.random.default_rng(seed).integers(0, 21, (height, width), dtype=np.uint8)
        window = Geometry(crop).sample(np.random.default_rng(1000 + seed), width, height)
        plain = cut_whole(
            target,
            size=window.size,
            corner=window.corner,
            crop=crop,
            flip=window.flip,
            fill=255,
            resample=Image.Resampling.NEAREST,
        )
        assert np.array_equal(cut_target(target, window, crop), plain)


def test_sizes_equal_the_recorded_table(shared: Path):
    table = json.loads((shared / "golden/unimatch/augmentation_stats.json").read_text())
    rows = table["resize_table_w_h_longside_outw_outh"]
    assert len(rows) > 10
    for width, height, long_side, out_width, out_height in rows:
        assert scaled_size(width, height, long_side) == (out_width, out_height)


def test_scale_and_padding_have_the_published_distribution(shared: Path):
    recorded = json.loads((shared / "golden/unimatch/augmentation_stats.json").read_text())["weak_geometry"]
    assert recorded
    for number, (key, expected) in enumerate(recorded.items()):
        width, height = map(int, key.split("_")[0].split("x"))
        geometry = Geometry(int(key.split("crop")[1]))
        rng, draws = np.random.default_rng(number), 4000
        windows = [geometry.sample(rng, width, height) for _ in range(draws)]
        measured = {
            "scale": np.array([max(window.size) / max(width, height) for window in windows]),
            "padded_fraction": np.array([1 - math.prod(window.extent) / geometry.crop**2 for window in windows]),
        }
        inverse = 1 / draws + 1 / expected["draws"]
        for name, values in measured.items():
            want = expected[name]
            assert abs(values.mean() - want["mean"]) < 4 * want["std"] * math.sqrt(inverse), (key, name)
            for percent in (1, 5, 25, 50, 75, 95, 99):
                q, level = percent / 100, want[f"p{percent:02d}"]
                tolerance = 4 * math.sqrt(q * (1 - q) * inverse)
                below, up_to = (values < level - 1e-4).mean(), (values <= level + 1e-4).mean()
                assert below - tolerance <= q <= up_to + tolerance, (key, name, percent)


def test_the_corner_is_uniform_over_all_positions():
    geometry = Geometry(crop=90, scale=(1.0, 1.0))
    rng = np.random.default_rng(0)
    corners = np.array([geometry.sample(rng, 100, 80).corner for _ in range(6600)])
    counts = np.bincount(corners[:, 0])
    assert len(counts) == 11  # 0 .. 10
    assert np.abs(counts - 600).max() < 4.5 * math.sqrt(600)
    assert not corners[:, 1].any()  # the image is lower than the crop: padded, never moved


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("point", [(0.001, 0.001), (0.999, 0.999), (0.5, 0.2)])
def test_a_crop_around_a_point_holds_the_point_and_may_have_it_anywhere(point: tuple[float, float], flip: float):
    geometry, rng = Geometry(crop=40, scale=(0.5, 2.0), flip=flip), np.random.default_rng(0)
    for _ in range(200):
        window = geometry.sample(rng, 100, 80, around=point)
        for place, corner, side, extent in zip(point, window.corner, window.size, window.extent, strict=True):
            assert corner <= place * side < corner + extent
            assert 0 <= corner <= side - extent
    corners = {geometry.sample(rng, 100, 80, around=(0.5, 0.5)).corner[0] for _ in range(200)}
    assert len(corners) > 20


def test_image_mask_and_coverage_agree_under_flip_and_padding():
    image = np.full((30, 40, 3), 200, dtype=np.uint8)
    target = np.full((30, 40), 3, dtype=np.uint8)
    for flip in (False, True):
        window = Window(size=(40, 30), corner=(0, 0), extent=(40, 30), flip=flip)
        crop = cut_image(image, window, 64, fill=np.zeros(3, np.uint8))
        left, right, bottom = covered(window, 64)
        inside = np.zeros((64, 64), dtype=bool)
        inside[:bottom, left:right] = True
        assert np.array_equal(crop[0] == 200, inside)
        assert np.array_equal(cut_target(target, window, 64) == 3, inside)
        assert (crop[:, ~inside] == 0).all()


@pytest.mark.parametrize("bands", [1, 2, 4, 6, 8])
def test_any_number_of_bands_is_resampled_like_three(bands: int):
    image = picture(120, 90, 0, bands)
    window = Geometry(64).sample(np.random.default_rng(3), 120, 90)
    cut = cut_image(image, window, 64, fill=np.arange(bands, dtype=np.uint8))
    for band in range(bands):
        rgb = np.stack([image[:, :, band]] * 3, axis=2)
        alone = cut_image(rgb, window, 64, fill=np.full(3, band, dtype=np.uint8))
        assert np.array_equal(cut[band], alone[0])


def test_the_window_depends_on_nothing_but_the_generator():
    first, second = (Geometry(64).sample(np.random.default_rng([7, 0, 5]), 300, 200) for _ in range(2))
    assert first == second
    assert first != Geometry(64).sample(np.random.default_rng([7, 0, 6]), 300, 200)


def test_tiny_images_still_give_a_crop():
    window = Geometry(32).sample(np.random.default_rng(0), 1, 3)
    crop = cut_image(np.full((3, 1, 3), 50, np.uint8), window, 32, fill=np.zeros(3, np.uint8))
    assert crop.shape == (3, 32, 32)
    assert (crop == 50).any()
