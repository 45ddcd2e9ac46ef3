"""The flow is a density, and the noise leads to where it is lower."""

import math

import torch
from torch.testing import assert_close

from halfmask.testing import no_host_sync
from halfmask.views.flow_noise import FeatureFlow, flow_noise


def bent(width: int, classes: int) -> FeatureFlow:
    """Return a flow in double precision that is not the identity."""
    torch.manual_seed(4)
    flow = FeatureFlow(width, classes, hidden=16).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return flow


def test_the_determinant_is_that_of_the_derivative():
    flow, x = bent(5, 3), torch.randn(4, 5, dtype=torch.float64)
    placed, stretch = flow(x)
    assert (placed - x).abs().max() > 0.1
    for row, found in zip(x, stretch, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda one: flow(one[None])[0][0], row)
        assert_close(found, torch.linalg.slogdet(jacobian).logabsdet)
        assert abs(found) > 1e-2


def test_the_likelihood_is_that_of_gaussians_and_their_mixture():
    flow, x = bent(4, 3), torch.randn(6, 4, dtype=torch.float64)
    placed, stretch = flow(x)
    one = torch.eye(4, dtype=torch.float64)
    each = torch.stack(
        [torch.distributions.MultivariateNormal(mean, one).log_prob(placed) + stretch for mean in flow.means], dim=1
    )
    mixture = each.exp().mean(1).log()
    assert_close(flow.nll(x), -mixture)
    classes = torch.tensor([0, 1, 2, 3, 2, 3])  # 3 is not known
    expected = torch.where(classes == 3, mixture, each.gather(1, classes.clamp(max=2)[:, None])[:, 0])
    assert_close(flow.nll(x, classes), -expected)
    assert (expected - mixture).abs().max() > 0.1


def test_it_starts_as_the_identity_and_learns_the_density():
    torch.manual_seed(0)
    flow, x = FeatureFlow(4, 2, hidden=16), 3 + torch.randn(256, 4) * torch.tensor([0.2, 1.0, 0.5, 0.3])
    placed, stretch = flow(x)
    assert_close(placed, x)
    assert not stretch.any()
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.01)
    before = flow.nll(x).mean().item()
    for _ in range(60):
        optimizer.zero_grad()
        flow.nll(x).mean().backward()
        optimizer.step()
    assert flow.nll(x).mean() < before - 3
    assert not flow.means.requires_grad


def test_the_noise_has_its_length_and_lowers_the_density():
    flow, z = bent(4, 3), torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    noise = flow_noise(z, flow, 4.0)
    assert_close(noise.norm(dim=1), torch.full((2, 3, 5), 4.0, dtype=torch.float64))
    assert not noise.requires_grad
    assert all(parameter.grad is None for parameter in flow.parameters())
    rows = z.detach().movedim(1, -1).flatten(0, 2)
    step = 1e-4 * noise.movedim(1, -1).flatten(0, 2)
    steepest = (flow.nll(rows + step) - flow.nll(rows)) / 4e-4
    assert (steepest > 0).all()
    for _ in range(20):  # no other direction is steeper
        other = torch.nn.functional.normalize(torch.randn_like(rows), dim=1) * 4e-4
        assert ((flow.nll(rows + other) - flow.nll(rows)) / 4e-4 <= steepest * (1 + 1e-2)).all()


def test_half_precision_gives_noise_of_its_own_type_without_a_visit_to_the_host():
    flow, z = FeatureFlow(4, 3, hidden=8), torch.randn(1, 4, 2, 2).bfloat16()
    with no_host_sync():
        noise = flow_noise(z, flow, 4.0)
    assert noise.dtype == torch.bfloat16
    assert math.isclose(noise.float().norm(dim=1).mean(), 4.0, rel_tol=0.02)
