"""Rectangles of CPS, CutMix-Seg, U2PL, PS-MT and AugSeg, against recorded draws and by their properties."""

import pytest
import torch

from halfmask.testing import no_host_sync
from halfmask.views.boxes import beta_box, centered, component_box, half_area_box, several_boxes, toggled


@pytest.mark.parametrize("name", ["cps", "cutmix_seg"])
def test_boxes_are_the_recorded_ones(golden, name):
    data = golden(f"peers/{name}")
    draws = [data[f"draw_{part}"].double() for part in ("area", "aspect", "position")]
    assert torch.equal(toggled(*draws, (64, 80)), data["masks"][:, 0] == 1)


def test_boxes_around_a_center_are_the_recorded_ones(golden):
    data = golden("peers/ps_mt")
    for share, rows in zip(data["bbox_lambda"], data["bbox_cxcy_then_x1y1x2y2"], strict=True):
        mask = centered(share, rows[:2].T, (64, 48))
        for image, (first, second, last, end) in zip(mask, rows[2:].T.tolist(), strict=True):
            expected = torch.zeros(64, 48, dtype=torch.bool)
            expected[first:last, second:end] = True
            assert torch.equal(image, expected)


def test_three_boxes_cover_a_third_of_what_one_covers_each():
    one = several_boxes((400, 40, 40), boxes=1).float().mean().item()
    three = several_boxes((400, 40, 40), boxes=3).float().mean().item()
    assert one == pytest.approx(0.375, abs=0.02)  # the mean of U(0.25, 0.5)
    assert 0.2 < three < 0.375  # overlaps are taken away again


def test_half_area_boxes_are_wide_and_have_half_the_area():
    mask = half_area_box((200, 30, 50))
    wide = mask.any(1).sum(1)
    assert wide.min() > 25
    assert wide.max() == 50
    assert (mask.float().mean((1, 2)) - 0.5).abs().max() < 0.02  # the height is rounded
    assert not half_area_box((200, 30, 50), p=0.0).any()
    assert 60 < half_area_box((200, 30, 50), p=0.5).flatten(1).any(1).sum() < 140


def test_beta_boxes_of_a_batch_have_one_size_unless_cut():
    mask = beta_box((64, 40, 40), beta=(4.0, 4.0))
    sizes = mask.flatten(1).sum(1)
    inner = ~(mask[:, [0, -1]].any((1, 2)) | mask[:, :, [0, -1]].any((1, 2)))
    assert inner.any()
    assert len(sizes[inner].unique()) == 1
    assert (sizes <= sizes[inner].max()).all()


@pytest.mark.parametrize("rule", ["components", "cells"])
def test_the_box_of_one_large_component_is_drawn_or_half_of_the_area(rule):
    foreground = torch.zeros(2, 64, 64, dtype=torch.bool)
    foreground[0, 8:24, 8:40] = True
    foreground[0, 40:56, 16:48] = True
    foreground[0, 0:8, 56:64] = True  # too small
    foreground[1, 0:8, 0:8] = True
    tops = set()
    for _ in range(20):
        first, second = component_box(foreground, min_area=0.05, rule=rule)
        rows, columns = first.any(1).nonzero()[:, 0], first.any(0).nonzero()[:, 0]
        place = (rows[0].item(), rows[-1].item() + 1, columns[0].item(), columns[-1].item() + 1)
        assert place in {(8, 24, 8, 40), (40, 56, 16, 48)}
        assert first.sum() == 16 * 32
        tops.add(place[0])
        assert second.float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert tops == {8, 40}


def test_the_box_of_a_component_does_not_visit_the_host_by_default(monkeypatch):
    def visit(*_):
        raise AssertionError("a tensor is read on the host")

    # On a CPU the dispatcher does not see these two, by which the other rules leave the device.
    monkeypatch.setattr(torch.Tensor, "cpu", visit)
    monkeypatch.setattr(torch.Tensor, "numpy", visit)
    foreground = torch.zeros(2, 32, 32, dtype=torch.bool)
    foreground[0, 8:24, 8:24] = True
    with no_host_sync():
        mask = component_box(foreground)
    assert mask[0].sum() == 16 * 16
    assert mask[1].float().mean().item() == pytest.approx(0.5, abs=0.03)
    with pytest.raises(AssertionError, match="read on the host"):
        component_box(foreground, rule="components")
