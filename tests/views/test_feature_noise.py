"""Perturbations on recorded draws, their distributions, and what they do at the edges.

Recordings are float32 (1e-5); masks and boxes are compared exactly.
"""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from halfmask.errors import ShapeError
from halfmask.models.decoders.psp import SubPixel
from halfmask.views import feature_noise as perturb
from halfmask.views.components import Boxes, object_boxes
from halfmask.views.feature_noise import (
    ChannelDrop,
    FeatureDrop,
    FeatureNoise,
    Guide,
    GuidedCutout,
    KeepContext,
    KeepObjects,
    Perturbation,
    apply,
    cut_mask,
    cut_range,
    make_guide,
)
from tests.oracles import cct as plain

KINDS: dict[str, Perturbation] = {
    "fnoise": FeatureNoise(0.3),
    "fdrop": FeatureDrop(0.7, 0.9),
    "dropout": ChannelDrop(0.5),
    "context_mask": KeepObjects(),
    "object_mask": KeepContext(),
    "gcutout": GuidedCutout(0.4),
}


def head(tensors: dict[str, Tensor]) -> SubPixel:
    weights = {key.removeprefix("w/upsample."): value for key, value in tensors.items() if key.startswith("w/")}
    made = SubPixel(12, 6)
    names = {"0.weight": "project.weight"}
    names |= {f"{i + 1}.conv.{part}": f"stages.{i}.{part}" for i in range(3) for part in ("weight", "bias")}
    made.load_state_dict({names[key]: value for key, value in weights.items()})
    return made.to(next(iter(weights.values())).dtype)


def table_boxes(table: Tensor, size: tuple[int, int], images: int) -> tuple[Boxes, Tensor]:
    """Boxes and offsets of a recorded table, one slot per row."""
    corners = torch.zeros(images, len(table), 4, dtype=torch.long)
    offset = torch.zeros(1, images, len(table), 2, dtype=torch.long)
    used = torch.zeros(images, len(table), dtype=torch.bool)
    for slot, row in enumerate(table.tolist()):
        corners[row[0], slot], offset[0, row[0], slot] = torch.tensor(row[2:6]), torch.tensor(row[7:9])
        used[row[0], slot] = bool(row[6])
    return Boxes(corners, used, size), offset.clamp_min(0)


def guide_of(inputs: dict[str, Tensor], rule: str = "cells") -> Guide:
    foreground = torch.tensor([False] + [True] * 5)
    return make_guide(inputs["pred_logits"].argmax(1), foreground, (10, 13), rule=rule)


@pytest.mark.parametrize("name", KINDS)
def test_recorded_draws_give_the_recorded_features_outputs_and_gradients(golden, name):
    inputs, tensors = golden("cct/perturb_inputs"), golden(f"cct/perturb_{name}")
    kind, guide = KINDS[name], guide_of(inputs)
    z = inputs["z"].clone().requires_grad_()
    draws = {
        "fnoise": lambda: tensors["draw/uniform_noise"][None, None],
        "fdrop": lambda: tensors["draw/factor"][None],
        "dropout": lambda: tensors["draw/dropout2d_mask"][None],
        "gcutout": lambda: cut_mask(*table_boxes(tensors["draw/cut_table"], (80, 104), 2), 0.4, (10, 13))[:, :, None],
    }.get(name, lambda: kind.sample(z, guide, 1))()
    if "keep_mask" in tensors:
        assert torch.equal(draws[0].float(), tensors["keep_mask"])
    perturbed = apply(kind, z, draws[0])
    assert_close(perturbed.detach(), tensors["z_tilde"], rtol=1e-6, atol=1e-6)
    out = head(tensors)(perturbed)
    assert_close(out.detach(), tensors["out"], rtol=1e-4, atol=1e-5)
    (out * inputs["grad_out"]).sum().backward()
    assert_close(z.grad, tensors["grad_z"], rtol=1e-4, atol=1e-5)


def test_recorded_cuts_are_drawn_exactly(golden):
    tensors = golden("cct/gcutout_cases")
    table = tensors["cut_table"]
    boxes, offset = table_boxes(table, (128, 128), 10)
    assert torch.equal(cut_mask(boxes, offset, 0.4, (128, 128))[0, :, None].byte(), tensors["keep_mask_full"])
    assert torch.equal(cut_mask(boxes, offset, 0.4, (16, 16))[0, :, None].byte(), tensors["keep_mask_stride8"])
    limit = cut_range(table[None, :, 2:6], 0.4)[0]
    used = table[:, 6] == 1
    assert (table[used][:, 7:9] <= limit[used]).all()
    start = table[:, 2:4] + table[:, 7:9]
    assert torch.equal(start[used], table[used][:, 9:11])


def test_the_contour_rule_finds_the_recorded_boxes(golden):
    pytest.importorskip("cv2")
    tensors = golden("cct/gcutout_cases")
    boxes = object_boxes(tensors["labels"] > 0, "contours")
    for image in range(10):
        expected = {tuple(row[2:6]) for row in tensors["cut_table"].tolist() if row[0] == image and row[6]}
        assert {tuple(box) for box in boxes.corners[image][boxes.used[image]].tolist()} == expected
    inputs, table = golden("cct/perturb_inputs"), golden("cct/perturb_gcutout")["draw/cut_table"]
    boxes = guide_of(inputs, "contours").boxes
    found = [(image, *box) for image in range(2) for box in boxes.corners[image][boxes.used[image]].tolist()]
    assert sorted(found) == sorted((row[0], *row[2:6]) for row in table.tolist() if row[6])


def test_cuts_at_full_resolution_are_those_of_the_plain_form():
    z = torch.rand(2, 3, 8, 8)
    own = [[(3, 5, 40, 60), (20, 0, 63, 30)], [(10, 10, 50, 22)]]
    moves = [[(2, 9), (11, 4)], [(0, 6)]]
    corners = torch.tensor([own[0], [*own[1], (0, 0, 0, 0)]])
    offset = torch.tensor([[moves[0], [*moves[1], (0, 0)]]])
    boxes = Boxes(corners, torch.tensor([[True, True], [True, False]]), (64, 64))
    keep = cut_mask(boxes, offset, 0.4, (8, 8))[0, :, None]
    assert torch.equal(z * keep, plain.cutout(z, (64, 64), own, 0.4, moves))


def test_cuts_stay_in_their_boxes_and_take_every_place():
    corners = torch.tensor([[[16, 24, 47, 55]]])
    guide = Guide(torch.ones(1, 64, 64, dtype=torch.bool), Boxes(corners, torch.ones(1, 1, dtype=torch.bool), (64, 64)))
    keep = GuidedCutout(0.4).sample(torch.rand(1, 2, 64, 64), guide, 2000)[:, 0, 0]
    cut = ~keep
    side = int(31 * 0.4)
    assert (cut.sum((1, 2)) == side**2).all()
    assert not cut[:, :24].any()
    assert not cut[:, :, :16].any()
    first = cut.any(1).int().argmax(1)  # leftmost column
    assert sorted(set(first.tolist())) == list(range(16, 16 + int(31 * 0.6) + 1))


@pytest.mark.parametrize("name", KINDS)
def test_gradients_reach_the_embedding(name):
    z = torch.rand(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(2, 64, 64, dtype=torch.long)
    mask[:, 8:40, 8:40] = 1
    guide = make_guide(mask, torch.tensor([False, True]), (8, 8))
    kind = KINDS[name]
    draw = kind.sample(z, guide, 2)[1]
    apply(kind, z, draw).sum().backward()
    with torch.no_grad():
        assert_close(z.grad, kind.factor(z, draw[None])[0].expand_as(z))


def test_noise_is_shared_by_the_batch_but_not_by_decoders():
    z = torch.rand(3, 4, 5, 5)
    draws = FeatureNoise(0.3).sample(z, None, 2)
    assert draws.shape == (2, 1, 4, 5, 5)
    assert not torch.equal(draws[0], draws[1])
    assert draws.abs().max() <= 0.3
    assert draws.abs().max() > 0.25
    assert FeatureNoise(0.3, per_image=True).sample(z, None, 2).shape == (2, 3, 4, 5, 5)


def test_channel_drop_keeps_the_mean():
    z = torch.ones(4, 500, 2, 2)
    draws = ChannelDrop(0.25).sample(z, None, 3)
    assert draws.unique().tolist() == pytest.approx([0, 4 / 3])
    assert draws.mean().item() == pytest.approx(1, abs=0.03)
    assert ChannelDrop(0.25, spatial=False).sample(z, None, 3).shape == (3, 4, 500, 2, 2)


def test_feature_drop_removes_the_most_active_cells_of_each_image():
    z = torch.rand(2, 6, 8, 8)
    z[1] *= 10
    keep = FeatureDrop().factor(z, torch.tensor([0.8]))[0]
    for image in range(2):
        activity = z[image].mean(0)
        assert torch.equal(keep[image, 0] > 0, activity < 0.8 * activity.max())
    gamma = FeatureDrop(0.7, 0.9).sample(z, None, 500)
    assert 0.7 <= gamma.min() < 0.72
    assert 0.88 < gamma.max() <= 0.9


def test_feature_drop_works_on_signed_features():
    # The raw rule drops nothing where all means are negative.
    z = -torch.rand(2, 6, 8, 8) - 0.5
    assert (plain.feature_drop(z, 0.8) == z).all() or (plain.feature_drop(z, 0.8) == 0).all()
    keep = FeatureDrop().factor(z, torch.tensor([0.8]))[0, :, 0] > 0
    activity = z.abs().mean(1)
    low, high = activity.amin((1, 2), keepdim=True), activity.amax((1, 2), keepdim=True)
    assert torch.equal(keep, (activity - low) / (high - low) < 0.8)
    assert 0 < keep.float().mean() < 1


def test_a_zero_embedding_stays_zero():
    z = torch.zeros(1, 3, 4, 4)
    kept = FeatureDrop().factor(z, torch.tensor([0.8]))
    assert kept.isfinite().all()
    assert (z * kept[0] == 0).all()


@pytest.mark.parametrize("everywhere", [False, True])
def test_predictions_of_one_kind_are_no_accident(everywhere):
    z = torch.rand(2, 3, 4, 4)
    label = torch.full((2, 32, 32), int(everywhere))
    guide = make_guide(label, torch.tensor([False, True]), (4, 4))
    assert guide.objects.all() == everywhere
    objects, context = (apply(kind, z, kind.sample(z, guide, 1)[0]) for kind in (KeepObjects(), KeepContext()))
    assert torch.equal(objects, z * everywhere)
    assert torch.equal(context, z * (not everywhere))
    cut = GuidedCutout().sample(z, guide, 4)
    assert bool((~cut).any()) == everywhere


def test_masks_equal_the_plain_ones():
    prediction, z = torch.randn(2, 3, 32, 48), torch.rand(2, 5, 4, 6)
    guide = make_guide(prediction.argmax(1), torch.tensor([False, True, True]), (4, 6))
    for kind, reference in ((KeepObjects(), plain.keep_objects), (KeepContext(), plain.keep_context)):
        assert torch.equal(apply(kind, z, kind.sample(z, guide, 1)[0]), reference(z, prediction))
    noise = FeatureNoise().sample(z, None, 1)
    assert_close(apply(FeatureNoise(), z, noise[0]), plain.feature_noise(z, noise[0, 0]))
    assert torch.equal(apply(FeatureDrop(), z, torch.tensor(0.8)), plain.feature_drop(z, 0.8))


def test_foreground_is_what_the_task_says():
    label = torch.tensor([[[0, 1], [2, 1]]])
    guide = make_guide(label, torch.tensor([True, False, False]), (2, 2), cell=1, min_area=0.0)
    assert guide.objects.tolist() == [[[True, False], [False, False]]]


def test_guided_kinds_ask_for_a_guide():
    with pytest.raises(ShapeError, match="make_guide"):
        KeepObjects().sample(torch.rand(1, 2, 3, 3), None, 1)


def test_a_generator_makes_draws_repeatable():
    z = torch.rand(2, 4, 6, 6)
    mask = torch.zeros(2, 48, 48, dtype=torch.long)
    mask[:, 8:40, 8:40] = 1
    guide = make_guide(mask, torch.tensor([False, True]), (6, 6))
    for kind in KINDS.values():
        first, second = (kind.sample(z, guide, 3, torch.Generator().manual_seed(4)) for _ in range(2))
        assert torch.equal(first, second)


def test_nearest_positions_are_those_of_interpolation():
    for new, old in ((5, 40), (7, 20), (40, 40), (13, 104), (9, 5)):
        values = torch.arange(old, dtype=torch.float32).view(1, 1, 1, old)
        taken = torch.nn.functional.interpolate(values, size=(1, new), mode="nearest").flatten().long()
        assert perturb.nearest_index(new, old).tolist() == taken.tolist()
