"""What a dry run predicts: memory as a line in the batch, the batch that fits a limit, steps and time."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from halfmask.run.cost import Cost, parse_bytes, predict_cost, watch_peak
from halfmask.run.prepare import prepare
from tests.run.tiny import recipe, write_dataset

COST = Cost("CPU", 8, 16, unit=(1, 2), world=1, fewest=2, fixed=1000, per_unit=100, step_seconds=0.5, steps=20)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("cost") / "shapes")


def test_memory_grows_with_the_batch_and_time_with_the_steps():
    assert COST.memory == 1000 + 8 * 100
    assert replace(COST, labeled=16, unlabeled=32, world=2).memory == 1000 + 8 * 100
    assert COST.seconds == 10.0


@pytest.mark.parametrize(
    ("limit", "batch"), [(1800, (8, 16)), (1799, (7, 14)), (1200, (2, 4)), (1199, None), (900, None)]
)
def test_the_batch_that_fits_keeps_the_ratio(limit, batch):
    assert COST.fitting(limit) == batch


def test_a_limit_is_answered_in_keys_of_the_recipe():
    assert "data.batch.labeled=7 data.batch.unlabeled=14" in COST.describe_limit(1799)
    assert "too large" in COST.describe_limit(1799)
    assert "the batch fits" in COST.describe_limit(2**30)
    assert "smaller data.crop" in COST.describe_limit(1100)


@pytest.mark.parametrize("method", ["supervised", "fixmatch"])
def test_trials_of_a_real_method(data, method):
    cost = predict_cost(prepare(recipe(data, "data.batch.labeled=6", "data.batch.unlabeled=6", method=method)))
    assert cost.unit == ((1, 0) if method == "supervised" else (1, 1))
    assert cost.fewest == 2  # batch norm
    assert cost.steps == 6
    assert cost.step_seconds > 0
    assert cost.memory > 2**26  # the resident set of a process with torch in it


def test_a_batch_of_two_needs_no_line(data):
    cost = predict_cost(prepare(recipe(data)))
    assert cost.memory == cost.per_unit * 2
    assert cost.fixed == 0


def test_the_peak_of_a_block_is_seen():
    with watch_peak(torch.device("cpu")) as peak:
        torch.ones(2**26).sum().item()  # more than an allocator may hold from work before
    assert peak.added >= 0.5 * 2**28


@pytest.mark.parametrize(("text", "size"), [("8GB", 2**33), ("500 MiB", 500 * 2**20), ("1.5k", 1536), ("12", 12)])
def test_sizes_are_read_in_powers_of_1024(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "much", "8 apples"])
def test_other_texts_are_no_size(text):
    with pytest.raises(ValueError, match="could not convert"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["0", "0.0GB", "-4GB", "infGB", "nan"])
def test_a_size_is_one_byte_or_more(text):
    with pytest.raises(ValueError, match=text):
        parse_bytes(text)
