"""Protocols of inference against recorded predictions, hand-made windows and one-by-one computation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from halfmask.errors import RecipeError, ShapeError
from halfmask.infer.inference import _scaled, class_map, probabilities, upsampled_argmax, windows
from halfmask.infer.metrics import ConfusionMatrix
from halfmask.models.model import ChangeSegmenter
from halfmask.recipe.read import EvalRecipe
from halfmask.views.weak import Window, cut_image
from tests.oracles.class_map import upsampled_argmax as plain
from tests.oracles.confusion import areas
from tests.run.toy import random_window_model, small_model, window_model

Golden = Callable[[str], dict[str, Tensor]]


def slide(window: int, **more: Any) -> EvalRecipe:
    return EvalRecipe(mode="slide", window=window, **more)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mode", ["slide", "whole"])
@pytest.mark.parametrize("batch", [1, 4])
def test_recorded_predictions_of_the_allspark_protocols(
    golden: Golden, mode: str, batch: int, dtype: torch.dtype
) -> None:
    tensors = golden("allspark/evaluation")
    model = window_model(torch.cat([tensors["toy/A"], tensors["toy/B"]], dim=1).to(dtype))
    protocol = EvalRecipe(mode=mode, window=33, stride=22, border="clip", batch=batch, absent_classes="zero")
    matrix = ConfusionMatrix(19)
    for number in (1, 2, 3):
        found, target = (
            class_map(model, tensors[f"slide/image{number}"].to(dtype), protocol),
            tensors[f"slide/mask{number}"],
        )
        assert found.dtype == torch.uint8
        assert torch.equal(found, tensors[f"{mode}/prediction{number}"])
        if mode == "slide":
            counts = np.stack(areas(found.numpy(), target.numpy(), 19))
            assert np.array_equal(counts, tensors[f"slide/intersection_union_target{number}"].numpy())
        matrix.update(found, target)
    scores = matrix.scores(tuple(map(str, range(19))), "zero")
    assert scores.miou == pytest.approx(tensors[f"{mode}/miou"].item() / 100, abs=1e-10)
    assert scores.iou == pytest.approx((tensors[f"{mode}/iou_per_class"] / 100).tolist(), abs=1e-10)


def test_windows_come_in_the_recorded_sizes_and_order(shared: Path) -> None:
    with safe_open(shared / "golden" / "allspark" / "evaluation.safetensors", "pt") as file:
        meta = file.metadata()
    sizes = json.loads(meta["config"])["sizes"]
    found = [
        [height, width]
        for size in sizes
        for _, _, height, width in windows(tuple(size), slide(33, stride=22, border="clip"))
    ]
    assert found == json.loads(meta["window_sizes_in_call_order"])


def test_cityscapes_windows_of_both_published_borders() -> None:
    clip = windows((1024, 2048), slide(801, border="clip"))
    assert [box[:2] for box in clip] == [(r, c) for r in (0, 534) for c in (0, 534, 1068, 1602)]
    assert {box[2] for box in clip} == {801, 490}
    assert {box[3] for box in clip} == {801, 446}
    shift = windows((1024, 2048), slide(798, border="shift"))
    assert [box[:2] for box in shift] == [(r, c) for r in (0, 226) for c in (0, 532, 1064, 1250)]
    assert {box[2:] for box in shift} == {(798, 798)}


@pytest.mark.parametrize("border", ["shift", "clip"])
@pytest.mark.parametrize("size", [(1, 1), (5, 90), (28, 28), (29, 55), (70, 31)])
def test_windows_cover_every_pixel_and_stay_inside(border: str, size: tuple[int, int]) -> None:
    covered = torch.zeros(size)
    for top, left, height, width in windows(size, slide(28, border=border)):
        assert height > 0 < width
        assert top + height <= size[0]
        assert left + width <= size[1]
        covered[top : top + height, left : left + width] += 1
    assert covered.min() >= 1


def test_an_image_smaller_than_the_window_is_one_window() -> None:
    assert windows((20, 25), slide(28)) == [(0, 0, 20, 25)]
    model = random_window_model()
    image = torch.rand(1, 3, 20, 25, dtype=torch.float64)
    torch.testing.assert_close(probabilities(model, image, slide(28)), model(image).softmax(1))


@pytest.mark.parametrize("border", ["shift", "clip"])
@pytest.mark.parametrize("fit", ["pad", "resize"])
def test_batched_windows_equal_windows_one_by_one(border: str, fit: str) -> None:
    model = random_window_model(size_multiple=4)
    images = torch.rand(2, 3, 50, 41, dtype=torch.float64)
    single = probabilities(model, images, slide(18, border=border, fit=fit, batch=1))
    batched = probabilities(model, images, slide(18, border=border, fit=fit, batch=16))
    torch.testing.assert_close(batched, single, rtol=0, atol=1e-14)
    alone = torch.cat([probabilities(model, image[None], slide(18, border=border, fit=fit)) for image in images])
    torch.testing.assert_close(batched, alone, rtol=0, atol=1e-14)


def test_overlapping_windows_are_averaged_per_pixel() -> None:
    model = random_window_model()
    image = torch.rand(1, 3, 17, 28, dtype=torch.float64)
    total, count = torch.zeros(1, 3, 17, 28, dtype=torch.float64), torch.zeros(17, 28, dtype=torch.float64)
    for top in (0, 1):
        for left in (0, 10, 12):
            total[:, :, top : top + 16, left : left + 16] += model(
                image[:, :, top : top + 16, left : left + 16]
            ).softmax(1)
            count[top : top + 16, left : left + 16] += 1
    found = probabilities(model, image, slide(16))
    torch.testing.assert_close(found, total / count, rtol=0, atol=1e-14)
    torch.testing.assert_close(found.sum(1), torch.ones(1, 17, 28, dtype=torch.float64))


def test_a_window_cut_too_short_for_the_network_is_named_with_the_cure() -> None:
    model = random_window_model()

    def refuse_small(module: Any, inputs: tuple[Tensor]) -> None:
        if min(inputs[0].shape[-2:]) < 29:
            raise ShapeError("image is small but encoder x needs 29 or more. Use a larger data.crop.")

    model.encoder.register_forward_pre_hook(refuse_small)
    image = torch.rand(1, 3, 64, 70, dtype=torch.float64)
    cure = r"clip ends with a window of 28x64 pixels.*64x64.*needs 29 or more\. Use eval\.border=shift"
    with pytest.raises(ShapeError, match=cure) as caught:
        class_map(model, image, slide(64, stride=42, border="clip"))
    assert "data.crop" not in str(caught.value)
    assert class_map(model, image, slide(64, stride=42)).shape == (1, 64, 70)


def test_padding_mirrors_the_image_and_is_cut_off_again() -> None:
    model = random_window_model(size_multiple=8)
    image = torch.rand(2, 3, 13, 21, dtype=torch.float64)
    found = class_map(model, image, EvalRecipe(fit="pad"))
    assert model.encoder.calls == [(2, 3, 16, 24)]
    mirrored = torch.cat([image, image[:, :, 9:12].flip(2)], dim=2)
    mirrored = torch.cat([mirrored, mirrored[..., 17:20].flip(3)], dim=3)
    assert torch.equal(found, model(mirrored)[:, :, :13, :21].argmax(1).byte())


def test_an_image_smaller_than_its_padding_repeats_its_border() -> None:
    model = random_window_model(size_multiple=8)
    image = torch.rand(1, 3, 2, 3, dtype=torch.float64)
    repeated = F.pad(image, (0, 5, 0, 6), mode="replicate")
    assert torch.equal(class_map(model, image, EvalRecipe()), model(repeated)[:, :, :2, :3].argmax(1).byte())


@pytest.mark.parametrize(("side", "fitted"), [(49, 56), (48, 42), (3, 14), (84, 84)])
def test_resizing_rounds_to_the_nearest_multiple_half_up(side: int, fitted: int) -> None:
    model = random_window_model(size_multiple=14)
    found = class_map(model, torch.rand(1, 3, side, 42, dtype=torch.float64), EvalRecipe(fit="resize"))
    assert model.encoder.calls[0][2:] == (fitted, 42)
    assert found.shape == (1, side, 42)


def test_resizing_before_normalization_equals_resizing_after() -> None:
    model = small_model().double()
    image = torch.rand(1, 3, 45, 61, dtype=torch.float64)
    model.encoder.size_multiple = 14
    found = probabilities(model, image, EvalRecipe(fit="resize"))
    normalized = F.interpolate((image - model.mean) / model.std, (42, 56), mode="bilinear", align_corners=True)
    features = model.encoder(normalized)
    logits = model.classify(model.decode(features), (42, 56))
    logits = F.interpolate(logits, (45, 61), mode="bilinear", align_corners=True)
    torch.testing.assert_close(found, logits.softmax(1), rtol=0, atol=1e-12)


def test_flip_averages_both_views_in_probability_space() -> None:
    model = small_model().double()
    image = torch.rand(1, 3, 32, 40, dtype=torch.float64)
    found = probabilities(model, image, EvalRecipe(flip=True))
    expected = (model(image).softmax(1) + model(image.flip(-1)).softmax(1).flip(-1)) / 2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    # a mirrored image gives the mirrored result
    torch.testing.assert_close(probabilities(model, image.flip(-1), EvalRecipe(flip=True)), found.flip(-1))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_scales_average_views_of_the_scaled_image(scale: float, aligned: bool) -> None:
    model = small_model().double()
    model.encoder.size_multiple = 8
    image = torch.rand(1, 3, 32, 48, dtype=torch.float64)
    size = (int(32 * scale), int(48 * scale))
    smooth = scale < 1 and not aligned
    other = F.interpolate(image, size, mode="bilinear", align_corners=aligned, antialias=smooth)
    view = F.interpolate(model(other).softmax(1), (32, 48), mode="bilinear", align_corners=aligned)
    found = probabilities(model, image, EvalRecipe(scales=(1.0, scale), antialias=not aligned))
    torch.testing.assert_close(found, (model(image).softmax(1) + view) / 2, rtol=0, atol=1e-13)


@pytest.mark.parametrize("scale", [0.5, 0.375])
def test_a_shrunk_image_is_what_training_shows_the_network(scale: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    side = int(64 * scale)
    trained = cut_image(image, Window((side, side), (0, 0), (side, side), flip=False), side, fill=np.zeros(3, np.uint8))
    shown = _scaled(torch.from_numpy(image).permute(2, 0, 1)[None] / 255, scale, True)[0]
    assert (shown - torch.from_numpy(trained) / 255).abs().max() < 1 / 255  # Pillow rounds twice
    rough = _scaled(torch.from_numpy(image).permute(2, 0, 1)[None] / 255, scale, False)[0]
    assert (rough - torch.from_numpy(trained) / 255).abs().mean() > 0.05


@pytest.mark.parametrize(
    "protocol",
    [EvalRecipe(), EvalRecipe(fit="resize"), slide(16), EvalRecipe(flip=True), EvalRecipe(scales=(0.5, 1.0))],
    ids=["pad", "resize", "slide", "flip", "scales"],
)
def test_the_class_map_is_the_most_probable_class(protocol: EvalRecipe) -> None:
    model = small_model().double()
    model.encoder.size_multiple = 8
    image = torch.rand(2, 3, 30, 37, dtype=torch.float64)
    assert torch.equal(class_map(model, image, protocol), probabilities(model, image, protocol).argmax(1).byte())


def test_half_precision_logits_are_averaged_in_float32() -> None:
    model = small_model().bfloat16()
    found = probabilities(model, torch.rand(1, 3, 32, 32).bfloat16(), slide(16))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(1), torch.ones(1, 32, 32))


@pytest.mark.parametrize("protocol", [{}, {"fit": "resize"}, {"flip": True}, {"mode": "slide", "window": 32}])
def test_bfloat16_is_asked_for_and_changes_little(protocol: dict[str, Any]) -> None:
    model, image = small_model(), torch.rand(1, 3, 50, 41)
    plain, mixed = (EvalRecipe(**protocol, precision=name) for name in ("32-true", "bf16-mixed"))
    exact, near = probabilities(model, image, plain), probabilities(model, image, mixed)
    assert near.dtype == torch.float32
    assert 0 < (exact - near).abs().max() < 0.02
    sure = exact.topk(2, dim=1).values
    sure = sure[:, 0] - sure[:, 1] > 0.04  # twice the error
    assert (class_map(model, image, mixed) == class_map(model, image, plain))[sure].all()
    assert torch.equal(
        probabilities(model.double(), image.double(), mixed), probabilities(model, image.double(), plain)
    )


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [((7, 9), (70, 91)), ((1, 5), (40, 33)), ((12, 10), (5, 6)), ((8, 8), (8, 8))])
def test_row_bands_equal_the_textbook_class_map(
    size: tuple[tuple[int, int], tuple[int, int]], align_corners: bool
) -> None:
    logits = torch.randn(2, 5, *size[0], dtype=torch.float64)
    expected = plain(logits, size[1], align_corners).byte()
    assert torch.equal(upsampled_argmax(logits, size[1], align_corners, impl="whole"), expected)
    assert torch.equal(upsampled_argmax(logits, size[1], align_corners, impl="bands"), expected)
    kept = upsampled_argmax(logits, size[1], align_corners, keep=(4, 3), impl="bands")
    assert torch.equal(kept, expected[:, :4, :3])


def test_row_bands_in_float32_differ_only_where_classes_tie() -> None:
    logits = torch.randn(1, 19, 32, 64)
    bands = upsampled_argmax(logits, (256, 512), False, impl="bands")
    expected = plain(logits, (256, 512), False)
    best = F.interpolate(logits, (256, 512), mode="bilinear").topk(2, dim=1).values
    differs = bands != expected
    assert differs.float().mean() < 1e-4
    assert ((best[:, 0] - best[:, 1])[differs] < 1e-5).all()


def test_more_classes_than_a_byte_holds_give_int64() -> None:
    logits = torch.zeros(1, 256, 2, 2)
    logits[:, 255] = 1
    found = upsampled_argmax(logits, (4, 4), False)
    assert found.dtype == torch.int64
    assert found.unique().tolist() == [255]


def test_windows_without_a_size_say_what_to_set() -> None:
    with pytest.raises(RecipeError, match=r"eval\.window=512"):
        windows((50, 50), EvalRecipe(mode="slide"))


def test_a_stride_that_leaves_gaps_is_refused() -> None:
    with pytest.raises(ShapeError, match="at most 20"):
        windows((50, 50), slide(20, stride=21))


@pytest.mark.parametrize("protocol", [EvalRecipe(fit="pad"), EvalRecipe(fit="resize"), slide(16, fit="pad")])
def test_image_pairs_keep_their_time_axis(protocol: EvalRecipe) -> None:
    single = random_window_model(size_multiple=4)
    pairs = ChangeSegmenter(single.encoder, single.decoder, 3).double().eval()
    pairs.classifier = single.classifier
    # The encoder is linear, so against an all-black date the difference of features is the other date's features.
    before = torch.rand(2, 3, 13, 18, dtype=torch.float64)
    image = torch.stack([before, torch.zeros_like(before)], dim=1)
    torch.testing.assert_close(probabilities(pairs, image, protocol), probabilities(single, before, protocol))
    assert torch.equal(class_map(pairs, image, protocol), class_map(single, before, protocol))
