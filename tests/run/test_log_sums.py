"""Means of logged values between two records."""

import math

import pytest
import torch

from halfmask.errors import DataError
from halfmask.run.folder import RunDir
from halfmask.run.loop.callbacks import MetricsLog
from halfmask.run.loop.module import LogSums
from halfmask.run.loop.progress import ProgressLine
from halfmask.testing import tiny_task

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


def test_a_memory_that_no_class_fills_ends_the_run_with_the_cure(tmp_path):
    log = MetricsLog(RunDir(tmp_path), tiny_task(), ProgressLine(quiet=True), 100)
    empty, one = ({"memory/filled/ground": 0.0, "memory/filled/disc": value} for value in (0.0, 0.1))
    for step, values in ((100, empty), (500, empty), (600, one), (700, empty), (900, {}), (1000, empty), (1499, empty)):
        log._check_memory(values, step)  # filled once, or not recorded in a warm-up: counted anew
    with pytest.raises(DataError, match=r"for 500 steps.*lower a threshold") as told:
        log._check_memory(empty, 1500)
    assert told.value.code == "H606"
