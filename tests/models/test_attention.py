"""Fused self-attention equals the plain one, in bfloat16 as closely as its inputs allow."""

import pytest
import torch
from timm.layers import Attention
from torch import nn
from torch.testing import assert_close

from halfmask.models import timm_library
from halfmask.models.timm_library import FusedAttention, fused_attention
from tests.oracles.attention import attention


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(50, 50), (200, 30), (300, 300)])
def test_bfloat16_on_a_cpu_is_near_the_exact_result_of_its_inputs(queries, keys, gradients, monkeypatch):
    """Scores, weights and result are rounded to 8 bits; rows of queries come in parts where no gradient is wanted."""
    monkeypatch.setattr(timm_library, "_MAP_BYTES", 2 * 2 * 3 * keys * 70)  # 70 rows at once
    q, k, v = (torch.randn(2, 3, n, 16, dtype=torch.bfloat16, requires_grad=gradients) for n in (queries, keys, keys))
    exact = attention(q.double(), k.double(), v.double())
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = fused_attention(q, k, v)
        assert out.dtype == torch.bfloat16
        assert (out.double() - exact).norm() < 2**-7 * exact.norm()
    if gradients:
        way = torch.randn_like(out)
        for own, other in zip(
            torch.autograd.grad(out, (q, k, v), way), torch.autograd.grad(exact, (q, k, v), way.double()), strict=True
        ):
            assert (own.double() - other.double()).norm() < 2**-6 * other.double().norm()


def test_a_batch_without_images_has_no_attention():
    q, k, v = (torch.zeros(0, 3, 9, 16, dtype=torch.bfloat16) for _ in range(3))
    assert fused_attention(q, k, v).shape == (0, 3, 9, 16)


def test_weights_of_many_tokens_are_not_kept_for_the_backward_pass():
    kept = [(tokens, tokens) in _kept_shapes(tokens) for tokens in (100, 300)]
    assert kept == [True, False]


def _kept_shapes(tokens):
    shapes = []

    def note(x):
        shapes.append(tuple(x.shape[-2:]))
        return x

    q, k, v = (torch.randn(1, 1, tokens, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        fused_attention(q, k, v)
    return shapes


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "norm_layer": nn.LayerNorm}, {"gated": True}])
def test_the_layer_computes_what_timms_does(options):
    layer, theirs = (kind(24, 2, qkv_bias=True, **options).double() for kind in (FusedAttention, Attention))
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(2, 50, 24, dtype=torch.float64)
    mask = torch.rand(50, 50) < 0.5
    mask.fill_diagonal_(True)
    for fused in (True, False):
        layer.fused_attn = fused
        assert_close(layer(x), theirs(x), rtol=0, atol=1e-12)
        assert_close(layer(x, attn_mask=mask), theirs(x, attn_mask=mask), rtol=0, atol=1e-12)


def test_gradients_under_autocast_are_near_those_without():
    layer = FusedAttention(24, 2)
    x, gradients = torch.randn(2, 50, 24), []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = layer(x)
        found = torch.autograd.grad(out.float().square().sum(), list(layer.parameters()))
        gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    exact, rounded = gradients
    assert (rounded - exact).norm() < 0.02 * exact.norm()
