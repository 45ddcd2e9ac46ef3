"""Attention with normalized scores: every fast form equals whole score matrices, and none of their size is kept."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from halfmask.models import channel_attention as module
from halfmask.models.channel_attention import channel_attention, score_variance
from tests.oracles import allspark as reference

FORMS = ["dense", "stream", "sdpa"]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module._CHUNK_BYTES, "cpu", 1)  # 64 keys, the smallest chunk


def inputs(sets: int, dtype: torch.dtype = torch.float64, shift: float = 0.0, scale: float = 1.0) -> tuple[Tensor, ...]:
    q, k = (scale * torch.randn(size, dtype=dtype) + shift for size in ((2, 40, 13), (sets, 150, 13)))
    return q, k, torch.randn(sets, 150, 13, dtype=dtype)


def with_gradients(attend, *tensors: Tensor) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = attend(*leaves)
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sets", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_outputs_and_gradients_equal_the_plain_form(form, sets, masked):
    tensors = inputs(sets, shift=0.3)
    keep = torch.arange(150) % 3 != 1 if masked else None
    expected = with_gradients(lambda *x: reference.channel_attention(*x, keep=keep), *tensors)
    actual = with_gradients(lambda *x: channel_attention(*x, keep=keep, impl=form), *tensors)
    for ours, plain in zip(actual, expected, strict=True):
        assert_close(ours, plain, rtol=0, atol=1e-12 * max(1.0, float(plain.abs().max())))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("shift", "scale"), [(0.0, 1.0), (3.0, 1.0), (0.0, 1e-1), (0.0, 1e-2), (1e-3, 1e-4), (0.0, 0.0)]
)
def test_float32_holds_where_means_are_large_and_where_scores_vanish(form, shift, scale):
    """Variances from hundreds down to 0; below 1e-5 the epsilon decides."""
    tensors = inputs(1, torch.float32, shift, scale)
    exact = with_gradients(reference.channel_attention, *(tensor.double() for tensor in tensors))
    actual = with_gradients(lambda *x: channel_attention(*x, impl=form), *tensors)
    for ours, plain in zip(actual, exact, strict=True):
        assert_close(ours.double(), plain, rtol=0, atol=2e-5 * max(1.0, float(plain.abs().max())))


@pytest.mark.parametrize("sets", [1, 2])
def test_the_variance_of_scores_and_its_gradient(sets):
    q, k, _ = (tensor.requires_grad_() for tensor in inputs(sets, shift=2.0))
    expected = (q @ k.mT).var((-2, -1), correction=0)
    assert_close(score_variance(q, k), expected, rtol=1e-12, atol=0)
    upstream = torch.tensor([1.0, -2.0], dtype=torch.float64)
    ours = torch.autograd.grad(score_variance(q, k), (q, k), upstream)
    plain = torch.autograd.grad(expected, (q, k), upstream)
    for actual, wanted in zip(ours, plain, strict=True):
        assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


def test_the_gradient_through_sigma_is_part_of_the_result():
    """What detaching it would change is far above every tolerance of this file."""
    q, k, v = inputs(1)
    right = with_gradients(reference.channel_attention, q, k, v)[1]

    def detached(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        sigma = torch.sqrt(score_variance(q, k) + reference.EPS).detach()
        return (q / sigma.view(-1, 1, 1) @ k.mT).softmax(-1) @ v

    wrong = with_gradients(detached, q, k, v)[1]
    assert (wrong - right).abs().max() > 1e-3 * right.abs().max()


def test_the_backward_pass_repeats_the_dropped_weights():
    q, k, v = (tensor.requires_grad_() for tensor in inputs(1)[:3])

    def attend(*tensors: Tensor) -> Tensor:
        torch.manual_seed(5)
        return channel_attention(*tensors, dropout=0.3, impl="stream")

    assert torch.autograd.gradcheck(attend, (q[:, :3, :4], k[:, :70, :4], v[:, :70, :2]))
    # And nothing else draws from the same state: two calls in a row differ.
    first, second = (channel_attention(q, k, v, dropout=0.3, impl="stream") for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("form", ["dense", "stream"])
def test_dropout_keeps_the_expected_output(form):
    """Over 300 draws the mean is within five standard errors of the output without dropout."""
    q, k, v = inputs(1)
    draws = torch.stack([channel_attention(q, k, v, dropout=0.25, impl=form) for _ in range(300)])
    error = (draws.mean(0) - channel_attention(q, k, v)).abs()
    assert bool((error < 5 * draws.std(0) / 300**0.5).all())
    assert draws.std(0).min() > 0


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_nothing_of_the_size_of_the_scores_is_kept_for_the_backward_pass(dropout):
    """Channels 64, tokens 25, 21 classes, two heads: scores of two images have 688,128 entries."""
    queries, keys, width = 128, 21 * 128, 25
    leaves = [
        torch.randn(size, requires_grad=True) for size in ((2, queries, width), (1, keys, width), (1, keys, width))
    ]
    kept: dict[str, list[int]] = {}
    for form in ("whole", "stream"):
        storages: dict[int, int] = {}

        def pack(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            if form == "whole":
                reference.channel_attention(*leaves, dropout=dropout)
            else:
                channel_attention(*leaves, dropout=dropout, impl="stream")
        kept[form] = list(storages.values())
    plane = queries * keys  # bytes, if one were kept for a single image as a mask of one byte per entry
    assert max(kept["stream"]) < plane
    assert max(kept["whole"]) >= 4 * plane
    assert sum(kept["whole"]) > 4 * sum(kept["stream"])


def test_auto_streams_large_scores_only(monkeypatch):
    called = []
    monkeypatch.setattr(
        module._Streamed, "apply", lambda q, k, v, dropout: called.append(q.shape) or torch.zeros_like(q)
    )
    q, k, v = inputs(1, torch.float32)
    channel_attention(q, k, v)
    assert called == []
    monkeypatch.setattr(module, "STREAM_BYTES", 2 * 40 * 150 * 4 - 1)
    channel_attention(q, k, v)
    assert called == [(1, 80, 13)]


def test_bfloat16_stays_near_float32():
    """Scores are rounded to 8 bits before the softmax, as under any autocast; sigma is computed in float32."""
    q, k, v = inputs(1, torch.float32)
    exact = reference.channel_attention(q, k, v)
    for form in FORMS:
        out = channel_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), impl=form)
        assert out.dtype == torch.bfloat16
        assert (out.float() - exact).norm() < 0.03 * exact.norm()
