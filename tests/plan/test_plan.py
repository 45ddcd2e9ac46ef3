"""Plans of real folders: facts, trials, budgets that are kept, reasons in the recipe, the command line."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from halfmask.cli.app import app
from halfmask.errors import DataError
from halfmask.plan import budget, make_plan
from halfmask.plan import trials as precision_trials
from halfmask.plan.facts import Machine, look_at_data, look_at_machine
from halfmask.plan.table import LIMITS
from halfmask.recipe.sections import DataRecipe
from tests import processes

MACHINE = Machine(None, 2**34, 2)


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


@pytest.mark.parametrize(
    ("steps", "most", "weight", "said"),
    [(1999, 10, 0.3, "(fewer than 2000 steps"), (2000, 10, 1.0, ""), (2000, 7, 0.3, "(8 masks teach well themselves")],
)
def test_unlabeled_images_teach_gently_where_steps_are_few_or_masks_many(data, monkeypatch, steps, most, weight, said):
    monkeypatch.setattr("halfmask.plan.make.LIMITS", replace(LIMITS, few_masks=most))
    monkeypatch.setattr("halfmask.plan.choices.LIMITS", replace(LIMITS, few_masks=most))
    given = {"data.root": str(data), "data.crop": 64, "data.workers": 0, "run.steps": steps}
    made = make_plan(given)
    assert made.recipe.method.params["unlabeled_weight"] == weight
    assert ("late, and with little weight  " + said in made.describe()) == bool(said)
    assert ("unlabeled  as much as labels, after a third of the run  (at most" in made.describe()) != bool(said)
    if not said:
        assert make_plan(given, limit=1999).recipe.method.params["unlabeled_weight"] == 0.3
    elif steps < LIMITS.long_run:
        own = make_plan({**given, "method.unlabeled_weight": 0.7})
        assert own.recipe.method.params["unlabeled_weight"] == 0.7
        assert "late, and with" not in own.describe()


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
    command = ["train", "--data", str(data), "--out", "run", "--limit", "2"]
    done = processes.run(tmp_path, *command, "--crop", "64", "--workers", "0")
    assert done.code == 0, done.err
    assert "plan     8 labeled, 6 unlabeled, 2 validation images, 3 classes" in done.err
    assert "method     fixmatch" in done.err
    assert "# plan: " in (tmp_path / "run" / "recipe.yaml").read_text()
    done = processes.run(tmp_path, *command, "--overwrite", "--time", "1s")
    assert done.code == 2
    assert "Give at least --time" in done.err


def test_a_busy_machine_is_said_beside_the_time(plan):
    busy = replace(plan, machine=Machine(None, 2**33, 2, load=6.6)).describe()
    quiet = replace(plan, machine=Machine(None, 2**33, 2, load=1.3)).describe()
    assert "6.6 processes on 2 cores" in busy
    assert "load" not in quiet


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
    assert "steps      4  (--limit, of 3000)" in text
    assert (folded.cost.steps, folded.recipe.run.steps) == (4, 3000)
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
