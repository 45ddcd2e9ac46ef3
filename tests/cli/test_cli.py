"""The command line in this process: what it passes on, what it prints where, and its exit codes."""

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

from halfmask import __version__
from halfmask.cli.app import app
from halfmask.cli.flags import set_verbosity
from halfmask.data.folder.masks import decode as masks
from halfmask.errors import Interrupted
from halfmask.recipe.read import load
from halfmask.run import fit as engine
from halfmask.run.fit import TrainResult
from tests.run.tiny import write_dataset


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="halfmask")


@pytest.fixture
def trained(monkeypatch):
    """Replace training by a recorder of what it was asked to do."""
    calls = []

    def record(recipe, out, **options):
        calls.append((recipe, Path(out), options))
        return TrainResult(Path(out), 7, 1.0, {"teacher": 0.5})

    monkeypatch.setattr(engine, "fit", record)
    return calls


@pytest.mark.parametrize("verb", sorted(command.name for command in app.registered_commands))
def test_every_verb_can_show_a_traceback_and_the_quiet_ones_can_also_be_verbose(verb):
    options = {option for param in get_command(app).commands[verb].params for option in param.opts}
    assert "--debug" in options
    assert ("--verbose" in options) == ("--quiet" in options)


def test_quiet_and_verbose_contradict_each_other(tmp_path):
    result = run("check", "--data", tmp_path, "--quiet", "--verbose")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "give one" in result.stderr


def test_version():
    result = run("--version")
    assert (result.exit_code, result.stdout.strip()) == (0, __version__)


def test_a_misspelled_option_suggests_the_right_one():
    result = run("train", "--epoch", "3")
    assert result.exit_code == 2
    assert "--epochs" in result.stderr
    assert result.stdout == ""


def test_a_misspelled_verb_suggests_the_right_one():
    result = run("trian")
    assert result.exit_code == 2
    assert "train" in result.stderr


def test_flags_are_sugar_for_keys_of_the_recipe(trained, tmp_path):
    flags = "--data D --method mean_teacher --labeled 0.25 --unlabeled more.txt --seed 3 --steps 11 --batch-size 4+8"
    more = "--crop 128 --lr 1e-4 --precision 32-true --devices 2 --workers 0 --limit 5 --overwrite --quiet"
    result = run("train", "fixmatch/folder", *flags.split(), *more.split(), "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    ((recipe, out, options),) = trained
    assert recipe.method.name == "mean_teacher"
    data = recipe.data
    assert (data.root, data.labeled, data.unlabeled, data.crop, data.workers) == ("D", 0.25, "more.txt", 128, 0)
    assert (data.batch.labeled, data.batch.unlabeled) == (4, 8)
    assert (recipe.run.seed, recipe.run.steps, recipe.run.devices, recipe.run.precision) == (3, 11, 2, "32-true")
    assert recipe.optim.lr == 1e-4
    assert recipe.origins["data.crop"] == "override"
    assert recipe.origins["optim.name"].startswith("file ")
    assert out == tmp_path / "run"
    assert options == {"overwrite": True, "dry_run": False, "quiet": True, "limit": 5}


def test_a_key_wins_over_its_flag_and_text_that_looks_like_a_number_stays_text(trained, tmp_path):
    result = run("train", "fixmatch/folder", "data.crop=96", "--crop", 128, "--data", "2024", "--out", tmp_path / "r")
    assert result.exit_code == 0, result.output
    assert (trained[0][0].data.crop, trained[0][0].data.root) == (96, "2024")


def test_epochs_win_over_the_steps_of_the_recipe(trained, tmp_path):
    result = run("train", "fixmatch/folder", "--data", "D", "--epochs", 9, "--out", tmp_path / "r")
    assert result.exit_code == 0, result.output
    assert (trained[0][0].run.epochs, trained[0][0].run.steps) == (9, None)


def test_a_folder_of_unlabeled_images_may_lie_elsewhere(trained, tmp_path):
    (tmp_path / "more").mkdir()
    result = run("train", "fixmatch/folder", "--data", "D", "--unlabeled", tmp_path / "more", "--out", tmp_path / "r")
    assert result.exit_code == 0, result.output
    assert trained[0][0].data.unlabeled.root == str(tmp_path / "more")


def test_several_seeds_make_several_runs(trained, tmp_path):
    result = run("train", "fixmatch/folder", "--data", "D", "--seeds", "0,2", "--out", tmp_path, "--json")
    assert [(recipe.run.seed, out.name) for recipe, out, _ in trained] == [(0, "seed-0"), (2, "seed-2")]
    assert [Path(row["out"]).name for row in json.loads(result.stdout)] == ["seed-0", "seed-2"]


def test_a_stopped_seed_names_those_that_have_not_begun(tmp_path, monkeypatch):
    def stopped(recipe, out, **options):
        raise Interrupted(f"stopped in {out.name}.", 143)

    monkeypatch.setattr("halfmask.run.train.train", stopped)
    for seeds, left in (("0,2,5", "--seeds 2,5"), ("4", "")):
        done = run("train", "fixmatch/folder", "--data", "D", "--seeds", seeds, "--out", tmp_path)
        assert done.exit_code == 143
        assert f"stopped in seed-{seeds[0]}." in done.stderr
        assert done.stderr.rstrip().endswith(left)
        assert ("have not begun" in done.stderr) == bool(left)


def test_where_no_validation_chooses_one_sentence_says_what_is_shipped(tmp_path, monkeypatch):
    last = "teacher, its last weights: 2 validation images cannot tell which step is best"
    made = TrainResult(tmp_path / "r", 7, 1.0, {"teacher": 0.5, "student": 0.6}, shipped=last)
    monkeypatch.setattr(engine, "fit", lambda *_, **__: made)
    result = run("train", "fixmatch/folder", "--data", "D", "--out", tmp_path / "r")
    out = tmp_path / "r"
    first = f"{out}  7 steps. Shipped: {last} (val mIoU at the end 50.0%)\n"
    assert result.stdout == f"{first}next     halfmask predict {out} --input DIR --out masks; halfmask report {out}\n"
    monkeypatch.setattr(engine, "fit", lambda *_, **__: replace(made, shipped=""))
    result = run("train", "fixmatch/folder", "--data", "D", "--out", tmp_path / "r")
    assert result.stdout.startswith(f"{out}  7 steps  best teacher val mIoU 50.0%  best student val mIoU 60.0%\nnext ")


def test_a_command_that_is_stopped_tells_the_results_it_has(tmp_path, monkeypatch):
    def in_the_last_step(recipe, out, **options):
        made = TrainResult(out, 7, 1.0, {"teacher": 0.5})
        if out.name == "seed-0":
            return made
        raise Interrupted(f"{out} is finished.", 130, made if out.name == "seed-1" else None)

    monkeypatch.setattr("halfmask.run.train.train", in_the_last_step)
    for seeds, told in (("0,1,2", ["seed-0", "seed-1"]), ("0,2", ["seed-0"]), ("2", [])):
        done = run("train", "fixmatch/folder", "--data", "D", "--seeds", seeds, "--out", tmp_path)
        assert done.exit_code == 130
        assert re.findall(r"(seed-\d)  7 steps  best teacher val mIoU 50\.0%", done.stdout) == told
    assert not done.stdout


def test_seeds_that_are_named_later_train_by_the_plan_of_the_first(trained, tmp_path, monkeypatch):
    (tmp_path / "seed-0").mkdir()
    planned = load("fixmatch/folder", ["data.root=D", "run.steps=37", "data.crop=96"])
    reasons = planned.model_copy(update={"origins": {**planned.origins, "run.steps": "plan: what fits"}})
    (tmp_path / "seed-0" / "recipe.yaml").write_text(reasons.to_yaml(origins=True))
    result = run("train", "--data", "D", "--seeds", "1,2", "--out", tmp_path, "--time", "9m")
    assert result.exit_code == 0, result.output
    assert [(recipe.run.seed, recipe.run.steps, recipe.data.crop) for recipe, _, _ in trained] == [
        (1, 37, 96), (2, 37, 96),
    ]  # fmt: skip
    assert f"that of {tmp_path / 'seed-0'}: all seeds train alike (--time did not count)" in result.stderr
    monkeypatch.setattr("halfmask.plan.make_plan", lambda *_, **__: pytest.fail("planned anew"))
    # Other images, no seeds, or what was there is to be replaced.
    for others in (("--data", "E", "--seeds", "1"), ("--data", "D"), ("--data", "D", "--seeds", "1", "--overwrite")):
        with pytest.raises(pytest.fail.Exception, match="planned anew"):
            run("train", *others, "--out", tmp_path / ("other" if "--seeds" not in others else ""))


def test_without_a_recipe_a_plan_is_made_printed_and_open_to_overrides(trained, tmp_path):
    root = write_dataset(tmp_path / "shapes")
    result = run("train", "--data", root, "--out", tmp_path / "r", "--crop", 64, "--workers", 0, "--seeds", "3,4")
    assert result.exit_code == 0, result.output
    assert [call[0].run.seed for call in trained] == [3, 4]
    assert trained[0][0].method.name == "fixmatch"
    assert trained[0][0].data.crop == 64
    assert trained[0][0].origins["model.encoder.name"].startswith("plan: ")
    assert "crop       64  (as you set)" in result.stderr
    assert result.stderr.count("method     fixmatch") == 1
    assert "fixmatch" not in result.stdout


def test_budgets_and_downloads_belong_to_the_plan(trained, tmp_path):
    for flags in (("--time", "30m"), ("--pretrained",), ("--memory", "8GB")):
        result = run("train", "fixmatch/folder", "--data", "D", "--out", tmp_path / "r", *flags)
        assert result.exit_code == 2, result.output
        assert "plan" in result.stderr
    assert run("train", "--data", "D", "--out", tmp_path / "r", "--time", "soon").exit_code == 2
    assert not trained


def test_resume_continues_a_run_by_its_own_recipe(trained, tmp_path):
    result = run("train", "--resume", tmp_path, "--workers", 0)
    assert result.exit_code == 0, result.output
    recipe, out, options = trained[0]
    assert recipe is None
    assert out == tmp_path
    assert options["resume"]
    assert options["overrides"] == ("data.workers=0",)
    assert run("train", "fixmatch/folder", "--resume", tmp_path).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "mending"),
    [
        (["--out", "R"], "--data DIR"),
        (["fixmatch/folder", "--data", "D"], "--out"),
        (["fixmatch/foldr", "--data", "D", "--out", "R"], "Did you mean `fixmatch/folder`"),
        (["fixmatch/folder", "data.crp=96", "--out", "R"], "Did you mean `crop`"),
        (["fixmatch/folder", "method.treshold=0.9", "--out", "R"], "threshold"),
        (["fixmatch/folder", "other/recipe", "--out", "R"], "key=value"),
        (["data.crop=96", "fixmatch/folder", "--out", "R"], "A recipe comes first"),
        (["fixmatch/folder", "--method", "fixmach", "--out", "R"], "Did you mean `fixmatch`"),
        (["fixmatch/folder", "--batch-size", "many", "--out", "R"], "4+8"),
        (["fixmatch/folder", "--seeds", "0;1", "--out", "R"], "0,1,2"),
        (["fixmatch/folder", "--steps", "3", "--epochs", "3", "--out", "R"], "give one"),
        (["fixmatch/folder", "-q", "-v", "--out", "R"], "give one"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_to_do(trained, arguments, mending):
    result = run("train", *arguments)
    assert result.exit_code == 2, result.output
    assert mending in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert trained == []


def test_a_dry_run_needs_no_place_for_a_run(trained):
    result = run("train", "fixmatch/folder", "--data", "D", "--dry-run")
    assert result.exit_code == 0, result.output
    ((_, out, options),) = trained
    assert options["dry_run"] is True
    assert not out.exists()
    wanted = run("train", "fixmatch/folder", "--data", "D")
    assert wanted.exit_code == 2
    assert "--out" in wanted.stderr


def test_missing_data_exits_with_3(tmp_path):
    result = run("train", "fixmatch/folder", "--data", tmp_path / "nowhere", "--out", tmp_path / "r", "--dry-run")
    assert result.exit_code == 3
    assert "\nDataError[H208]: " in result.stderr  # after the line that says what is being done
    assert "nowhere" in result.stderr
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 4, "data.batch.labeled=4"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), 4, "data.crop=192"),
        (Interrupted("stopped at step 3; continue with halfmask train --resume R"), 130, "--resume R"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyError("surprise"), 1, "--debug"),
        (RuntimeError("shapes differ"), 1, "report"),
    ],
)
def test_failures_have_their_exit_code_and_message(monkeypatch, tmp_path, error, code, text):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(engine, "fit", fail)
    command = ["train", "fixmatch/folder", "--data", "D", "--out", tmp_path / "r", "--batch-size", 8, "--crop", 256]
    result = run(*command)
    assert result.exit_code == code
    assert text in result.stderr
    assert "Traceback" not in result.stderr
    debug = run(*command, "--debug")
    assert debug.exit_code == code
    assert "Traceback" in debug.stderr
    assert text in debug.stderr


@pytest.mark.parametrize(
    ("arguments", "mending"),
    [
        ([], "--count"),
        (["--count", "3"], "--data"),
        (["--data", "D", "--fraction", "1/0"], "1/8"),
        (["--data", "D", "--fraction", "2"], "(0, 1]"),
        (["--data", "D", "--count", "2", "--fraction", "1/2"], "--count"),
    ],
)
def test_split_says_what_is_missing(arguments, mending):
    result = run("split", *arguments)
    assert result.exit_code == 2
    assert mending in result.stderr


def test_evaluating_something_that_is_no_run_exits_with_3(tmp_path):
    assert run("evaluate", tmp_path / "none", "-q").exit_code == 3
    assert run("evaluate", tmp_path / "none", "eval.mode", "-q").exit_code == 2


def test_warnings_of_ours_show_no_line_of_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # given back at the end
    set_verbosity(quiet=False, verbose=False)
    for place, text in ((masks.__file__, "a mask of ours"), (np.__file__, "of a library")):
        warnings.showwarning(UserWarning(text), UserWarning, place, 7)
    ours, theirs = capsys.readouterr().err.splitlines()[:2]
    assert ours == "warning: a mask of ours"
    assert theirs == f"{np.__file__}:7: UserWarning: of a library"
