"""Plans of real folders: facts, trials, budgets that are kept, reasons in the recipe, the command line."""

import math
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from halfmask.cli.app import app
from halfmask.errors import DataError, RecipeError
from halfmask.plan import Plan, budget, make_plan
from halfmask.plan import trials as precision_trials
from halfmask.plan.budget import Budget, fit, read_duration
from halfmask.plan.choices import Choice
from halfmask.plan.facts import Machine, look_at_data, look_at_machine
from halfmask.plan.table import LIMITS
from halfmask.plan.trials import Measured
from halfmask.recipe.read import Recipe, load
from halfmask.recipe.sections import DataRecipe
from halfmask.run.cost import Cost
from halfmask.run.prepared import Prepared
from tests.run.tiny import write_dataset

MACHINE = Machine(None, 2**34, 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("plan") / "shapes", images=16, masks=10)


@pytest.fixture(scope="module")
def plan(data) -> Plan:
    return make_plan({"data.root": str(data), "data.crop": 64, "data.workers": 0})


def test_precision_is_that_of_the_faster_trial_where_the_cpu_has_both(plan, data, monkeypatch):
    asked = plan.recipe.model_copy(update={"run": plan.recipe.run.model_copy(update={"precision": "auto"})})
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert set(precision_trials.time_precisions(asked, plan.data)) == {"32-true", "bf16-mixed"}
    seconds = {"32-true": 0.410, "bf16-mixed": 0.196}
    monkeypatch.setattr(precision_trials, "time_precisions", lambda recipe, data: seconds)
    chosen = precision_trials.choose_precision(asked, plan.data)
    assert (chosen.value, chosen.settings) == ("bfloat16", {"run.precision": "bf16-mixed"})
    assert "196 ms against 410 ms with float32" in chosen.reason
    seconds["32-true"] = 0.1
    made = make_plan({"data.root": str(data), "data.crop": 64, "data.workers": 0})
    assert made.recipe.run.precision == "32-true"
    assert "precision  float32  (100 ms against 196 ms with bfloat16" in made.describe()
    assert precision_trials.choose_precision(made.recipe, made.data) is None  # it names one
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert precision_trials.choose_precision(asked, plan.data) is None


def test_facts_are_those_of_the_folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    (tmp_path / "classes.txt").write_text("ground\nsquare\n")
    for number in range(12):
        mask = np.zeros((80, 120), np.uint8)
        mask[10:30, 10:30] = mask[40:70, 60:90] = 1  # 400 and 900 pixels
        Image.fromarray(np.stack([mask * 200] * 3, 2)).save(tmp_path / "images" / f"{number}.png")
        if number < 7:
            Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
    facts = look_at_data(DataRecipe(root=str(tmp_path)))
    assert (facts.labeled, facts.unlabeled, facts.val, facts.held_out) == (6, 5, 1, True)
    assert (facts.side, facts.long_side, facts.channels) == (80, 120, 3)
    assert facts.shares == pytest.approx((1 - 1300 / 9600, 1300 / 9600))
    assert facts.objects == pytest.approx((20, 25))


def test_data_that_cannot_be_read_is_refused_as_everywhere(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        make_plan({"data.root": str(tmp_path / "nothing")})


def test_the_machine_tells_cores_and_memory():
    machine = look_at_machine("cpu")
    assert machine.gpu is None
    assert machine.cores >= 1
    assert 2**20 < machine.memory < 2**50


def test_a_plan_prints_each_choice_with_its_reason_memory_and_time(plan):
    text = plan.describe()
    topics = [line.split()[0] for line in text.splitlines()]
    assert {"plan", "method", "network", "weights", "crop", "batch", "steps", "validation", "memory", "time"} <= {
        *topics
    }
    assert "crop       64  (as you set)" in text
    assert plan.memory > 2**26
    assert plan.seconds > 0


def test_the_recipe_says_for_each_value_where_it_came_from(plan):
    origins = plan.recipe.origins
    assert origins["data.crop"] == "override"
    assert origins["method.cutmix"].startswith("plan: ")
    assert "no GPU" in origins["model.encoder.name"]
    assert origins["run.steps"].startswith("plan: usual")
    assert origins["data.flip"].startswith("file ")
    written = plan.recipe.to_yaml(origins=True)
    assert yaml.safe_load(written)["run"]["steps"] == plan.recipe.run.steps
    assert "# plan: usual" in written


def test_lengths_that_the_user_sets_stay(data):
    epochs = make_plan({"data.root": str(data), "data.crop": 64, "run.epochs": 2, "run.steps": None, "data.workers": 0})
    assert (epochs.recipe.run.epochs, epochs.recipe.run.steps) == (2, None)


# --- budgets, with trials that cost nothing ----------------------------------------------------------------------


class Trials:
    """Takes the place of `measure`: memory and time follow from the recipe by a formula."""

    def __init__(self, *, fixed: int = 500, pixel: float = 0.01, step: float = 1e-6, validation: float = 2.0) -> None:
        self.fixed, self.pixel, self.step, self.validation = fixed, pixel, step, validation
        self.tried: list[Recipe] = []

    def __call__(self, recipe: Recipe, folds: int = 0) -> Measured:
        self.tried.append(recipe)
        crop, batch = recipe.data.crop, recipe.data.batch
        per_unit = int(self.pixel * crop**2)
        seconds = self.step * crop**2 * (batch.labeled + batch.unlabeled)
        cost = Cost("CPU", batch.labeled, batch.unlabeled, (1, 1), 1, 2, self.fixed, per_unit, seconds, 100)
        return Measured(_prepared(recipe), cost, seconds, self.validation, 0)


def _prepared(recipe: Recipe) -> Prepared:
    """What the budget reads of a prepared run, without any data."""
    prepared = object.__new__(Prepared)
    for name, value in {"recipe": recipe, "eval_every": 100, "total_steps": 1000}.items():
        object.__setattr__(prepared, name, value)
    return prepared


@pytest.fixture
def trials(monkeypatch):
    def use(**values: float) -> Trials:
        made = Trials(**values)
        monkeypatch.setattr(budget, "measure", made)
        return made

    return use


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
        return Measured(_prepared(recipe), own, 1.5 * measured.step_seconds, 3.0, 0)

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


@pytest.mark.parametrize("broken", [("masks/shape_03.png", "masks/shape_05.png"),
                                    ("images/shape_01.png", "images/shape_14.png")])  # fmt: skip
def test_all_broken_files_are_named_before_anything_is_tried(data, tmp_path, trials, broken):
    made, mine = trials(), tmp_path / "shapes"
    shutil.copytree(data, mine)
    for name in broken:
        (mine / name).write_bytes((mine / name).read_bytes()[:60])
    with pytest.raises(DataError, match=r"2 problems in .*masks") as caught:
        make_plan({"data.root": str(mine), "data.crop": 64, "data.workers": 0})
    assert all(name in str(caught.value) for name in broken)
    assert not made.tried


def test_a_place_that_is_taken_is_refused_before_the_plan(data, tmp_path, monkeypatch):
    monkeypatch.setattr("halfmask.plan.make_plan", None)
    (tmp_path / "notes.txt").write_text("mine")
    done = CliRunner().invoke(app, ["train", "--data", str(data), "--out", str(tmp_path)])
    assert done.exit_code == 3
    assert "[H408]" in done.stderr


@pytest.mark.slow
def test_the_command_line_plans_trains_and_writes_the_reasons(data, tmp_path):
    command = [sys.executable, "-m", "halfmask", "train", "--data", str(data), "--out", "run", "--limit", "2"]
    done = subprocess.run([*command, "--crop", "64", "--workers", "0"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "plan     8 labeled, 6 unlabeled, 2 validation images, 3 classes" in done.stderr
    assert "method     fixmatch" in done.stderr
    assert "# plan: " in (tmp_path / "run" / "recipe.yaml").read_text()
    done = subprocess.run([*command, "--overwrite", "--time", "1s"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Give at least --time" in done.stderr


def test_a_busy_machine_is_said_beside_the_time(plan):
    busy = replace(plan, machine=Machine(None, 2**33, 2, load=6.6)).describe()
    quiet = replace(plan, machine=Machine(None, 2**33, 2, load=1.3)).describe()
    assert "6.6 processes on 2 cores" in busy
    assert "load" not in quiet


@pytest.mark.parametrize(("seconds", "most"), [(3.0, 0), (12.0, 1)], ids=["before any trial", "after the first"])
def test_a_time_out_of_reach_is_refused_early(trials, monkeypatch, seconds, most):
    trials(step=1e-2)
    tried, measure = [], budget.measure
    monkeypatch.setattr(budget, "measure", lambda *asked: tried.append(asked) or measure(*asked))
    with pytest.raises(RecipeError, match=r"--time .* is too short.*Give at least --time \d+s"):
        fitted(Budget(seconds=seconds, began=time.monotonic()))
    assert len(tried) == most


def test_a_dry_run_of_a_plan_gives_its_estimate_and_no_other(plan, monkeypatch, tmp_path):
    assert plan.cost.steps == plan.recipe.run.steps
    assert plan.cost.step_seconds * plan.cost.steps == pytest.approx(plan.seconds)
    monkeypatch.setattr("halfmask.plan.make_plan", lambda *_, **__: plan)
    monkeypatch.setattr("halfmask.run.fit.predict_cost", lambda *_: pytest.fail("measured again"))
    root = plan.recipe.data.root
    done = CliRunner().invoke(app, ["train", "--data", root, "--out", str(tmp_path / "run"), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert done.output.count("about") == plan.describe().count("about")
    assert not (tmp_path / "run").exists()


def test_a_plan_for_folds_speaks_of_the_runs_that_follow(plan, data):
    given = {"data.root": str(data), "data.crop": 64, "data.workers": 0}
    folded = make_plan(given, folds=3, limit=4)
    text = folded.describe()
    assert text.startswith("plan     10 labeled, 6 unlabeled images, 3 folds, 3 classes")
    assert "validation 3 folds  (each of the 10 masks is held out once, and all of them together give one score" in text
    assert "steps      4  (--limit, of 1000)" in text
    assert (folded.cost.steps, folded.recipe.run.steps) == (4, 1000)
    assert folded.seconds == pytest.approx(4 * 4 * folded.cost.step_seconds)  # three folds, then all masks
    assert folded.validation_seconds > 0
    assert " for 3 folds and then a run on all masks, " in text
    assert (folded.recipe.data.val, folded.recipe.run.twin) == ("none", None)
    with_twin = budget.duration(7 * folded.cost.seconds + 2 * folded.validation_seconds)
    assert f"--twin adds one to each fold, about {with_twin} in all" in text
    seeds = replace(plan, seeds=3).describe()
    assert " for 3 seeds, " in seeds
    run = plan.recipe.run
    for twin, said in (("supervised", "twin on masks alone"), ("control", "control"),
                       ("both", "control and twin on masks alone")):  # fmt: skip
        both = replace(plan, recipe=plan.recipe.model_copy(update={"run": run.model_copy(update={"twin": twin})}))
        assert f" for the run and its {said}, " in both.describe()
        assert f" for 2 seeds, each with its {said}, " in replace(both, seeds=2).describe()


@pytest.mark.parametrize(
    ("folds", "words"), [("50", "10 masks are in use. Give at most --folds 10"), ("1", "greater than or equal to 2")]
)
def test_folds_that_are_not_possible_are_refused_before_any_trial(data, tmp_path, trials, folds, words):
    made = trials()
    command = ["train", "--data", str(data), "--out", str(tmp_path / "run"), "--folds", folds]
    for recipe in ([], ["fixmatch/folder", "--dry-run"]):
        done = CliRunner().invoke(app, [*command[:1], *recipe, *command[1:]])
        assert done.exit_code == 2, done.output
        assert words in " ".join(done.stderr.split())
    assert not made.tried


def test_what_few_validation_images_cannot_tell_is_said_with_the_price_of_knowing(plan):
    text = plan.describe()  # ten masks, two of which are held out
    seconds = plan.seconds + plan.validation_seconds
    assert "2 validation images cannot tell. --folds 5 --twin measures it on all 10 masks" in text
    assert f"in about {budget.duration(11 * seconds)}" in text
    assert "unknown" not in replace(plan, data=replace(plan.data, val=5)).describe()
