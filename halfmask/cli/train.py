"""`halfmask train`: from a recipe, or from a folder of images alone, to a run folder."""

import dataclasses
import json
import os
import tempfile
import time as clock
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfmask.cli import flags
from halfmask.cli.exits import is_out_of_memory
from halfmask.errors import OutOfMemoryError, RecipeError
from halfmask.task import METRIC_NAMES

if TYPE_CHECKING:
    from halfmask.recipe.read import Recipe
    from halfmask.run.fit import TrainResult


def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE KEY=VALUE",
            help="A recipe file or the name of a shipped one (fixmatch/folder), then any key of it.",
            show_default=False,
        ),
    ] = None,
    data: flags.Data = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="RUN", help="Run folder to write.")] = None,
    method: Annotated[str | None, typer.Option("--method", metavar="NAME", help="[method.name]")] = None,
    labeled: Annotated[
        str | None, typer.Option("--labeled", metavar="N|LIST", help="How many masks, or a list file [data.labeled].")
    ] = None,
    unlabeled: Annotated[
        str | None, typer.Option("--unlabeled", metavar="DIR|LIST", help="Images without masks [data.unlabeled].")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="[run.seed]")] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="N,N,...", help="One run per seed, in RUN/seed-N.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", metavar="N", help="[run.epochs]")] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="[run.steps]")] = None,
    batch_size: Annotated[
        str | None, typer.Option("--batch-size", metavar="N|N+N", help="Labeled+unlabeled images [data.batch].")
    ] = None,
    crop: Annotated[int | None, typer.Option("--crop", metavar="N", help="[data.crop]")] = None,
    lr: Annotated[float | None, typer.Option("--lr", metavar="X", help="[optim.lr]")] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", metavar="NAME", help="auto, 32-true or bf16-mixed [run.precision].")
    ] = None,
    devices: Annotated[int | None, typer.Option("--devices", metavar="N", help="[run.devices]")] = None,
    workers: Annotated[str | None, typer.Option("--workers", metavar="N", help="[data.workers]")] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Continue this run from its last checkpoint.")
    ] = None,
    resume_from: Annotated[
        Path | None, typer.Option("--resume-from", metavar="RUN", help="A new run with the weights and recipe of RUN.")
    ] = None,
    overwrite: flags.Overwrite = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check recipe, data and model, predict memory and time, and stop.")
    ] = False,
    time: Annotated[
        str | None,
        typer.Option(
            "--time", metavar="TIME", help="Of the plan: all it may take, e.g. 30m or 2h; a bare number is minutes."
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", help="Of the plan, e.g. 8GB; of a recipe with --dry-run: what fits."),
    ] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="The plan may download pretrained weights.")] = False,
    twin: Annotated[
        bool, typer.Option("--twin", help="Also train without the unlabeled images, and compare [run.twin].")
    ] = False,
    reference: Annotated[
        bool, typer.Option("--reference", help="Compute with the plain, slow formulations, for checks [run.reference].")
    ] = False,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="At most N steps.")] = None,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Train by a recipe, or by a plan.

    With only --data and --out the plan is chosen from the data and this machine, and printed with its reasons.
    """
    began = clock.monotonic()
    source, overrides = flags.split_arguments(arguments)
    if epochs is not None and steps is not None:
        raise RecipeError("--epochs and --steps both say how long to train: give one.")
    if (source is not None or resume is not None) and (time is not None or pretrained):
        what = "--time" if time is not None else "--pretrained"
        raise RecipeError(
            f"{what} belongs to the plan, which is made where no recipe is named: leave out "
            f"{source or f'--resume {resume}'}; or set {'run.steps' if time is not None else 'model.encoder.weights'}."
        )
    bytes_limit = _memory_limit(memory, dry_run or source is None)
    seconds = _seconds(time)
    sugar: dict[str, Any] = {
        "data.root": data,
        "method": method,
        "data.labeled": flags.number_or_text(labeled),
        "run.seed": seed,
        "run.epochs": epochs,
        "run.steps": steps,
        "data.crop": crop,
        "optim.lr": lr,
        "run.precision": precision,
        "run.devices": devices,
        "data.workers": flags.number_or_text(workers),
        "run.twin": twin or None,
        "run.reference": reference or None,
        **flags.unlabeled_key(unlabeled),
        **flags.batch_keys(batch_size),
    }
    if epochs is not None:
        overrides = ["run.steps=null", *overrides]  # a recipe's steps would win over epochs
    options = {"overwrite": overwrite, "dry_run": dry_run, "quiet": quiet, "limit": limit}
    out = out or (_nowhere() if dry_run and resume is None else None)
    if resume is not None:
        if source or seeds or overwrite or (out is not None and out != resume):
            raise RecipeError("--resume RUN continues that run by its own recipe: leave out RECIPE, --out, --seeds.")
        results = [_resume(resume, flags.merge(sugar, overrides), dry_run=dry_run, quiet=quiet, limit=limit)]
    elif out is None:
        raise RecipeError("where to? Name a run folder: --out runs/first")
    elif resume_from is not None:
        otherwise = bool(source or seeds or time is not None or pretrained)
        results = [_begin(resume_from, out, flags.merge(sugar, overrides), otherwise, **options)]
    else:
        results = []
        folders = _folders(out, seeds, seed)
        _check_free([folder for folder, _ in folders], overwrite)
        given = {**sugar, **folders[0][1]}
        if source is None:
            budget = {"seconds": seconds and seconds / len(folders), "memory": bytes_limit, "pretrained": pretrained}
            planned = _plan(given, overrides, quiet, began=began, **budget)
        for folder, seed_key in folders:
            given = {**sugar, **seed_key}
            recipe = flags.load_recipe(source, given, overrides) if source else _with_seed(planned, seed_key)
            results.append(_train(recipe, folder, **options))
    from halfmask.infer.devices import is_first_rank

    if dry_run and not as_json and is_first_rank():  # one process of torchrun speaks for all
        _report_dry_run(results, bytes_limit)
    elif is_first_rank():
        _report(results, as_json)


def _nowhere() -> Path:
    """Return a folder that a dry run without --out may name: it writes nothing."""
    return Path(tempfile.gettempdir()) / f"halfmask-dry-run-{os.getpid()}"


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


def _plan(sugar: dict[str, Any], overrides: list[str], quiet: bool, **budget: Any) -> "Recipe":
    given = flags.merge(sugar, overrides)
    if not given.get("data.root"):
        raise RecipeError(
            "train on what? Give a recipe and data (halfmask train fixmatch/folder --data DIR --out RUN), or only "
            "--data DIR --out RUN. Shipped recipes: halfmask list recipes"
        )
    from halfmask.plan import make_plan

    flags.say("plan     looking at the data and trying a few steps ...", quiet)
    plan = make_plan(given, quiet=quiet, **budget)
    flags.say(plan.describe(), quiet)
    return plan.recipe


def _with_seed(recipe: "Recipe", seed_key: dict[str, Any]) -> "Recipe":
    if not seed_key:
        return recipe
    run = recipe.run.model_copy(update={"seed": seed_key["run.seed"]})
    return recipe.model_copy(update={"run": run})


def _folders(out: Path, seeds: str | None, seed: int | None) -> list[tuple[Path, dict[str, Any]]]:
    if seeds is None:
        return [(out, {})]
    if seed is not None:
        raise RecipeError("--seed and --seeds contradict each other: give one.")
    return [(out / f"seed-{number}", {"run.seed": number}) for number in flags.numbers(seeds, "--seeds")]


def _check_free(folders: list[Path], overwrite: bool) -> None:
    """Refuse places that are taken before the plan, or an earlier seed, has cost its time."""
    from halfmask.infer.devices import is_first_rank
    from halfmask.run.folder import RunDir

    for folder in folders if is_first_rank() else ():
        RunDir(folder).check_free(overwrite=overwrite)


def _train(recipe: "Recipe", out: Path, **options: Any) -> "TrainResult":
    from halfmask.run.train import train as run

    try:
        return run(recipe, out, **options)
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(_smaller(recipe, out, error)) from error
        raise


def _resume(run: Path, overrides: dict[str, Any], **options: Any) -> "TrainResult":
    from halfmask.run.train import train as train_run

    texts = tuple(f"{key}={json.dumps(value)}" for key, value in overrides.items())
    return train_run(None, run, resume=True, overrides=texts, **options)


def _begin(run: Path, out: Path, overrides: dict[str, Any], otherwise: bool, **options: Any) -> "TrainResult":
    if otherwise:
        raise RecipeError(
            "--resume-from RUN has the recipe of that run: leave out RECIPE, --seeds, --time and --pretrained."
        )
    from halfmask.run.train import train as train_run

    texts = tuple(f"{key}={json.dumps(value)}" for key, value in overrides.items())
    return train_run(None, out, resume_from=run, overrides=texts, **options)


def _smaller(recipe: "Recipe", out: Path, error: Exception) -> str:
    """Say what to try next: smaller batches cost time only, a smaller crop costs accuracy."""
    batch, crop = recipe.data.batch, recipe.data.crop
    tries = []
    if batch.labeled > 2 or batch.unlabeled > 2:
        tries.append(
            f"data.batch.labeled={max(batch.labeled // 2, 2)} data.batch.unlabeled={batch.unlabeled // 2 or 1}"
        )
    tries.append(f"data.crop={max(crop * 3 // 4 // 32 * 32, 32)}")
    first = str(error).partition("\n")[0]
    return (
        f"{first}\n  The run used batch {batch.labeled}+{batch.unlabeled} at crop {crop}. Next to try: "
        f"{', then '.join(tries)} (with --overwrite for {out})."
    )


def _report_dry_run(results: "list[TrainResult]", bytes_limit: int | None) -> None:
    for result in results:
        if bytes_limit is not None and result.cost is not None:
            print(result.cost.describe_limit(bytes_limit))
    print("dry run: recipe, data and model fit.")


def _report(results: "list[TrainResult]", as_json: bool) -> None:
    if as_json:
        rows = [json.loads(json.dumps(dataclasses.asdict(result), default=str)) for result in results]
        print(json.dumps(rows[0] if len(rows) == 1 else rows, indent=2))
        return
    for result in results:
        metric = METRIC_NAMES[result.metric]
        scores = "".join(f"  best {name} val {metric} {value:.1%}" for name, value in result.best.items())
        print(f"{result.out}  {result.steps} steps{scores}")
        if result.twin is not None:
            print(result.twin.describe())
