"""Train a run and, where `run.twin` asks for it, its supervised twin: does unlabeled data help here?"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halfmask.atomic import write_json
from halfmask.errors import RecipeError
from halfmask.infer.bootstrap import Interval, difference, scored
from halfmask.infer.bundle import load_bundle
from halfmask.infer.devices import pick_device
from halfmask.infer.evaluate import DatasetItems, count_each
from halfmask.infer.runs import memory_cure, open_part, open_run
from halfmask.recipe.read import Recipe, load
from halfmask.run import fit as engine
from halfmask.run.checkpoint import begin_from
from halfmask.run.fit import TrainResult
from halfmask.run.folder import RunDir
from halfmask.run.loop.progress import ProgressLine
from halfmask.run.prepared import Prepared
from halfmask.run.twin import FOLDER, RESULT, Estimate, TwinResult, check_comparable, twin_recipe


def train(
    recipe: Recipe | str | Path | None,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
    limit: int | None = None,
    overrides: Sequence[str] = (),
    resume_from: str | Path | None = None,
) -> TrainResult:
    """Train by a recipe into a run folder; with `run.twin` also the supervised twin, in `<out>/twin`.

    Args:
        recipe: a recipe, a file, the name of a shipped recipe, or `None` with `resume`.
        out: run folder; must be empty or new, unless `resume` or `overwrite`.
        resume: continue the run in `out`, then its twin, to the same result as unbroken ones.
        overwrite: remove the files of an earlier run in `out`.
        dry_run: check recipe, data and model, predict memory and time by a few trial steps, and stop.
        quiet: no progress.
        limit: stop after so many steps (the schedule is shortened too).
        overrides: dotted overrides; with `resume` only those that do not change the result.
        resume_from: an earlier run, instead of a recipe: a new run with its recipe, its weights, and the masks there
            are now.

    Raises:
        RecipeError, ShapeError, DataError, CheckpointError: before any training, with all problems found.
        Interrupted: Ctrl-C or SIGTERM; the checkpoint is written.
    """
    out = Path(out)
    options: dict[str, Any] = {"overwrite": overwrite, "dry_run": dry_run, "quiet": quiet, "limit": limit}
    if resume_from is not None:
        if recipe is not None or resume:
            raise RecipeError("a run that begins with the weights of another has its recipe: leave out the recipe.")
        start = begin_from(resume_from, overrides)
        return engine.fit(start.recipe, out, initialize=start.load_into, **options)
    asked = _recipe_of(recipe, out, tuple(overrides), resume=resume)
    # A twin that was begun is finished, whoever asked for it.
    wanted = asked is not None and (asked.run.twin or (resume and (out / FOLDER / "recipe.yaml").exists()))
    prepared = check_comparable(asked, limit) if asked is not None and wanted and not dry_run else None
    again: dict[str, Any] = {"resume": True, "overrides": tuple(overrides)} if resume else {}
    result = engine.fit(None if resume else asked, out, **options, **again)
    if prepared is None:
        return result
    twin = _train_twin(prepared, out, quiet, tuple(overrides))
    return dataclasses.replace(result, seconds=result.seconds + twin.seconds, twin=compare(out))


def compare(run: str | Path) -> TwinResult:
    """Compare a run with its supervised twin on the images both validated on, and write `twin.json`.

    Args:
        run: folder of a run with a finished `twin/`.

    Raises:
        CheckpointError: one of the two has no bundle yet.
    """
    run = Path(run)
    recipe = RunDir(run).load_recipe()
    opened = open_run(run, (), ("eval", "data"))
    part = recipe.eval.select_on
    dataset, ids = open_part(opened.data, None, part, opened.recorded_val)
    device = pick_device("cpu" if recipe.run.accelerator == "cpu" else "auto")
    counts = []
    for folder in (run, run / FOLDER):
        bundle = load_bundle(folder, device)
        with memory_cure(opened.protocol):
            items = DatasetItems(dataset, ids)
            found = count_each(bundle.model, items, bundle.task, opened.protocol, device, crop=bundle.crop)
        counts.append(found.numpy())
    kind, absent = dataset.task.kind, opened.protocol.absent_classes
    both = difference(counts[0], counts[1], kind, absent)
    by_class = zip(dataset.task.classes, both.by_class, strict=True)
    result = TwinResult(
        metric=dataset.task.main_metric,
        part=part,
        images=len(ids),
        steps=_steps(run / FOLDER),
        method=recipe.method.name,
        run=_estimate(scored(counts[0], kind, absent).main),
        twin=_estimate(scored(counts[1], kind, absent).main),
        difference=_estimate(both.main),
        by_class={name: _estimate(interval) for name, interval in by_class},
        folder=run / FOLDER,
    )
    write_json(run / RESULT, result.to_dict())
    return result


def _recipe_of(
    recipe: Recipe | str | Path | None, out: Path, overrides: tuple[str, ...], *, resume: bool
) -> Recipe | None:
    if resume:
        run = RunDir(out)  # of a folder without a recipe the engine says what is wrong with it
        return run.load_recipe(overrides) if run.recipe.exists() else None
    if isinstance(recipe, Recipe):
        return load(recipe.model_dump(mode="json"), overrides) if overrides else recipe
    return load(recipe, overrides)


def _train_twin(prepared: Prepared, out: Path, quiet: bool, overrides: tuple[str, ...]) -> TrainResult:
    twin = RunDir(out / FOLDER)
    line = ProgressLine(quiet)
    if not quiet:
        line.say(f"twin     now the same without the unlabeled images: supervised, {prepared.total_steps} steps")
    if twin.saved():
        return engine.fit(None, twin.path, resume=True, quiet=quiet, overrides=overrides, root=out)
    return engine.fit(twin_recipe(prepared), twin.path, overwrite=True, quiet=quiet, root=out)


def _steps(run: Path) -> int:
    return int(RunDir(run).load_recipe().run.steps or 0)


def _estimate(interval: Interval) -> Estimate:
    value, low, high = (None if math.isnan(number) else number for number in interval)
    return Estimate(value, low, high)
