"""The streamed loss of upsampled logits, against upsampling and loss one after the other."""

import pytest
import torch
from torch.testing import assert_close

from halfmask.losses import upsampled as upsampled_loss
from halfmask.losses.upsampled import upsampled_cross_entropy
from halfmask.models.coarse_logits import row_mix
from halfmask.testing import no_host_sync
from tests.oracles.losses import upsampled_cross_entropy as plain


@pytest.fixture(params=[1, 20_000, 2**30], ids=["single rows", "some rows", "one band"])
def bands(request, monkeypatch):
    monkeypatch.setitem(upsampled_loss._BAND_BYTES, "cpu", request.param)


@pytest.mark.usefixtures("bands")
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    ("low", "high"), [((9, 7), (70, 50)), ((40, 5), (33, 9)), ((1, 3), (65, 12)), ((8, 8), (8, 8))]
)
@pytest.mark.parametrize("weighted", [True, False])
def test_loss_and_gradient_equal_the_plain_form(align_corners, low, high, weighted):
    logits = torch.randn(2, 5, *low, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 5, (2, *high))
    target[torch.rand(target.shape) < 0.2] = 255
    weight = torch.rand(2, *high, dtype=torch.float64) if weighted else None
    loss = upsampled_cross_entropy(logits, target, align_corners, weight=weight, impl="stream")
    expected = plain(logits, target, align_corners, weight=weight)
    assert_close(loss, expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(3 * loss, logits), torch.autograd.grad(3 * expected, logits), strict=True
    ):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-15)


def test_without_a_labeled_pixel_it_is_zero_with_a_zero_gradient():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = upsampled_cross_entropy(logits, torch.full((1, 16, 16), 255), True, impl="stream")
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0
    assert not gradient.any()


def test_it_never_visits_the_host():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    with no_host_sync():
        upsampled_cross_entropy(logits, torch.zeros(1, 40, 40, dtype=torch.int64), False, impl="stream").backward()


def test_no_saved_tensor_has_the_size_of_the_upsampled_logits():
    logits = torch.randn(1, 32, 8, 8, requires_grad=True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: (sizes.append(x.untyped_storage().nbytes()), x)[1], lambda x: x
    ):
        upsampled_cross_entropy(logits, torch.zeros(1, 256, 256, dtype=torch.int64), False, impl="stream")
    assert sizes
    assert max(sizes) < 32 * 256 * 256 * 4 / 2


def test_small_maps_take_the_plain_form():
    logits, target = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 9, 9))
    assert torch.equal(upsampled_cross_entropy(logits, target, True), plain(logits, target, True))


@pytest.mark.parametrize("align_corners", [True, False])
def test_mixed_rows_are_those_of_interpolate(align_corners):
    column = torch.randn(1, 1, 7, 1, dtype=torch.float64)
    top, bottom, weight = row_mix(7, 23, align_corners, torch.device("cpu"), torch.float64)
    mixed = torch.lerp(column[:, :, top], column[:, :, bottom], weight[:, None])
    expected = torch.nn.functional.interpolate(column, (23, 1), mode="bilinear", align_corners=align_corners)
    assert_close(mixed, expected, rtol=1e-12, atol=1e-12)
