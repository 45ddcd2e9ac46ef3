"""Means of logged values between two records."""

import math

import pytest
import torch

from halfmask.run.loop.module import LogSums

NAN = math.nan


def test_a_class_without_a_value_in_a_step_does_not_count_in_its_mean():
    sums = LogSums()
    for values in ([0.5, 0.8, NAN], [0.7, NAN, NAN]):
        sums.add({"pseudo/confidence_by_class": torch.tensor(values)})
    means = sums.read()["pseudo/confidence_by_class"]
    assert means == pytest.approx([0.6, 0.8, NAN], nan_ok=True)
    assert sums.read() == {}


@pytest.mark.parametrize("name", ["loss", "loss_sup", "train/facade/loss_unsup"])
def test_a_broken_loss_is_seen(name):
    sums = LogSums()
    for value in (1.0, NAN, 1.0):
        sums.add({name: torch.tensor(value)})
    assert math.isnan(sums.read()[name][0])


def test_several_processes_weigh_by_the_steps_that_had_a_value():
    here, there = LogSums(), LogSums()
    here.add({"pseudo/confidence_by_class": torch.tensor([0.2, NAN])})
    for values in ([0.8, 0.4], [0.8, 0.6]):
        there.add({"pseudo/confidence_by_class": torch.tensor(values)})
    seen = []
    there.read(lambda sums: seen.append(sums) or sums)
    means = here.read(lambda sums: sums + seen[0])["pseudo/confidence_by_class"]
    assert means == pytest.approx([0.6, 0.5])
