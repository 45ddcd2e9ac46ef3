"""Train a run and, where `run.twin` asks for it, what it is compared with: does unlabeled data help here?"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from halfmask.atomic import write_json
from halfmask.data.splits.opening import load_checked
from halfmask.errors import RecipeError
from halfmask.infer.bootstrap import difference, scored
from halfmask.infer.bundle import COMPARED, load_bundle, own_bundle
from halfmask.infer.devices import pick_device
from halfmask.infer.evaluate import DatasetItems, count_each
from halfmask.infer.runs import memory_cure, open_part, open_run
from halfmask.recipe.read import Recipe, load
from halfmask.run import fit as engine
from halfmask.run.checkpoint import begin_from
from halfmask.run.fit import TrainResult
from halfmask.run.folder import RunDir, naming_resume
from halfmask.run.loop.progress import ProgressLine
from halfmask.run.loop.shipping import FEW_IMAGES
from halfmask.run.prepared import Prepared
from halfmask.run.twin import FOLDERS, Estimate, Kind, TwinResult, check_comparable, control_of, kinds_of, twin_recipe
from halfmask.task import Task


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
    root: Path | None = None,
) -> TrainResult:
    """Train by a recipe into a run folder; with `run.twin` also its control (`<out>/control`).

    Args:
        recipe: a recipe, a file, the name of a shipped recipe, or `None` with `resume`.
        out: run folder; must be empty or new, unless `resume` or `overwrite`.
        resume: continue the run in `out`, then its control, to the same result as unbroken ones.
        overwrite: remove the files of an earlier run in `out`.
        dry_run: check recipe, data and model, predict memory and time by a few trial steps, and stop.
        quiet: no progress.
        limit: stop after so many steps (the schedule is shortened too).
        overrides: dotted overrides; with `resume` only those that do not change the result.
        resume_from: an earlier run, instead of a recipe: a new run with its recipe, its weights, and the masks there
            are now.
        root: folder that the user names to go on, where this run is a part of another.

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
    kinds = () if asked is None or dry_run else _wanted(asked, out, resume, tuple(overrides))
    prepared = check_comparable(asked, limit) if asked is not None and kinds else None
    again: dict[str, Any] = {"resume": True, "overrides": tuple(overrides)} if resume else {}
    again |= {} if root is None else {"root": root}
    result = engine.fit(None if resume else asked, out, **options, **again)
    if prepared is None:
        return result
    with naming_resume(root or out):
        twins = [_train_twin(prepared, kind, out, quiet, tuple(overrides), root or out) for kind in kinds]
        found = [*compare(out, kinds), None][:2]
    seconds = result.seconds + sum(twin.seconds for twin in twins)
    return dataclasses.replace(result, seconds=seconds, twin=found[0], plain=found[1])


def compare(run: str | Path, kinds: Sequence[Kind]) -> list[TwinResult]:
    """Compare a run with others on the images all validated on, and write `twin.json`.

    With `eval.ship=overall` it also says which is shipped: the one of the highest score; of fewer than five images,
    which cannot tell, the run itself.

    Raises:
        CheckpointError: one of them has no bundle yet.
    """
    results = [_compare(Path(run), kind) for kind in kinds]
    shipped = ""
    if RunDir(run).load_recipe().eval.ship == "overall":
        best = max(results, key=lambda one: one.twin.value or 0.0)
        better = best.images >= FEW_IMAGES and (best.difference.value or 0.0) < 0
        results = [dataclasses.replace(one, ships=better and one is best) for one in results]
        shipped = best.folder.name if better else ""
    content = results[0].to_dict() | {one.kind: one.to_dict() for one in results[1:]}
    write_json(Path(run) / COMPARED, content | ({"shipped": shipped} if shipped else {}))
    return results


class Predicted(NamedTuple):
    """Counts of the validation images of a run, one by one."""

    counts: Int[np.ndarray, "N K1 K"]  # rows are targets (the last one strange values), columns predictions
    task: Task  # what was predicted


def predicted(run: Path, folder: Path) -> Predicted:
    """Predict the images that a run validated on, by the bundle of a folder.

    Raises:
        CheckpointError: it has no bundle yet.
    """
    recipe = RunDir(run).load_recipe()
    opened = open_run(own_bundle(run), (), ("eval", "data"))
    dataset, ids = open_part(opened.data, None, recipe.eval.select_on, opened.recorded_val)
    device = pick_device("cpu" if recipe.run.accelerator == "cpu" else "auto")
    bundle = load_bundle(own_bundle(folder), device)
    with memory_cure(opened.protocol):
        items = DatasetItems(dataset, ids)
        found = count_each(bundle.model, items, bundle.task, opened.protocol, device, crop=bundle.crop)
    return Predicted(found.numpy(), dataset.task)


def _compare(run: Path, kind: Kind) -> TwinResult:
    other, recipe = run / FOLDERS[kind], RunDir(run).load_recipe()
    (own, task_of_both), (others, _) = predicted(run, run), predicted(run, other)
    counts, task, absent = (own, others), task_of_both.kind, recipe.eval.absent_classes
    both = difference(counts[0], counts[1], task, absent)
    by_class = zip(task_of_both.classes, both.by_class, strict=True)
    return TwinResult(
        metric=task_of_both.main_metric,
        part=recipe.eval.select_on,
        images=len(own),
        steps=_steps(other),
        method=recipe.method.name,
        run=Estimate.of(scored(counts[0], task, absent).main),
        twin=Estimate.of(scored(counts[1], task, absent).main),
        difference=Estimate.of(both.main),
        by_class={name: Estimate.of(interval) for name, interval in by_class},
        folder=other,
        kind=kind,
    )


def _wanted(asked: Recipe, out: Path, resume: bool, overrides: tuple[str, ...]) -> tuple[Kind, ...]:
    """Return what to compare with; what was begun is finished, whoever asked for it."""
    kinds = kinds_of(asked)
    if not resume:
        return kinds
    begun = [kind for kind, folder in FOLDERS.items() if (out / folder / "recipe.yaml").exists()]
    anew = any(item.startswith("run.twin=") for item in overrides)
    if begun == ["supervised"] and kinds == ("control",) and not anew:
        return ("supervised",)  # of a version in which run.twin=true asked for it
    return tuple(kind for kind in FOLDERS if kind in kinds or kind in begun)


def _recipe_of(
    recipe: Recipe | str | Path | None, out: Path, overrides: tuple[str, ...], *, resume: bool
) -> Recipe | None:
    if resume:
        run = RunDir(out)  # of a folder without a recipe the engine says what is wrong with it
        return run.load_recipe(overrides) if run.recipe.exists() else None
    if isinstance(recipe, Recipe):
        return load(recipe.model_dump(mode="json"), overrides) if overrides else recipe
    return load_checked(recipe, overrides)


def _train_twin(
    prepared: Prepared, kind: Kind, out: Path, quiet: bool, overrides: tuple[str, ...], root: Path
) -> TrainResult:
    twin = RunDir(out / FOLDERS[kind])
    if not quiet:
        ProgressLine(quiet).say(_announce(prepared, kind))
    if twin.saved():
        return engine.fit(None, twin.path, resume=True, quiet=quiet, overrides=overrides, root=root)
    return engine.fit(twin_recipe(prepared, kind), twin.path, overwrite=True, quiet=quiet, root=root)


def _announce(prepared: Prepared, kind: Kind) -> str:
    recipe, steps = prepared.recipe, f"{prepared.total_steps} steps"
    params = control_of(recipe)
    if kind == "control":
        values = " ".join(f"method.{key}={value}" for key, value in (params or {}).items())
        return f"control  now the same without the loss of the unlabeled images: {values}, {steps}"
    text = f"twin     now plain supervised training, {steps}"
    if params is None:
        text += f"; method {recipe.method.name} has no control, so that a gain may not be the unlabeled images' alone"
    return text


def _steps(run: Path) -> int:
    return int(RunDir(run).load_recipe().run.steps or 0)
