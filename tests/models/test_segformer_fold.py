"""The folded SegFormer head is the plain one: same parameters, values and gradients."""

import torch
from torch.testing import assert_close

from halfmask.models.decoders.segformer import SegFormer
from tests.oracles.forms import plain_forms

CHANNELS, STRIDES = (8, 12, 20, 32), (4, 8, 16, 32)


def both_forms() -> tuple[SegFormer, SegFormer]:
    fast = SegFormer(CHANNELS, STRIDES, embedding=16, dropout=0.0).double()
    plain = SegFormer(CHANNELS, STRIDES, embedding=16, dropout=0.0).double()
    plain.load_state_dict(fast.state_dict())
    return fast, plain


def maps(height: int = 65, width: int = 97) -> list[torch.Tensor]:
    return [
        torch.randn(2, c, -(-height // s), -(-width // s), dtype=torch.float64, requires_grad=True)
        for c, s in zip(CHANNELS, STRIDES, strict=True)
    ]


def test_values_gradients_and_statistics_agree_in_float64():
    # Reordered sums of at most 72 terms in float64: 1e-12 leaves a factor of 1000.
    fast, plain = both_forms()
    features = maps()
    upstream = torch.randn(2, 16, 17, 25, dtype=torch.float64)
    out_fast = fast.refine(fast.fuse(features))
    with plain_forms():
        out_plain = plain.refine(plain.fuse(features))
    assert_close(out_fast, out_plain, rtol=0, atol=1e-12)
    inputs_fast = torch.autograd.grad(out_fast, features, upstream, retain_graph=True)
    inputs_plain = torch.autograd.grad(out_plain, features, upstream, retain_graph=True)
    assert_close(inputs_fast, inputs_plain, rtol=0, atol=1e-12)
    (out_fast * upstream).sum().backward()
    (out_plain * upstream).sum().backward()
    for (name, a), b in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert_close(a.grad, b.grad, rtol=0, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")
    assert_close(fast.norm.running_mean, plain.norm.running_mean, rtol=0, atol=1e-12)
    assert_close(fast.norm.running_var, plain.norm.running_var, rtol=0, atol=1e-12)


def test_projection_biases_reach_the_output_in_evaluation_mode():
    # In train mode batch norm hides every bias, so only this test sees a lost one.
    fast, plain = both_forms()
    features = maps(33, 40)
    with torch.no_grad():
        for layer in (*fast.projections, *plain.projections):
            layer.bias.fill_(3.0)
    before = fast.eval().fuse(features)
    with plain_forms():
        assert_close(plain.eval().fuse(features), before, rtol=0, atol=1e-12)
    with torch.no_grad():
        fast.projections[2].bias.add_(1.0)
    assert (fast.fuse(features) - before).abs().max() > 1e-3


def test_dropout_removes_whole_channels_and_only_in_training():
    decoder = SegFormer(CHANNELS, STRIDES, embedding=64, dropout=0.5)
    x = torch.rand(4, 64, 3, 5) + 1
    assert torch.equal(decoder.eval().refine(x), x)
    dropped = decoder.train().refine(x)
    is_zero = (dropped == 0).flatten(2)
    assert (is_zero.all(2) == is_zero.any(2)).all()
    assert 0 < is_zero.all(2).sum() < 4 * 64


def test_autocast_keeps_the_folded_form_close_to_the_plain_one():
    # bfloat16 keeps 8 bits; values are about 1, sums of 72 rounded terms stay within a few percent.
    fast = SegFormer(CHANNELS, STRIDES, embedding=16, dropout=0.0).eval()
    features = [x.detach().float() for x in maps()]
    exact = fast.fuse(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = fast.fuse(features)
    assert_close(rounded.float(), exact, rtol=0.05, atol=0.05)
