"""Strong views: the formulas of torchvision and Pillow, both forms, the published distribution."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import functional as tv

from halfmask.views import color
from halfmask.views.blur import gaussian_blur
from halfmask.views.mixing import box_mask, paste
from halfmask.views.strong import StrongAugment, StrongParams
from tests.oracles import strong_views


def images(count: int, bands: int = 3, side: int = 20, dtype: torch.dtype = torch.float64) -> Tensor:
    """Smooth and rough ones, with pure colors, grays, black and white among the pixels."""
    image = torch.rand(count, bands, side, side + 3, dtype=dtype)
    image[:, :, :4] = image[:, :1, :4]
    image[:, :, 4:8] = image[:, :, 4:8].round()
    image[:, :, 8:12, :8] = image[:, :, 8:9, :1]
    return image


def every_order() -> StrongParams:
    """All 24 orders of the color changes, with every combination of the other switches among them."""
    order = torch.cartesian_prod(*[torch.arange(4)] * 4)
    order = order[(order.sort(1).values == torch.arange(4)).all(1)]
    number = torch.arange(len(order))
    return StrongParams(
        jitter=number % 5 != 0,
        order=order,
        factors=StrongAugment().sample(len(order), "cpu").factors,
        gray=number % 7 == 0,
        radius=torch.where(number % 2 == 0, torch.rand(len(order)) * 1.9 + 0.1, 0),
    )


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_both_forms_equal_the_plain_loop(batched: bool, bands: int):
    params = every_order()
    image = images(len(params.jitter), bands)
    view = StrongAugment().apply_params(image, params, batched=batched)
    # The radius enters in the image's precision, its box length in float32 would cost 1e-7.
    torch.testing.assert_close(view, strong_views.strong_views(image, **params._asdict()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("turn", [-0.5, -0.25, -0.1, 0.0, 1 / 6, 0.25, 0.49])
def test_the_hue_change_equals_torchvisions(turn: float):
    image = images(3)
    ours = color.hue(image, torch.full((3, 1, 1, 1), turn, dtype=torch.float64))
    torch.testing.assert_close(ours, tv.adjust_hue(image, turn), rtol=0, atol=1e-6)  # float32 there
    single = color.hue(image.float(), torch.full((3, 1, 1, 1), turn))
    torch.testing.assert_close(single.double(), ours, rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [0.5, 0.93, 1.0, 1.5])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_the_other_color_changes_equal_torchvisions(name: str, factor: float):
    image = images(2)
    ours = getattr(color, name)(image, torch.full((2, 1, 1, 1), factor, dtype=torch.float64))
    torch.testing.assert_close(ours, getattr(tv, f"adjust_{name}")(image, factor), rtol=0, atol=1e-12)


def test_gray_equals_torchvisions():
    image = images(2)
    torch.testing.assert_close(color.gray(image), tv.rgb_to_grayscale(image), rtol=0, atol=1e-12)


@pytest.mark.parametrize("radius", [0.1, 0.63, 1.0, 1.42, 1.9, 3.7])
def test_the_blur_is_pillows_up_to_its_rounding(radius: float):
    rough = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    smooth = np.array(Image.fromarray(rough[:8, :10]).resize((50, 40), Image.Resampling.BICUBIC))
    for image in (rough, smooth):
        expected = np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))).transpose(2, 0, 1)
        expected = torch.from_numpy(expected).double()
        tensor = torch.from_numpy(image).permute(2, 0, 1).double()
        # With the same rounding, the plain form is Pillow's blur, up to a few pixels on the edge between two levels.
        rounded = (strong_views.gaussian_blur(tensor, radius, whole_levels=True) - expected).abs()
        assert rounded.max() <= 1
        assert (rounded > 0).double().mean() < 0.01
        # Without it, six roundings of half a level lie between.
        blurred = gaussian_blur(tensor[None], torch.tensor([radius]), largest=4.0)[0]
        assert (blurred - expected).abs().max() <= 3


def test_a_blur_keeps_constants_and_radius_zero_keeps_everything():
    image = images(2)
    flat = torch.full((1, 1, 9, 5), 0.3, dtype=torch.float64)
    torch.testing.assert_close(gaussian_blur(flat, torch.tensor([2.0]), largest=2.0), flat)
    assert torch.equal(gaussian_blur(image, torch.zeros(2), largest=2.0), image)


def test_what_is_not_drawn_leaves_the_image_bit_by_bit():
    image = images(4, dtype=torch.float32)
    params = StrongAugment(jitter=0.0, gray=0.0, blur=0.0).sample(4, "cpu")
    for batched in (True, False):
        assert torch.equal(StrongAugment().apply_params(image, params, batched=batched), image)


@pytest.mark.parametrize("batched", [True, False])
def test_views_stay_in_range_in_float32(batched: bool):
    augment = StrongAugment(jitter=1.0)
    view = augment.apply_params(images(40, dtype=torch.float32), augment.sample(40, "cpu"), batched=batched)
    assert view.min() >= 0
    # A blur's weights sum to 1 only up to rounding.
    assert view.max() <= 1 + 1e-6


def test_the_input_is_not_changed():
    image = images(8, dtype=torch.float32)
    before = image.clone()
    StrongAugment()(image)
    assert torch.equal(image, before)


def test_the_views_of_a_batch_differ_and_follow_the_seed():
    image = images(1, dtype=torch.float32).expand(6, -1, -1, -1)
    augment = StrongAugment(jitter=1.0)
    torch.manual_seed(3)
    first = augment(image)
    torch.manual_seed(3)
    assert torch.equal(first, augment(image))
    assert not torch.equal(first, augment(image))
    assert len({tuple(view.flatten().tolist()) for view in first}) == 6


def test_a_permuted_batch_with_permuted_parameters_gives_the_permuted_views():
    augment, image = StrongAugment(), images(5, dtype=torch.float32)
    params, turned = augment.sample(5, "cpu"), torch.tensor([3, 0, 4, 1, 2])
    permuted = StrongParams(*(values[turned] for values in params))
    view = augment.apply_params(image, params)
    assert torch.equal(augment.apply_params(image[turned], permuted), view[turned])


def test_the_dates_of_a_pair_get_their_own_colors():
    image = images(1, dtype=torch.float32).expand(2, 3, -1, -1)[None]  # one pair of equal dates
    view = StrongAugment(jitter=1.0)(image)
    assert view.shape == image.shape
    assert not torch.equal(view[0, 0], view[0, 1])


def test_in_the_same_light_all_dates_of_a_pair_change_alike():
    pair = images(2, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1, -1)
    view = StrongAugment(jitter=1.0, gray=0.5, same_light=True)(pair)
    assert torch.equal(view[:, 1:], view[:, :1].expand(-1, 2, -1, -1, -1))
    assert not torch.equal(view, pair)
    assert StrongAugment(gray=1.0, same_light=True)(pair).std(2).max() == 0


def test_no_date_of_a_pair_becomes_gray():
    pairs = images(6, dtype=torch.float32).unflatten(0, (3, 2))
    always = StrongAugment(jitter=0.0, gray=1.0, blur=0.0)
    assert torch.equal(always(pairs), pairs)
    assert torch.equal(always(pairs[:, 0]).std(1), torch.zeros_like(pairs[:, 0, 0]))


def test_drawn_parameters_have_the_published_ranges():
    params = StrongAugment().sample(20_000, "cpu")
    spread = 4 * math.sqrt(0.25 / 20_000)
    for mask, probability in ((params.jitter, 0.8), (params.gray, 0.2), (params.radius > 0, 0.5)):
        assert abs(mask.float().mean() - probability) < spread
    low, high = params.factors.amin(0), params.factors.amax(0)
    torch.testing.assert_close(low, torch.tensor([0.5, 0.5, 0.5, -0.25]), rtol=0, atol=1e-3)
    torch.testing.assert_close(high, torch.tensor([1.5, 1.5, 1.5, 0.25]), rtol=0, atol=1e-3)
    radius = params.radius[params.radius > 0]
    assert radius.min() >= 0.1
    assert radius.max() <= 2.0
    torch.testing.assert_close(torch.stack((radius.min(), radius.max())), torch.tensor([0.1, 2.0]), rtol=0, atol=2e-3)
    codes = (params.order * torch.tensor([64, 16, 4, 1])).sum(1)
    assert torch.equal(params.order.sort(1).values[0], torch.arange(4))
    counts = torch.bincount(codes)
    counts = counts[counts > 0].float() / 20_000
    assert len(counts) == 24
    assert (counts - 1 / 24).abs().max() < 4.5 * math.sqrt(1 / 24 / 20_000)


class NoHostVisit(TorchDispatchMode):
    """Raise on operations that would make a GPU wait for the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if any(part in name for part in ("_local_scalar_dense", "nonzero", "unique", "masked_select", "index.Tensor")):
            raise AssertionError(f"{name} visits the host")
        return func(*args, **(kwargs or {}))


def test_the_batched_form_and_mixing_never_ask_the_device():
    augment, image = StrongAugment(), images(6, dtype=torch.float32)
    with NoHostVisit():
        view = augment.apply_params(image, augment.sample(6, "cpu"), batched=True)
        bands = augment.apply_params(image[:, :2], augment.sample(6, "cpu"), batched=True)
        paste(box_mask((6, 20, 23)), view, bands)
        with pytest.raises(AssertionError, match="visits the host"):
            view.max().item()


def measures(view: Tensor, original: Tensor) -> dict[str, Tensor]:
    def variation(x: Tensor) -> Tensor:
        return x.diff(dim=2).abs().mean((1, 2, 3)) + x.diff(dim=3).abs().mean((1, 2, 3))

    change = view - original
    return {
        "mean_abs_change": change.abs().mean((1, 2, 3)),
        "mean_change": change.mean((1, 2, 3)),
        "std_ratio": view.flatten(1).std(1) / original.flatten().std(),
        "total_variation_ratio": variation(view) / variation(original),
        "mean_r": view[:, 0].mean((1, 2)),
        "mean_g": view[:, 1].mean((1, 2)),
        "mean_b": view[:, 2].mean((1, 2)),
    }


def test_strong_views_have_the_published_distribution(shared: Path):
    recorded = json.loads((shared / "golden/unimatch/augmentation_stats.json").read_text())["strong_augmentation"]
    source = load_file(shared / "golden/unimatch/stats_images.safetensors")["strong_image"]
    original = source.permute(2, 0, 1)[None].float() / 255
    draws, chunk = 800, 10
    augment, found = StrongAugment(), []
    fractions = {"is_gray": 0, "is_unchanged": 0}
    for _ in range(draws // chunk):
        view = augment.apply_params(original.expand(chunk, -1, -1, -1), augment.sample(chunk, "cpu"), batched=True)
        found.append(measures(view, original))
        same = (view - view[:, :1]).abs().amax((1, 2, 3)) < 1e-6
        fractions["is_gray"] += int(same.sum())
        fractions["is_unchanged"] += int(((view - original).abs().amax((1, 2, 3)) < 1e-6).sum())

    inverse = 1 / draws + 1 / recorded["draws"]
    for name, count in fractions.items():
        expected = recorded[name]["fraction"]
        assert abs(count / draws - expected) < 4 * math.sqrt(expected * (1 - expected) * inverse), name
    for name in found[0]:
        values, expected = torch.cat([chunk[name] for chunk in found]), recorded[name]
        assert abs(values.mean() - expected["mean"]) < 4 * expected["std"] * math.sqrt(inverse), name
        for percent in (1, 5, 25, 50, 75, 95, 99):
            q, level = percent / 100, expected[f"p{percent:02d}"]
            tolerance = 4 * math.sqrt(q * (1 - q) * inverse)
            below = (values < level - 1e-4).float().mean()
            up_to = (values <= level + 1e-4).float().mean()
            assert below - tolerance <= q <= up_to + tolerance, (name, percent)
