"""The page about many GPUs is what its script computes."""

import importlib.util
import sys
from pathlib import Path

import pytest

from halfmask.recipe.read import load
from halfmask.recipe.shipped import recipes_folder

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def scaling():
    spec = importlib.util.spec_from_file_location("scaling", DOCS / "scaling.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["scaling"]


def test_a_step_by_hand(scaling):
    step = scaling.Step(parameters=25_000_000, flops=316e12, images=32, batch=16)
    assert step.compute(8) == pytest.approx(1 / 8)
    assert step.communication(1) == 0
    assert step.communication(8) == pytest.approx(2 * 7 / 8 * 100e6 / 300e9)
    assert step.communication(64) == pytest.approx(2 * 63 / 64 * 100e6 / 40e9)
    # Eight times the batch on eight times the GPUs: the same arithmetic, eight times the images.
    assert step.larger(8).compute(64) == step.compute(8)
    assert scaling._scaled(step.larger(8), 64)[1] == f"{8 * 32 * 8}"


def test_the_page_holds_what_a_recipe_gives(scaling):
    """One recipe is enough: counting all takes a minute."""
    step = scaling.step_of(load(recipes_folder() / "supervised/levir.yaml"))
    (row,) = (line for line in (DOCS / "scaling.md").read_text().splitlines() if "`supervised/levir`" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:4] == [
        f"{step.parameters / 1e6:.1f}",
        f"{4 * step.parameters / 1e6:.0f}",
        f"{step.flops / 1e12:.1f}",
    ]


def test_every_published_recipe_has_a_row(scaling):
    page = (DOCS / "scaling.md").read_text()
    names = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert len(names) == len(set(names)) > 40
    assert all((recipes_folder() / f"{name}.yaml").exists() for name in names)
