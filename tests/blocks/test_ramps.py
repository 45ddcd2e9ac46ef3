"""Schedules by their published values."""

import math

import pytest

from halfmask.blocks.ramps import ema_ramp, sigmoid_ramp


def test_the_ramp_averages_all_steps_so_far():
    # With decay 1 - 1 / (n + 1) after step n, an average of the students 0, 1, 2, ... is their plain mean.
    average = -100.0  # forgotten at step 0
    for step in range(50):
        decay = ema_ramp(step, 1.0)
        average = decay * average + (1 - decay) * step
    assert average == pytest.approx(49 / 2)


def test_the_ramp_ends_where_unimatch_v2_says():
    assert ema_ramp(248, 0.996) < 0.996
    assert ema_ramp(249, 0.996) == pytest.approx(0.996)
    assert ema_ramp(10_000, 0.996) == 0.996


def test_sigmoid_ramp_by_its_formula():
    assert sigmoid_ramp(0, 40) == pytest.approx(math.exp(-5))
    assert sigmoid_ramp(20, 40) == pytest.approx(math.exp(-1.25))
    assert sigmoid_ramp(40, 40) == sigmoid_ramp(400, 40) == 1
    values = [sigmoid_ramp(step, 40) for step in range(41)]
    assert values == sorted(values)
