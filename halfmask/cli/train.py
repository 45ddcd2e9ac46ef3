"""`halfmask train`: from a recipe, or from a folder of images alone, to a run folder."""

import json
import os
import re
import tempfile
import time as clock
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfmask.cli import flags
from halfmask.cli.exits import is_out_of_memory
from halfmask.cli.recipe_flags import RecipeFlags
from halfmask.cli.train_report import naming_other_seeds, report, report_dry_run, smaller
from halfmask.errors import DataError, Faults, Interrupted, OutOfMemoryError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from halfmask.plan import Plan
    from halfmask.recipe.read import Recipe
    from halfmask.run.fit import TrainResult

_BUDGET = {"time": "seconds", "memory": "memory", "pretrained": "pretrained"}  # flag -> keyword of a plan


@dataclass(frozen=True)
class Place:
    """Where the run is written, and which run it continues."""

    out: Annotated[Path | None, typer.Option("--out", metavar="RUN", help="Run folder to write.")] = None
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="N,N,...", help="One run per seed, in RUN/seed-N.")
    ] = None
    folds: Annotated[
        int | None,
        typer.Option(
            "--folds",
            metavar="K",
            min=2,
            help="Cross-validate with few masks: K runs tell how good; then one on all masks.",
        ),
    ] = None
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Continue this run from its last checkpoint.")
    ] = None
    resume_from: Annotated[
        Path | None, typer.Option("--resume-from", metavar="RUN", help="A new run with the weights and recipe of RUN.")
    ] = None
    overwrite: flags.Overwrite = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check recipe, data and model, predict memory and time, and stop.")
    ] = False
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="At most N steps.")] = None


@dataclass(frozen=True)
class BudgetFlags:
    """What the plan may use."""

    time: Annotated[
        str | None,
        typer.Option(
            "--time", metavar="TIME", help="Of the plan: all it may take, e.g. 30m or 2h; a bare number is minutes."
        ),
    ] = None
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", help="Of the plan, e.g. 8GB; of a recipe with --dry-run: what fits."),
    ] = None
    pretrained: Annotated[bool, typer.Option("--pretrained", help="The plan may download pretrained weights.")] = False

    @property
    def given(self) -> str:
        """First flag that only a plan understands; "" where there is none."""
        return "--time" if self.time is not None else "--pretrained" if self.pretrained else ""


def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE KEY=VALUE",
            help="A recipe file or the name of a shipped one (fixmatch/folder), then any key of it.",
            show_default=False,
        ),
    ] = None,
    *,
    recipe: RecipeFlags,
    place: Place,
    budget: BudgetFlags,
    output: flags.Output,
) -> None:
    """Train by a recipe, or by a plan.

    With only --data and --out the plan is chosen from the data and this machine, and printed with its reasons.
    """
    began = clock.monotonic()
    source, overrides = flags.split_arguments(arguments)
    keys = recipe.given
    if {"run.epochs", "run.steps"} <= keys.keys():
        raise RecipeError("--epochs and --steps both say how long to train: give one.")
    if (source is not None or place.resume is not None) and budget.given:
        raise RecipeError(
            f"{budget.given} belongs to the plan, which is made where no recipe is named: leave out "
            f"{source or f'--resume {place.resume}'}; or set "
            f"{'run.steps' if budget.time is not None else 'model.encoder.weights'}."
        )
    memory = _memory_limit(budget.memory, place.dry_run or source is None)
    seconds = _seconds(budget.time)
    if "run.epochs" in keys:
        overrides = ["run.steps=null", *overrides]  # a recipe's steps would win over epochs
    options = {"dry_run": place.dry_run, "quiet": output.quiet, "limit": place.limit}
    results: list[TrainResult] = []
    try:
        if place.resume is not None:
            results.append(_resume(source, place, flags.merge(keys, overrides), options))
        elif place.resume_from is not None:
            otherwise = bool(source or place.seeds or place.folds or budget.given)
            results.append(_begin(place, flags.merge(keys, overrides), otherwise, options))
        else:
            limits = {"seconds": seconds, "memory": memory, "pretrained": budget.pretrained, "began": began}
            for result in _train_all(source, keys, overrides, place, limits, options):
                results.append(result)
    except Interrupted as stopped:
        results += [] if stopped.result is None else [stopped.result]
        _tell(results, output.as_json)
        raise
    if place.dry_run and not output.as_json:
        from halfmask.infer.devices import is_first_rank

        if is_first_rank():  # one process of torchrun speaks for all
            report_dry_run(results, memory, place.folds if source else None)
    else:
        _tell(results, output.as_json)


def _tell(results: "list[TrainResult]", as_json: bool) -> None:
    from halfmask.infer.devices import is_first_rank

    if results and is_first_rank():
        report(results, as_json)


def _train_all(
    source: str | None,
    keys: dict[str, Any],
    overrides: list[str],
    place: Place,
    limits: dict[str, Any],
    options: dict[str, Any],
) -> "Iterator[TrainResult]":
    """Check the command, then plan or read the recipe and train every seed, or the folds."""
    given, quiet = flags.merge(keys, overrides), options["quiet"]
    _check_places(source, place, given)
    _say_at_once(source, quiet)
    folders = _folders(source, place, keys, given)
    planned = None
    if source is None and (source := _earlier_seed(place, given, folders, limits, quiet)) is None:
        limits |= {"folds": place.folds or 0, "seeds": len(folders), "limit": place.limit}
        planned = _plan({**keys, **folders[0][1]}, overrides, quiet, **limits)
    for number, (folder, seed) in enumerate(folders, 1):
        chosen = _with_seed(planned.recipe, seed) if planned else flags.load_recipe(source, keys | seed, overrides)
        if planned and place.dry_run:  # its trials have answered all that another one would measure anew
            yield _tried(planned, folder)
            continue
        with naming_other_seeds(folders[number:]):
            if place.folds is None:
                result = _train(chosen, folder, overwrite=place.overwrite, **options)
            else:
                result = _cross_validate(chosen, folder, place, options)
        yield result


def _earlier_seed(
    place: Place,
    given: dict[str, Any],
    folders: list[tuple[Path, dict[str, Any]]],
    limits: dict[str, Any],
    quiet: bool,
) -> str | None:
    """Return the recipe that was planned for other seeds there: all of them train alike, whatever time is left now."""
    others = _out(place).glob("seed-*/recipe.yaml") if place.seeds is not None and not place.overwrite else ()
    for path in sorted(set(others) - {folder / "recipe.yaml" for folder, _ in folders}):
        text = path.read_text(encoding="utf-8", errors="replace")
        root = re.search(r"^ *root: (.+?)  #", text, re.MULTILINE)
        if "# plan:" in text and root is not None and Path(root[1]) == Path(str(given["data.root"])):
            unused = [f"--{flag}" for flag, key in _BUDGET.items() if limits.get(key)]
            remark = f" ({' and '.join(unused)} did not count)" if unused else ""
            flags.say(f"plan     that of {path.parent}: all seeds train alike{remark}", quiet)
            return str(path)
    return None


def _out(place: Place) -> Path:
    """Return the folder of the run; a dry run without --out may name any, because it writes nothing."""
    if place.out is None and not place.dry_run:
        raise RecipeError("where to? Name a run folder: --out runs/first")
    return place.out or Path(tempfile.gettempdir()) / f"halfmask-dry-run-{os.getpid()}"


def _memory_limit(text: str | None, usable: bool) -> int | None:
    if text is None:
        return None
    if not usable:
        raise RecipeError(
            "--memory is a budget of the plan: leave out the recipe; or use it with --dry-run, which says what batch "
            "fits, then set data.batch."
        )
    from halfmask.run.cost import parse_bytes

    try:
        size = parse_bytes(text)
    except ValueError:
        raise RecipeError(f"--memory {text}: expected a size, for example 8GB or 500MB.", "H303") from None
    if text.strip()[-1:].isdigit():  # bytes, which nobody means
        raise RecipeError(f"--memory {text}: name the unit, for example {text.strip()}GB.", "H303")
    return size


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    from halfmask.plan.budget import read_duration

    try:
        return read_duration(text)
    except ValueError:
        raise RecipeError(f"--time {text}: expected a time, for example 30m, 2h or 90s.", "H303") from None


def _plan(keys: dict[str, Any], overrides: list[str], quiet: bool, **budget: Any) -> "Plan":
    from halfmask.progress import timed

    with timed("importing the trainer"):
        from halfmask.plan import make_plan

    flags.say("plan     looking at the data and trying a few steps ...", quiet)
    plan = make_plan(flags.merge(keys, overrides), quiet=quiet, **budget)
    flags.say(plan.describe(), quiet)
    return plan


def _say_at_once(source: str | None, quiet: bool) -> None:
    """Print a first line before seconds of imports, once for all processes of torchrun."""
    what = f"recipe   {source}" if source else "plan     from the data"
    flags.say(f"{what}; loading libraries ...", quiet or os.environ.get("RANK", "0") != "0")


def _check_places(source: str | None, place: Place, given: dict[str, Any]) -> None:
    """Refuse a plan without data, data that is not there and a run without a folder before seconds of imports."""
    faults, root = Faults(), given.get("data.root")
    with faults.collected():
        _out(place)
    if not root and source is None:
        faults.add(
            RecipeError(
                "train on what? Give a recipe and data (halfmask train fixmatch/folder --data DIR --out RUN), or only "
                "--data DIR --out RUN. Shipped recipes: halfmask list recipes"
            )
        )
    if faults and root and not Path(str(root)).exists():  # alone, it is found with all that the recipe says
        faults.add(DataError(f"{root}: no such folder. Give the folder of your images with --data DIR.", "H208"))
    faults.raise_all()


def _tried(plan: "Plan", out: Path) -> "TrainResult":
    """Return what a dry run of a plan says: the plan's own estimate."""
    from halfmask.run.fit import TrainResult

    return TrainResult(out, 0, plan.seconds, cost=plan.cost)


def _with_seed(recipe: "Recipe", seed_key: dict[str, Any]) -> "Recipe":
    if not seed_key:
        return recipe
    run = recipe.run.model_copy(update={"seed": seed_key["run.seed"]})
    return recipe.model_copy(update={"run": run})


def _folders(
    source: str | None, place: Place, keys: dict[str, Any], given: dict[str, Any]
) -> list[tuple[Path, dict[str, Any]]]:
    """Return the folder and the seed of each run, after a look whether they are free.

    A place that is taken is refused here, before the plan or an earlier seed has cost its time; what is wrong with the
    recipe and the data comes in the same error.
    """
    out = _out(place)
    if place.folds is not None and place.seeds is not None:
        raise RecipeError("--folds and --seeds each train several runs into one folder: give one, or two --out.")
    if place.seeds is not None and "run.seed" in keys:
        raise RecipeError("--seed and --seeds contradict each other: give one.")
    seeds = flags.numbers(place.seeds, "--seeds") if place.seeds is not None else []
    folders: list[tuple[Path, dict[str, Any]]] = [(out / f"seed-{seed}", {"run.seed": seed}) for seed in seeds]
    folders = folders or [(out, {})]
    from halfmask.progress import timed

    with timed("importing torch and the library of networks"):
        from halfmask.infer.devices import is_first_rank
        from halfmask.run.folder import RunDir

    faults = Faults()
    for folder, _ in folders if is_first_rank() else ():
        with faults.collected():
            RunDir(folder).check_free(overwrite=place.overwrite)
    if faults:
        from halfmask.data.splits.opening import check_data, load_checked
        from halfmask.run.prepare import check_machine, check_settings

        with faults.collected():
            recipe = load_checked(source, given)
            (check_machine if source is None else check_settings)(recipe, faults)  # a plan chooses its batches
            check_data(recipe.data, faults)
        faults.raise_all()
    return folders


def _cross_validate(recipe: "Recipe", out: Path, place: Place, options: dict[str, Any]) -> "TrainResult":
    from halfmask.run.folds import check_folds, train_folds

    assert place.folds is not None
    if place.dry_run:
        check_folds(recipe, place.folds, place.limit)
        return _train(recipe, out, overwrite=place.overwrite, **options)
    result, _ = train_folds(
        recipe, out, place.folds, overwrite=place.overwrite, quiet=options["quiet"], limit=place.limit
    )
    return result


def _train(recipe: "Recipe", out: Path, **options: Any) -> "TrainResult":
    from halfmask.run.train import train as run

    try:
        return run(recipe, out, **options)
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(smaller(recipe, out, error)) from error
        raise


def _resume(source: str | None, place: Place, overrides: dict[str, Any], options: dict[str, Any]) -> "TrainResult":
    run = place.resume
    assert run is not None
    if source or place.seeds or place.folds or place.overwrite or place.out not in (None, run):
        raise RecipeError(
            "--resume RUN continues that run by its own recipe: leave out RECIPE, --out, --seeds, --folds."
        )
    from halfmask.infer.bundle import FOLDS

    if (run / FOLDS).is_file():
        if overrides or options["limit"] or options["dry_run"]:
            raise RecipeError("a run with --folds is continued as it began: halfmask train --resume RUN alone.")
        from halfmask.run.folds import train_folds

        return train_folds(None, run, resume=True, quiet=options["quiet"])[0]
    from halfmask.run.train import train as train_run

    return train_run(None, run, resume=True, overrides=_texts(overrides), **options)


def _begin(place: Place, overrides: dict[str, Any], otherwise: bool, options: dict[str, Any]) -> "TrainResult":
    out = _out(place)
    if otherwise:
        raise RecipeError(
            "--resume-from RUN has the recipe of that run: leave out RECIPE, --seeds, --folds, --time and --pretrained."
        )
    from halfmask.run.train import train as train_run

    more = {"resume_from": place.resume_from, "overwrite": place.overwrite, **options}
    return train_run(None, out, overrides=_texts(overrides), **more)


def _texts(overrides: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key}={json.dumps(value)}" for key, value in overrides.items())
