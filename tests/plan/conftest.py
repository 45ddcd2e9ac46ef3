"""A small folder, its plan, and trials of known cost."""

from pathlib import Path

import pytest

from halfmask.plan import Plan, budget, make_plan
from tests.plan.trials import Trials
from tests.run.tiny import write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("plan") / "shapes", images=16, masks=10)


@pytest.fixture(scope="module")
def plan(data) -> Plan:
    return make_plan({"data.root": str(data), "data.crop": 64, "data.workers": 0})


@pytest.fixture
def trials(monkeypatch):
    def use(**values: float) -> Trials:
        made = Trials(**values)
        monkeypatch.setattr(budget, "measure", made)
        return made

    return use
