"""Schedules by their published values."""

import json
import math

import pytest

from halfmask.teaching.ramps import ema_ramp, ramp, ramped_weight, sigmoid_ramp


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


def test_ramps_are_the_published_ones(shared):
    table = json.loads((shared / "golden" / "cct" / "ramps.json").read_text())
    for name in ("sigmoid", "linear", "cosine", "log", "exp"):
        expected = table[f"{name}_rampup"]
        for step, value in expected["points"]:
            assert ramp(name, step, expected["length"]) == pytest.approx(value, rel=1e-14)
        assert ramp(name, 0, 0) == expected["length0_at_0"]
    assert ramp("sigmoid", 7, 37) == sigmoid_ramp(7, 37)


def test_the_weight_of_the_unlabeled_loss_is_the_published_one(shared):
    table = json.loads((shared / "golden" / "cct" / "ramps.json").read_text())
    for epoch, iteration, value in table["consistency_weight_30_912_8"]:
        assert ramped_weight(30.0, epoch * 912 + iteration, 8 * 912) == pytest.approx(value, rel=1e-14)
    for epoch, iteration, value in table["consistency_weight_linear_start1_end3"]:
        step = epoch * 100 + iteration
        assert ramped_weight(30.0, step, 200, name="linear", start=100) == pytest.approx(value, rel=1e-14)
    for _, _, value in table["consistency_weight_short_run_5_epochs"]:
        assert ramped_weight(30.0, 0, 0) == value  # int(0.1 * 5 epochs) = 0: no ramp
