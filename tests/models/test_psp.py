"""The pyramid pooling decoder in the form of UniMatch V1: aligned branches and dropout before the classifier."""

import pytest
import torch
from torch.testing import assert_close

from halfmask.models.decoders.psp import PSP
from tests.oracles.forms import plain_forms


def decoder(**params) -> PSP:
    return PSP((8,), (8,), bins=(2,), embedding=3, upscale=1, **params).double().eval()


def test_aligned_branches_put_the_corner_cells_on_the_corners_of_the_map():
    x = torch.rand(2, 8, 5, 7, dtype=torch.float64)
    network = decoder(align_branches=True)
    network.branches[0][1].bias.data.fill_(5.0)  # above the ReLU
    branch = network.fuse([x])[:, 8:]
    cells = network.branches[0](torch.nn.functional.adaptive_avg_pool2d(x, 2))  # (2, 3, 2, 2)

    row, column = (torch.linspace(0, 1, side, dtype=torch.float64) for side in (5, 7))
    rows = torch.stack((1 - row, row), dim=1)  # weights of the two cells, (5, 2)
    columns = torch.stack((1 - column, column), dim=1)  # (7, 2)
    expected = torch.einsum("hi,bcij,wj->bchw", rows, cells, columns)
    assert_close(branch, expected, rtol=0, atol=1e-12)

    plain = decoder()
    plain.load_state_dict(network.state_dict())
    assert (plain.fuse([x])[:, 8:] - expected).abs().max() > 1e-3


def test_dropout_takes_single_values_of_the_embedding_while_training_only():
    network = decoder(dropout=0.4)
    network.train()
    network.bottleneck[1].bias.data.fill_(100.0)  # nothing is 0 by the ReLU
    fused = torch.rand(4, 11, 20, 20, dtype=torch.float64)
    dropped = network.refine(fused) == 0
    assert abs(dropped.double().mean() - 0.4) < 0.05  # 4,800 values: 7 standard deviations
    assert not dropped.flatten(2).all(2).any()  # values, not channels
    network.eval()
    assert not (network.refine(fused) == 0).any()


@pytest.mark.parametrize("align_branches", [False, True])
@pytest.mark.parametrize("size", [(13, 11), (3, 2)])  # by cells; too few pixels for that: the plain form
def test_the_convolution_at_the_cells_is_that_of_the_concatenation(align_branches, size):
    network = PSP((24,), (8,), bins=(1, 2, 3), embedding=16, align_branches=align_branches).double()
    x = torch.randn(2, 24, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 16, *size, dtype=torch.float64)

    def run(embed):
        embedding = embed([x])
        return embedding.detach(), *torch.autograd.grad((embedding * weight).sum(), [x, *network.parameters()])

    fast = run(network.decode)
    plain = run(lambda maps: network.refine(network.fuse(maps)))
    for one, other in zip(fast, plain, strict=True):
        assert_close(one, other, rtol=0, atol=1e-9)
    with plain_forms():
        assert torch.equal(run(network.decode)[0], plain[0])
    assert torch.equal(run(network.decode)[0], plain[0]) == (size == (3, 2))  # the fast form is another computation


def test_decoding_in_half_precision_stays_near_full_precision():
    network = PSP((24,), (8,), bins=(1, 2, 3), embedding=16).eval()
    x = torch.rand(1, 24, 13, 11)
    exact = network.decode([x])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network.decode([x])
    assert (rounded - exact).abs().max() < 0.02 * exact.abs().max()
