"""Fused self-attention equals the plain one, in bfloat16 as closely as its inputs allow."""

import pytest
import torch
from timm.layers import Attention
from torch import nn
from torch.testing import assert_close

from halfmask.models.timm_library import FusedAttention, fused_attention
from tests.oracles.attention import attention


def test_bfloat16_on_a_cpu_is_rounded_once():
    """The result is the exact one of the rounded inputs, rounded to 8 bits: half of 2^-7 at most."""
    q, k, v = (torch.randn(2, 3, 50, 16, dtype=torch.bfloat16) for _ in range(3))
    exact = attention(q.double(), k.double(), v.double())
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = fused_attention(q, k, v)
        assert out.dtype == torch.bfloat16
        assert_close(out.double(), exact, rtol=2**-8, atol=1e-5)


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


def test_a_batch_without_images_has_no_attention():
    q, k, v = (torch.zeros(0, 3, 9, 16, dtype=torch.bfloat16) for _ in range(3))
    assert fused_attention(q, k, v).shape == (0, 3, 9, 16)
