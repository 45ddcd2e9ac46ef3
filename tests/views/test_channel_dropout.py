"""Masks of complementary dropout: what they promise, on any batch."""

import pytest
import torch
from torch.testing import assert_close

from halfmask.testing import no_host_sync
from halfmask.views.channel_dropout import channel_masks, drop_channels, scale_channels
from tests.oracles import channel_dropout as plain


@pytest.mark.parametrize("images", [1, 2, 3, 5, 8])
def test_a_channel_dropped_in_one_view_is_doubled_in_the_other(images):
    (mask,) = channel_masks(images, [64])
    first, second = mask[:images], mask[images:]
    assert torch.equal(first + second, torch.full_like(first, 2))
    assert set(mask.unique().tolist()) <= {0.0, 1.0, 2.0}
    undropped = (first == 1).all(1)
    assert undropped.sum() == images // 2  # exactly, rounded down: one image is always dropped
    assert not (first[~undropped] == 1).any()


def test_masks_are_those_of_the_plain_form():
    (mask,) = channel_masks(5, [6])
    tosses, undropped = mask[:5] == 2, (mask[:5] == 1).all(1).nonzero().flatten().tolist()
    assert torch.equal(mask, plain.complementary_mask(tosses, undropped))


def test_every_image_and_every_channel_is_dropped_as_often():
    torch.manual_seed(1)
    masks = torch.stack([channel_masks(4, [16])[0] for _ in range(2000)])  # (draws, 8, 16)
    undropped = (masks[:, :4] == 1).all(2).float().mean(0)
    assert_close(undropped, torch.full((4,), 0.5), rtol=0, atol=4 * (0.25 / 2000) ** 0.5)
    dropped = (masks[:, :4] == 0).float().mean(0)
    assert_close(dropped, torch.full((4, 16), 0.25), rtol=0, atol=4.5 * (0.1875 / 2000) ** 0.5)
    assert (masks.mean((0, 2)) - 1).abs().max() < 0.02  # scaling keeps the mean


def test_maps_of_equal_width_share_their_mask_unless_told_otherwise():
    shared = channel_masks(4, [8, 8, 8])
    assert all(torch.equal(mask, shared[0]) for mask in shared)
    own = channel_masks(4, [32, 32], shared=False)
    assert not torch.equal(*own)
    different = channel_masks(4, [32, 16, 8])
    assert [tuple(mask.shape) for mask in different] == [(8, 32), (8, 16), (8, 8)]
    # The same images stay undropped everywhere.
    for masks in (own, different):
        kept = [(mask == 1).all(1) for mask in masks]
        assert all(torch.equal(other, kept[0]) for other in kept)
        assert kept[0].sum() == 4


def test_independent_views_differ_and_one_view_is_possible():
    (mask,) = channel_masks(4, [64], complementary=False)
    undropped = (mask[:4] == 1).all(1)
    assert torch.equal(undropped, (mask[4:] == 1).all(1))
    both = ((mask[:4] == 0) & (mask[4:] == 0)).float().mean(1)[~undropped]
    assert (both > 0.05).all()  # a quarter of the channels is expected; none with complementary masks
    assert channel_masks(4, [8], views=1)[0].shape == (4, 8)


def test_undropped_images_by_chance_vary_in_number():
    torch.manual_seed(0)
    counts = [int((channel_masks(6, [32], keep="bernoulli")[0][:6] == 1).all(1).sum()) for _ in range(200)]
    assert min(counts) < 2
    assert max(counts) > 4
    assert abs(sum(counts) / 200 - 3) < 4 * (6 * 0.25 / 200) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_channels_are_scaled_at_all_positions(dtype):
    maps = [torch.randn(4, 6, 3, 5).to(dtype), torch.randn(4, 6, 2, 2).to(dtype)]
    (mask, _) = channel_masks(2, [6, 6])
    for x, expected in zip(maps, plain.apply_mask(maps, mask), strict=True):
        found = scale_channels(x, mask)
        assert found.dtype == dtype
        assert torch.equal(found, expected)
    pooled = torch.randn(4, 6)
    assert torch.equal(scale_channels(pooled, mask), pooled * mask)


def test_independent_dropout_is_always_active_and_keeps_the_mean():
    x = torch.ones(64, 32, 2, 3)
    (dropped,) = drop_channels([x], p=0.2)
    per_channel = dropped.flatten(2)
    assert (per_channel == per_channel[..., :1]).all()
    assert set(dropped.unique().tolist()) == {0.0, 1.25}
    assert abs((dropped == 0).float().mean() - 0.2) < 4 * (0.16 / (64 * 32)) ** 0.5
    first, second = drop_channels([x, x])
    assert not torch.equal(first, second)


def test_masks_cost_no_host_synchronization():
    with no_host_sync():
        channel_masks(4, [8, 8])
        channel_masks(4, [8, 4], keep="bernoulli")
        drop_channels([torch.ones(2, 3, 4, 4)])
