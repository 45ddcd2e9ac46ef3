"""The profile of a step: every part is timed, whatever the method; the timing changes no result."""

from pathlib import Path

import pytest
import torch

from halfmask.bench.profile import PHASES, PhaseClock, profile_recipe
from halfmask.errors import RecipeError
from tests.run.tiny import recipe, write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("profile") / "shapes")


@pytest.mark.parametrize("method", ["supervised", "fixmatch"])
def test_all_phases_of_a_recipe_are_timed(data, method):
    profile = profile_recipe(recipe(data, method=method), steps=3)
    assert set(profile.host) == {*PHASES}
    assert all(profile.host[name] > 0 for name in ("load wait", "host to device", "forward", "backward", "optimizer"))
    assert sum(profile.host.values()) <= profile.step
    assert profile.images == (2 if method == "supervised" else 4)
    assert profile.matmul is not None
    table = profile.table()
    assert all(name in table for name in (*PHASES, "other", "loader alone", "images/s"))


def test_several_processes_are_refused(data):
    with pytest.raises(RecipeError, match=r"run\.devices=1"):
        profile_recipe(recipe(data, "run.devices=2"))


def test_a_timed_iterator_gives_all_items():
    clock = PhaseClock(torch.device("cpu"))
    assert list(clock.items("forward", lambda: [1, 2, 3])()) == [1, 2, 3]
    assert clock.host["forward"] > 0
    assert clock.on_device() is None
