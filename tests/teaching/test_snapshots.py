"""A pool of earlier networks: what it holds, what it draws, and what its state restores."""

from typing import Any

import pytest
import torch
from torch import nn

from halfmask.errors import CheckpointError
from halfmask.teaching.snapshots import SnapshotPool


def filled(size: int, pushed: int) -> SnapshotPool[nn.Conv2d]:
    """A pool of 1x1 convolutions that multiply by 1, 2, 3, ... in the order they were pushed."""
    net = nn.Conv2d(1, 1, 1, bias=False)
    pool = SnapshotPool(net, size)
    for number in range(1, pushed + 1):
        nn.init.constant_(net.weight, float(number))
        pool.push(net)
    return pool


def factors(pool: SnapshotPool[nn.Conv2d]) -> list[float]:
    return [float(model.weight) for model in pool.models[: len(pool)]]


@pytest.mark.parametrize(("pushed", "held"), [(0, []), (2, [1.0, 2.0]), (3, [1.0, 2.0, 3.0]), (5, [4.0, 5.0, 3.0])])
def test_the_newest_stay(pushed: int, held: list[float]) -> None:
    assert factors(filled(3, pushed)) == held


@pytest.mark.parametrize("pushed", [0, 1, 4])
def test_a_state_restores_a_pool_however_full(pushed: int) -> None:
    pool, other = filled(3, pushed), filled(3, 2)
    other.load_state_dict(pool.state_dict())
    assert factors(other) == factors(pool)
    more = nn.Conv2d(1, 1, 1, bias=False)
    assert factors(other.push(more)) == factors(pool.push(more))
    assert all(isinstance(value, torch.Tensor) for value in pool.state_dict().values())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("models.1.weight"), "2 of 3 earlier networks"),
        (lambda state: state.update({"models.3.weight": torch.ones(1, 1, 1, 1)}), "and 1 more"),
        (lambda state: state.pop("_extra_state"), "3 of 3 earlier networks"),
    ],
)
def test_a_state_with_missing_snapshots_is_refused_with_the_cure(change: Any, told: str) -> None:
    state = filled(3, 2).state_dict()
    change(state)
    with pytest.raises(CheckpointError, match=f"{told}.*Use an intact checkpoint"):
        filled(3, 0).load_state_dict(state)


def test_draws_follow_the_seed_of_the_step() -> None:
    pool = filled(4, 4)
    drawn = []
    for seed in [*range(30), *range(30)]:
        torch.manual_seed(seed)
        drawn.append([float(model.weight) for model in pool.draw(3)])
    assert drawn[:30] == drawn[30:]
    assert {len(one) for one in drawn} == {1, 2, 3}
    assert all(len(set(one)) == len(one) for one in drawn)
    assert {factor for one in drawn for factor in one} == {1.0, 2.0, 3.0, 4.0}
    assert filled(4, 0).draw(3) == []


def test_logits_are_mixed_with_weights_that_sum_to_one() -> None:
    pool, image = filled(3, 3), torch.ones(2, 1, 4, 4)
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        mixed = pool(image, most=3)
        assert mixed.shape == (2, 1, 4, 4)
        assert not mixed.requires_grad
        assert torch.equal(mixed, mixed[:1, :, :1, :1].expand_as(mixed))  # one weight per network
        # Networks of weights 1, 2, 3: weights that are not positive or do not sum to one soon leave their range.
        assert abs(float(mixed.mean()) - 2) <= 1 + 1e-6
        seen.add(round(float(mixed.mean()), 4))
    assert len(seen) > 10
    # Equal networks: only weights that sum to one give the network itself.
    net = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(net.weight, 2.0)
    equal = SnapshotPool(net, 3).push(net).push(net).push(net)
    for seed in range(20):
        torch.manual_seed(seed)
        torch.testing.assert_close(equal(image, most=3), torch.full_like(image, 2.0))


def test_a_pool_is_not_trained() -> None:
    pool = filled(2, 1)
    pool.train()
    assert not any(model.training for model in pool.models)
    assert not any(parameter.requires_grad for parameter in pool.parameters())
