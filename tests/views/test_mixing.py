"""Rectangles and pasting: distribution, geometry, what travels together."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from halfmask.errors import ShapeError
from halfmask.testing import no_host_sync
from halfmask.views.boxes import filled
from halfmask.views.mixing import box_mask, class_mask, half_of, partners, paste
from tests.oracles.mixing import boxes_to_mask, draw_box, paste_by_index


def bounds(mask: Tensor) -> np.ndarray:
    """(top, left, bottom, right) of every non-empty mask, from its projections."""
    pixels = mask.view(torch.uint8)  # several times faster to reduce than bool
    down, across = pixels.amax(2), pixels.amax(1)
    drawn = down.amax(1) == 1
    down, across = down[drawn], across[drawn]
    height, width = mask.shape[1:]
    top, left = down.argmax(1), across.argmax(1)
    bottom, right = height - down.flip(1).argmax(1), width - across.flip(1).argmax(1)
    return torch.stack((top, left, bottom, right), 1).numpy()


def measures(corners: np.ndarray, side: int) -> dict[str, np.ndarray]:
    top, left, bottom, right = corners.T.astype(float)
    tall, wide = bottom - top, right - left
    return {
        "area_fraction": tall * wide / side**2,
        "height_fraction": tall / side,
        "width_fraction": wide / side,
        "h_over_w": tall / wide,
        "center_y": (top + tall / 2) / side,
        "center_x": (left + wide / 2) / side,
    }


def test_a_rectangle_holds_its_first_rows_and_columns_and_not_those_after_its_last():
    corners = [(1, 2, 4, 6), (0, 0, 7, 8), (3, 3, 3, 5), (6, 7, 7, 8)]
    assert torch.equal(filled(torch.tensor(corners), (7, 8)), boxes_to_mask(corners, 7, 8))
    assert filled(torch.tensor(corners), (7, 8)).sum((1, 2)).tolist() == [3 * 4, 7 * 8, 0, 1]


@pytest.mark.parametrize(("side", "draws"), [(321, 5000), (518, 5000), (798, 1000)])
def test_rectangles_have_the_published_distribution(shared: Path, side: int, draws: int):
    recorded = json.loads((shared / "golden/unimatch/augmentation_stats.json").read_text())[f"cutmix_{side}"]
    corners = np.concatenate([bounds(box_mask((20, side, side))) for _ in range(draws // 20)])
    spread = math.sqrt(0.25 * (1 / draws + 1 / recorded["draws"]))
    assert abs(len(corners) / draws - recorded["fraction_nonempty"]) < 4 * spread

    inverse = 1 / len(corners) + 1 / (recorded["draws"] * recorded["fraction_nonempty"])
    for name, values in measures(corners, side).items():
        expected = recorded[name]
        assert abs(values.mean() - expected["mean"]) < 4 * expected["std"] * math.sqrt(inverse), name
        for percent in (1, 5, 25, 50, 75, 95, 99):
            q, level = percent / 100, expected[f"p{percent:02d}"]
            tolerance = 4 * math.sqrt(q * (1 - q) * inverse)
            # Sides are whole pixels, so values tie: q lies between the shares below and up to the level.
            below, up_to = (values < level - 1e-4).mean(), (values <= level + 1e-4).mean()
            assert below - tolerance <= q <= up_to + tolerance, (name, percent)


def test_rectangles_follow_the_same_law_as_drawing_one_at_a_time():
    rng = random.Random(0)
    plain = boxes_to_mask([draw_box(40, 40, rng, p=1.0) for _ in range(4000)], 40, 40)
    fast = box_mask((4000, 40, 40), p=1.0)
    # Probability of each pixel to lie inside: a map that area, aspect and position all shape.
    difference = (plain.float().mean(0) - fast.float().mean(0)).abs()
    assert difference.max() < 4.5 * math.sqrt(0.25 * 2 / 4000)


def test_every_mask_is_one_rectangle_or_empty():
    masks = box_mask((200, 33, 47))
    corners = bounds(masks)
    areas = masks[masks.flatten(1).any(1)].flatten(1).sum(1).numpy()
    assert np.array_equal(areas, (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1]))
    assert 60 < len(corners) < 140


@pytest.mark.parametrize(("p", "count"), [(0.0, 0), (1.0, 64)])
def test_p_decides_how_many_images_get_a_rectangle(p: float, count: int):
    assert len(bounds(box_mask((64, 96, 96), p=p))) == count


def test_the_default_generator_decides_and_a_given_one_leaves_it_alone():
    torch.manual_seed(5)
    first = box_mask((8, 64, 64))
    torch.manual_seed(5)
    assert torch.equal(first, box_mask((8, 64, 64)))
    state = torch.get_rng_state()
    one = box_mask((8, 64, 64), generator=torch.Generator().manual_seed(1))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one, box_mask((8, 64, 64), generator=torch.Generator().manual_seed(1)))


def test_an_impossible_rectangle_is_an_error_that_names_the_size():
    with pytest.raises(ShapeError, match="fits into 1000x2 pixels"):
        box_mask((1, 2, 1000), p=1.0, area=(0.5, 0.5))


def test_an_empty_box_changes_nothing():
    image, label = torch.rand(4, 3, 8, 8), torch.randint(0, 5, (4, 8, 8))
    mixed = paste(torch.zeros(4, 8, 8, dtype=torch.bool), image, label)
    assert torch.equal(mixed[0], image)
    assert torch.equal(mixed[1], label)


def test_a_full_box_gives_the_partner():
    image = torch.rand(5, 3, 8, 8)
    (mixed,) = paste(torch.ones(5, 8, 8, dtype=torch.bool), image)
    assert torch.equal(mixed, image[[4, 3, 2, 1, 0]])


def test_everything_that_belongs_to_an_image_travels_together():
    # Every tensor holds the number of its image, so after mixing all must agree everywhere.
    number = torch.arange(6.0).reshape(6, 1, 1).expand(6, 20, 20)
    image = number[:, None].expand(6, 3, 20, 20)
    pair = number[:, None, None].expand(6, 2, 3, 20, 20)
    box = box_mask((6, 20, 20), p=1.0)
    mixed_image, mixed_pair, label, valid = paste(box, image, pair, number.long(), number > 2)
    assert torch.equal(mixed_image[:, 0].long(), label)
    assert torch.equal(mixed_pair[:, 1, 2].long(), label)
    assert torch.equal(valid, label > 2)
    assert torch.equal(label, torch.where(box, 5 - number.long(), number.long()))


def test_a_partner_batch_takes_the_place_of_the_reversed_one():
    box = box_mask((3, 16, 16), p=1.0)
    own, other = torch.zeros(3, 1, 16, 16), torch.ones(3, 1, 16, 16)
    label, other_label = torch.zeros(3, 16, 16, dtype=torch.long), torch.ones(3, 16, 16, dtype=torch.long)
    image, mixed_label = paste(box, own, label, partner=(other, other_label))
    assert torch.equal(image[:, 0].bool(), box)
    assert torch.equal(mixed_label.bool(), box)
    with pytest.raises(ShapeError, match="2 tensors but 1 of the partner"):
        paste(box, own, label, partner=(other,))


def test_pasting_equals_boolean_indexing():
    image, box = torch.rand(7, 3, 24, 31), box_mask((7, 24, 31), p=1.0)
    (mixed,) = paste(box, image)
    assert torch.equal(mixed, paste_by_index(box, image, image.flip(0)))


def test_gradients_reach_exactly_the_pixels_that_show():
    image = torch.rand(4, 1, 12, 12, requires_grad=True)
    box = box_mask((4, 12, 12), p=1.0)
    (mixed,) = paste(box, image)
    mixed.sum().backward()
    assert torch.equal(image.grad[:, 0], (~box).float() + box.flip(0).float())


def test_without_spatial_axes_nothing_is_mixed_and_nothing_is_drawn():
    before = torch.get_rng_state()
    box = box_mask((3,), p=1.0)
    assert box.tolist() == [False] * 3
    assert torch.equal(torch.get_rng_state(), before)
    image, label = torch.rand(3, 3, 8, 8), torch.tensor([2, 0, 1])
    mixed = paste(box, image, label)
    assert torch.equal(mixed[0], image)
    assert torch.equal(mixed[1], label)


def test_both_dates_of_a_pair_share_the_box():
    pair, label = torch.rand(4, 2, 3, 8, 8), torch.arange(4)[:, None, None].expand(4, 8, 8)
    box = box_mask((4, 8, 8), p=1.0)
    mixed, source = paste(box, pair, label)
    for image in range(4):
        for date in range(2):
            came_from = torch.where(box[image], 3 - image, image)
            expected = torch.where(box[image], pair[3 - image, date], pair[image, date])
            assert torch.equal(source[image], came_from)
            assert torch.equal(mixed[image, date], expected)


def test_pixels_of_chosen_classes_are_pasted_as_recorded(golden):
    data = golden("peers/ael")
    own, other = data["cp_image_pair"].split(3, dim=1)
    label, other_label = data["cp_label_pair"].unbind(1)
    chosen = torch.zeros(len(label), 21, dtype=torch.bool)
    chosen[:, data["cp_query"].long()] = True
    image, mixed = paste(class_mask(other_label, chosen), own, label, partner=(other, other_label))
    assert torch.equal(image, data["cp_image"])
    assert torch.equal(mixed, data["cp_label"])


def test_labels_that_are_no_class_are_never_pasted():
    label = torch.tensor([[[0, 255, 1], [-1, 7, 1]]])
    mask = class_mask(label, torch.ones(1, 2, dtype=torch.bool))
    assert mask.tolist() == [[[True, False, True], [False, False, True]]]


def test_half_of_the_classes_that_an_image_shows_are_drawn():
    label = torch.stack([torch.randint(high, (12, 12)) for high in (1, 2, 5, 8)])
    label[:, 0] = 255
    drawn = []
    for _ in range(200):
        chosen = half_of(label, 9)
        assert chosen.sum(1).tolist() == [1, 1, 3, 4]
        assert not any(chosen[image, number] for image, high in enumerate((1, 2, 5, 8)) for number in range(high, 9))
        drawn.append(chosen)
    share = torch.stack(drawn).float().mean(0)
    assert (share[3, :8] - 0.5).abs().max() < 0.15
    assert (share[2, :5] - 0.6).abs().max() < 0.15


def test_partners_meet_in_a_ring_in_the_mirror_or_at_random():
    number, image = torch.arange(5), torch.arange(5.0).reshape(5, 1, 1, 1).expand(5, 3, 2, 2)
    expected = {"next": [1, 2, 3, 4, 0], "flip": [4, 3, 2, 1, 0]}
    for by, order in expected.items():
        assert partners(by, number)[0].tolist() == order
    orders = set()
    for _ in range(20):
        first, second = partners("permutation", number, image)
        assert torch.equal(first.float(), second[:, 0, 0, 0])  # one order for all that belongs to an image
        assert sorted(first.tolist()) == [0, 1, 2, 3, 4]
        orders.add(tuple(first.tolist()))
    assert len(orders) > 5


def test_classes_and_partners_do_not_visit_the_host():
    label = torch.randint(4, (3, 8, 8))
    with no_host_sync():
        partners("permutation", label)
        class_mask(label, half_of(label, 4))
