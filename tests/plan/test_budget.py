"""Budgets of time and memory: what is planned to keep them."""

import math
import time
from dataclasses import replace

import pytest

from halfmask.errors import RecipeError
from halfmask.plan import budget
from halfmask.plan.budget import Budget, fit, read_duration
from halfmask.plan.choices import Choice
from halfmask.plan.facts import Machine
from halfmask.plan.table import LIMITS
from halfmask.plan.trials import Measured
from halfmask.recipe.read import Recipe, load
from tests.plan.trials import prepared

MACHINE = Machine(None, 2**34, 2)


def fitted(asked: Budget, given: dict | None = None, machine: Machine = MACHINE) -> tuple[Recipe, budget.Fit]:
    base = {"data.crop": 160, "data.batch.labeled": 4, "data.batch.unlabeled": 4}

    def build(more: dict) -> Recipe:
        return load(None, {**base, **more, **(given or {})})

    found = fit(build, 1000, 32, asked, machine)
    return build(found.settings), found


def test_without_a_budget_the_usual_steps_are_planned(trials):
    trials()
    recipe, _ = fitted(Budget())
    assert (recipe.run.steps, recipe.data.crop, recipe.data.batch.labeled) == (1000, 160, 4)


@pytest.mark.parametrize("seconds", [100.0, 600.0, 1800.0])
def test_steps_and_validations_fill_a_time_and_no_more(trials, seconds):
    made = trials()
    recipe, found = fitted(Budget(seconds=seconds, began=time.monotonic()))
    step = made(recipe).step_seconds
    validations = math.ceil(recipe.run.steps / recipe.run.eval_every)
    # As many as their share of the time allows, or the ten that are enough.
    assert validations * 2.0 <= LIMITS.validation_share * seconds
    assert validations == LIMITS.validations or (validations + 1) * 2.0 > LIMITS.validation_share * 0.7 * seconds
    assert recipe.run.steps * step + validations * 2.0 < seconds
    assert recipe.run.steps * step + validations * 2.0 > 0.7 * seconds
    assert f"{recipe.run.steps}" in {choice.value for choice in found.choices}


def test_several_runs_share_a_time(trials):
    made = trials()
    for runs, seconds in ((1, 600.0), (4, 2400.0)):
        recipe, found = fitted(Budget(seconds=seconds, began=time.monotonic(), runs=runs))
        each = recipe.run.steps * made(recipe).step_seconds + 2.0 * math.ceil(recipe.run.steps / recipe.run.eval_every)
        assert 0.7 * 600 < each < 600
    assert "as many as fit into 40.0 min, which 4 runs share, at" in found.choices[-1].reason
    with pytest.raises(RecipeError, match=r"each of 4 runs takes 4\.0 s to begin. Give at least --time 3\ds"):
        fitted(Budget(seconds=5.0, began=time.monotonic(), runs=4))


def test_a_long_time_is_not_filled_for_its_own_sake(trials):
    trials()
    recipe, found = fitted(Budget(seconds=1e6, began=time.monotonic()))
    assert recipe.run.steps == 10_000
    assert "10 times the usual" in found.choices[-1].reason


def test_a_short_time_is_met_with_a_smaller_crop(trials):
    trials(step=1e-5)
    recipe, found = fitted(Budget(seconds=120.0, began=time.monotonic()))
    assert 64 <= recipe.data.crop < 160
    assert recipe.data.crop % 32 == 0
    assert recipe.run.steps > 100
    assert {choice.topic for choice in found.choices} == {"crop", "steps"}


def test_an_impossible_time_names_the_smallest_possible_one(trials):
    trials(step=1e-4)
    with pytest.raises(RecipeError, match=r"--time 12 s is too short.*Give at least --time \d+s") as caught:
        fitted(Budget(seconds=12.0, began=time.monotonic()))
    smallest = int(str(caught.value).rpartition("--time ")[2].rstrip("s."))
    recipe, _ = fitted(Budget(seconds=float(smallest), began=time.monotonic()))
    assert recipe.run.steps >= 10


def test_memory_is_met_with_a_smaller_batch_then_a_smaller_crop(trials):
    made = trials()  # a pair of images takes 256 at crop 160, 40 at crop 64
    recipe, _ = fitted(Budget(memory=1600))
    assert (recipe.data.batch.labeled, recipe.data.batch.unlabeled, recipe.data.crop) == (3, 3, 160)
    assert made(recipe).memory <= 1600 * 0.85
    assert recipe.data.workers == 0
    recipe, found = fitted(Budget(memory=1000))
    assert recipe.data.crop < 160
    assert made(recipe).memory <= 1000 * 0.85
    assert "crop" in {choice.topic for choice in found.choices}


def test_free_memory_is_a_limit_too(trials):
    trials()
    recipe, _ = fitted(Budget(), machine=Machine(None, 1600, 2))
    assert recipe.data.batch.labeled == 3
    assert recipe.data.workers == "auto"


def test_an_impossible_memory_names_the_smallest_possible_one(trials):
    trials(fixed=2**30, pixel=1000.0)
    with pytest.raises(RecipeError, match=r"--memory 0\.50 GiB is too little.*Give at least --memory \d+MB") as caught:
        fitted(Budget(memory=2**29))
    smallest = int(str(caught.value).split("--memory ")[2].partition("MB")[0]) * 2**20
    recipe, _ = fitted(Budget(memory=smallest))
    assert recipe.data.batch.labeled >= 2


def test_keys_of_the_user_are_not_changed_but_refused(trials):
    trials()
    given = {"data.batch.labeled": 4, "data.batch.unlabeled": 4, "data.crop": 160}
    with pytest.raises(RecipeError, match="too little"):
        fitted(Budget(memory=1000), given)


def test_costly_validations_become_fewer(trials):
    trials(validation=500.0)
    recipe, _ = fitted(Budget())
    assert recipe.run.eval_every == 1000
    recipe, _ = fitted(Budget(seconds=900.0, began=time.monotonic()))
    assert recipe.run.eval_every >= recipe.run.steps


TWIN = Choice("twin", "masks alone", "because", {"run.twin": "supervised", "eval.ship": "overall"})


@pytest.mark.parametrize("seconds", [None, 600.0, 20.0])
def test_a_twin_has_its_share_of_the_time_where_that_leaves_enough(trials, monkeypatch, seconds):
    made = trials()

    def doubled(measured, recipe):
        own = replace(measured.cost, step_seconds=0.5 * measured.step_seconds)
        return Measured(prepared(recipe), own, 1.5 * measured.step_seconds, 3.0, 0)

    monkeypatch.setattr(budget, "with_twins", doubled)
    base = {"data.crop": 160, "data.batch.labeled": 4, "data.batch.unlabeled": 4}
    asked = Budget(seconds=seconds, began=time.monotonic())
    found = fit(lambda more: load(None, {**base, **more}), 1000, 32, asked, MACHINE, TWIN)
    recipe = load(None, {**base, **found.settings})
    chosen = {choice.topic: choice for choice in found.choices}
    if seconds == 20.0:  # some 50 steps
        assert (recipe.run.twin, recipe.eval.ship) == (None, "first")
        assert "20 s is too short for a second training, on masks alone, so whether" in chosen["twin"].reason
        assert "steps" not in chosen["twin"].reason  # their number stands beside `steps`
        return
    assert (recipe.run.twin, recipe.eval.ship) == ("supervised", "overall")
    assert chosen["twin"] is TWIN
    if seconds is not None:
        step = 1.5 * made(recipe).step_seconds
        validations = math.ceil(recipe.run.steps / recipe.run.eval_every)
        assert 0.5 * seconds < recipe.run.steps * step + validations * 3.0 < seconds
        assert "compared with included" in chosen["steps"].reason


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1800), ("90s", 90), ("1h30m", 5400), ("2d", 172_800), ("20", 1200), ("1.5 h", 5400)]
)
def test_times_are_read(text, seconds):
    assert read_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0m", "m", "3 apples", "-5m", "5m3"])
def test_other_texts_are_no_time(text):
    with pytest.raises(ValueError, match=r"^" + text + r"$|could not convert"):
        read_duration(text)


@pytest.mark.parametrize(("seconds", "most"), [(3.0, 0), (12.0, 1)], ids=["before any trial", "after the first"])
def test_a_time_out_of_reach_is_refused_early(trials, monkeypatch, seconds, most):
    trials(step=1e-2)
    tried, measure = [], budget.measure
    monkeypatch.setattr(budget, "measure", lambda *asked: tried.append(asked) or measure(*asked))
    with pytest.raises(RecipeError, match=r"--time .* is too short.*Give at least --time \d+s"):
        fitted(Budget(seconds=seconds, began=time.monotonic()))
    assert len(tried) == most
