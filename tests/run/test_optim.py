"""The learning rate of every schedule at steps where its value is known."""

import math

import pytest

from halfmask.recipe.read import OptimRecipe
from halfmask.run.optim import rate_factor


@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        ("poly", lambda t: (1 - t) ** 0.9),
        ("cosine", lambda t: (1 + math.cos(math.pi * t)) / 2),
        ("cosine_7_16", lambda t: math.cos(7 * math.pi * t / 16)),
        ("constant", lambda t: 1),
    ],
)
def test_rates_follow_the_formula(schedule, formula):
    optim = OptimRecipe(schedule=schedule)
    total = 2**20
    for step in (0, 1, 1000, total // 4, total // 2, total - 1, total):
        assert rate_factor(step, total, optim) == pytest.approx(formula(step / total), abs=1e-12)


def test_seven_sixteenths_of_the_cosine_end_at_a_fifth_of_the_rate():
    optim = OptimRecipe(schedule="cosine_7_16", warmup_steps=4)
    assert rate_factor(1, 2**20, optim) == pytest.approx(0.5)
    assert rate_factor(2**20, 2**20, optim) == pytest.approx(math.sin(math.pi / 16)) == pytest.approx(0.195, abs=1e-3)
