"""Color operations of AugSeg against Pillow, and against images recorded from the authors' code."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from halfmask.views import pillow_ops
from halfmask.views.pillow_ops import OPERATIONS, RandomColors, draw

ENHANCED = {"contrast", "brightness", "color", "sharpness"}


def by_pillow(name: str, image: Image.Image, strength: float) -> Image.Image:
    if name in ("autocontrast", "equalize"):
        return getattr(ImageOps, name)(image)
    if name in ("posterize", "solarize"):
        return getattr(ImageOps, name)(image, int(strength))
    if name == "blur":
        return image.filter(ImageFilter.GaussianBlur(radius=strength))
    if name in ENHANCED:
        return getattr(ImageEnhance, name.capitalize())(image).enhance(strength)
    if name == "hue":
        hue, saturation, value = image.convert("HSV").split()
        turned = (np.asarray(hue).astype(int) + int(255 * strength)) % 256
        return Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")
    return image


def images(count: int) -> list[np.ndarray]:
    """Noise, few values, smooth, one color."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        noise = rng.integers(0, 256, (37, 29, 3), dtype=np.uint8)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
        smooth = np.array(coarse.resize((29, 37), Image.Resampling.BICUBIC))
        flat = np.full((37, 29, 3), rng.integers(0, 256, 3), dtype=np.uint8)
        made.append(
            [noise, noise // rng.integers(2, 30) + rng.integers(0, 100), smooth, flat][number % 4].astype("uint8")
        )
    return made


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_that_of_pillow(name):
    rng = np.random.default_rng(1)
    for pixels in images(24):
        strength = pillow_ops._strength(name, float(rng.random()))
        found = OPERATIONS[name](torch.from_numpy(pixels).permute(2, 0, 1).long(), strength)
        expected = np.asarray(by_pillow(name, Image.fromarray(pixels), strength))
        assert np.array_equal(found.permute(1, 2, 0).numpy(), expected), strength


def test_operations_give_the_recorded_images(golden):
    data = golden("peers/augseg")
    source = data["strong_input"].permute(2, 0, 1).long()
    names = [name for name in data if name.startswith("strong_") and name != "strong_input"]
    assert len(names) == 19
    for name in names:
        _, operation, strength = name.split("_")
        found = OPERATIONS[operation](source, float(strength))
        assert (found.permute(1, 2, 0) - data[name].long()).abs().max() <= 1, name  # 1 with another release of Pillow


def test_strengths_stay_in_their_ranges():
    ends = {name: (pillow_ops._strength(name, 0.0), pillow_ops._strength(name, 1 - 1e-9)) for name in OPERATIONS}
    assert ends["posterize"] == (4, 8)
    assert ends["solarize"] == (1, 256)
    assert ends["blur"] == pytest.approx((0.1, 2.0))
    assert ends["hue"] == pytest.approx((-0.5, 0.5))
    assert ends["contrast"] == pytest.approx((0.95, 0.05))


def test_one_to_three_operations_are_drawn_each_as_often_as_another():
    drawn = [draw(3) for _ in range(3000)]
    assert {len(chain) for chain in drawn} == {1, 2, 3}
    names = [name for chain in drawn for name, _ in chain]
    shares = {name: names.count(name) / len(names) for name in OPERATIONS}
    assert min(shares.values()) > 0.07
    assert max(shares.values()) < 0.11
    assert not {name for _ in range(300) for name, _ in draw(3, colored=False)} & {"color", "hue"}


def test_views_keep_shape_and_range_and_differ_between_images():
    image = torch.rand(1, 3, 16, 16).expand(6, -1, -1, -1)
    found = RandomColors()(image)
    assert found.shape == image.shape
    assert 0 <= found.min() <= found.max() <= 1
    assert len({tuple(view.flatten().tolist()) for view in found}) > 1
    assert RandomColors()(torch.rand(2, 2, 3, 8, 8)).shape == (2, 2, 3, 8, 8)
    assert RandomColors()(torch.rand(2, 4, 8, 8)).shape == (2, 4, 8, 8)
