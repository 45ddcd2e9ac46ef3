"""`fit`: from a recipe to a run folder. Every check that needs no training comes first."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfmask.data.folder.files import ids_of
from halfmask.data.splits.opening import load_checked
from halfmask.errors import CheckpointError, DataError, Interrupted, RecipeError
from halfmask.infer.bundle import FOLDS, read_meta
from halfmask.infer.devices import is_first_rank
from halfmask.method import Stage
from halfmask.plugins import resolve
from halfmask.progress import timed
from halfmask.recipe.read import Recipe, load
from halfmask.run.checkpoint import ResumePoint, check_matches, read_checkpoint, repair, resume_point
from halfmask.run.cost import Cost, predict_cost
from halfmask.run.folder import Overwrite, RunDir, stage_names
from halfmask.run.loop import shipping
from halfmask.run.loop.average import AverageLast, WeightAverage
from halfmask.run.loop.callbacks import Checkpoints, KeepCheckpoints, MetricsLog, StopNow, StopRequest, Validation
from halfmask.run.loop.divergence import StopAtInfinity
from halfmask.run.loop.lightning_library import L
from halfmask.run.loop.module import LitMethod
from halfmask.run.loop.optim import base_rate
from halfmask.run.loop.progress import ProgressLine
from halfmask.run.loop.trainer import make_trainer, prepare_networks
from halfmask.run.prepare import describe, prepare
from halfmask.run.prepared import Prepared, clean_statistics, loader_maker
from halfmask.run.stages import train_stages
from halfmask.run.twin import TwinResult, kinds_of, teaches_nothing

if TYPE_CHECKING:
    from halfmask.run.folds import FoldsResult

# A resumed run may change how it is computed, not what is computed.
_FREE_ON_RESUME = (
    "data.workers", "data.root", "data.cache", "run.devices", "run.nodes", "run.accelerator", "run.logger", "run.twin",
)  # fmt: skip


@dataclass(frozen=True)
class TrainResult:
    """What a finished run reports.

    Args:
        out: run folder.
        steps: optimizer steps done.
        seconds: time of this call.
        best: best validation score per predictor (empty without a validation set).
        last: validation values of the last evaluation, as in metrics.jsonl.
        metric: which score `best` is: `miou`, `changed_iou` or `acc`.
        cost: what a dry run predicts.
        twin: the comparison with the control, where there is one, else with plain supervised training.
        plain: the comparison with plain supervised training, where both were asked for.
        folds: what cross-validation found before this run on all masks.
        shipped: which network's last weights are shipped, where no validation chooses; "" where one does.
    """

    out: Path
    steps: int
    seconds: float
    best: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    metric: str = "miou"
    cost: Cost | None = None
    twin: TwinResult | None = None
    plain: TwinResult | None = None
    folds: "FoldsResult | None" = None
    shipped: str = ""


def fit(
    recipe: Recipe | str | Path | None,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: Overwrite = False,
    dry_run: bool = False,
    quiet: bool = False,
    limit: int | None = None,
    overrides: tuple[str, ...] = (),
    root: Path | None = None,
    initialize: Callable[[Prepared], str] | None = None,
) -> TrainResult:
    """Train by a recipe into a run folder; `halfmask.run.train.train` also trains what `run.twin` asks for.

    Arguments are those of `train`. `overwrite=but_folds` keeps the folds of cross-validation, which the run on all
    masks follows; `initialize` gives the networks of a new run their weights, and says which.

    Raises:
        RecipeError, ShapeError, DataError, CheckpointError: before any training, with all problems found.
        Interrupted: Ctrl-C or SIGTERM; the checkpoint is written.
        DivergenceError: a loss was not finite; the weights from before it are written.
    """
    run = RunDir(out, root=root)
    if resume:
        if limit is not None:
            raise RecipeError("a resumed run keeps its length: --limit and --resume exclude each other.")
        if root is None and run.path.name in stage_names(run.path.parent):
            raise RecipeError(f"{out} is one stage of a run. Continue the whole: --resume {run.path.parent}")
        _check_resume_overrides(overrides)
        recipe = run.load_recipe(overrides)
        _check_same_pixels(run.load_recipe().data.cache, recipe.data.cache)
    elif recipe is None or not isinstance(recipe, Recipe):
        recipe = load_checked(recipe, overrides)
    elif overrides:
        recipe = load(recipe.model_dump(mode="json"), overrides)
    stages: list[Stage] = resolve("methods", recipe.method.name).plan(recipe)
    options: dict[str, Any] = {"dry_run": dry_run, "quiet": quiet}
    if len(stages) > 1 or stages[0].after is not None or stages[0].overrides:
        one = partial(_train_stage, **options)
        again = bool(overwrite)  # of stages there are no folds
        return train_stages(recipe, run, stages, one, resume=resume, overwrite=again, limit=limit, **options)
    options["initialize"] = None if resume else initialize
    return _train_stage(recipe, run, resume=resume, overwrite=overwrite, limit=limit, **options)


def _train_stage(
    recipe: Recipe,
    run: RunDir,
    *,
    resume: bool,
    overwrite: Overwrite,
    dry_run: bool,
    quiet: bool,
    limit: int | None,
    initialize: Callable[[Prepared], str] | None = None,
    begin: Callable[[], None] = lambda: None,
    keep: int = 1,
) -> TrainResult:
    """Train one stage; `begin` is called once everything has been checked, before the first file is written."""
    began = time.monotonic()
    if not resume and is_first_rank():
        run.check_free(overwrite=overwrite)  # before minutes of preparation
    with timed("building data and network, and looking at the files"):
        prepared = prepare(recipe, limit, look=is_first_rank(), quiet=quiet)
    recipe = prepared.recipe
    if limit is not None:
        recipe = _cut(recipe, prepared)
    dataset, method = prepared.dataset, prepared.method
    metric = dataset.task.main_metric
    line = ProgressLine(quiet)
    summary = describe(prepared) if initialize is None else f"{initialize(prepared)}\n{describe(prepared)}"
    if not quiet and is_first_rank():
        line.say(summary)
        for warning in prepared.warnings:
            line.say(f"warning: {warning}")
    if dry_run:
        with timed("trial steps"):
            cost = predict_cost(prepared)
        if not quiet and is_first_rank():
            line.say(cost.describe())
        return TrainResult(run.path, 0, time.monotonic() - began, cost=cost)

    meta = _meta(recipe, prepared)
    begin()
    start = _open_run(run, recipe, prepared, meta, resume=resume, overwrite=overwrite)
    if is_first_rank():
        line.log = run.log
        line.keep(summary)
        if start is not None:
            _say_where(start, prepared.total_steps, line, quiet=quiet)
    module = LitMethod(
        method,
        recipe.optim,
        lr=base_rate(recipe.optim, recipe.data.batch.labeled),
        total_steps=prepared.total_steps,
        steps_per_epoch=prepared.steps_per_epoch,
        seed=recipe.run.seed,
        make_loader=loader_maker(prepared, run.path),
        meta=meta,
        class_weights=prepared.class_weights,
    )
    advises = not teaches_nothing(recipe.method.name, recipe.method.params)
    log = MetricsLog(run, dataset.task, line, recipe.run.log_every, advises=advises)
    checkpoints = Checkpoints(run, prepared.eval_every, StopRequest(quiet or not is_first_rank()))
    examiner, clean = prepared.sources.examiner(recipe), clean_statistics(prepared)
    validation = Validation(run, log, examiner, prepared.eval_every, clean, recipe.eval.ship)
    prepare_networks(method, recipe.run)
    first = StopAtInfinity(run, examiner, (log.every, prepared.eval_every), clean)
    last = [validation, KeepCheckpoints(run, keep, prepared.total_steps), checkpoints]
    averages = _average(module, recipe, examiner.images)
    trainer = make_trainer(recipe.run, run.path, method, [first, log, *averages, *last])
    if start is not None and start.header["step"] >= prepared.total_steps:
        line.say(f"{run.path} is finished: {start.header['step']} of {prepared.total_steps} steps are done.")
        shipped, seconds = _shipped(run, recipe, examiner.images), time.monotonic() - began
        return TrainResult(run.path, start.header["step"], seconds, start.header["best"], {}, metric, shipped=shipped)
    goes_on = run.root != run.path or bool(kinds_of(recipe))
    result = partial(_result, run, recipe, module, validation, began)
    return _fit(trainer, module, checkpoints, None if start is None else start.checkpoint, result, goes_on=goes_on)


def _say_where(start: ResumePoint, steps: int, line: ProgressLine, *, quiet: bool) -> None:
    """Say where a resumed run goes on, and what is damaged."""
    if start.note:
        line.say(f"warning: {start.note}")
    if not quiet and start.header["step"] < steps:
        line.say(f"goes on  after step {start.header['step']} of {steps}")


def _result(run: RunDir, recipe: Recipe, module: LitMethod, validation: Validation, began: float) -> TrainResult:
    best, last, seconds = dict(module.best), dict(validation.last), time.monotonic() - began
    shipped = _shipped(run, recipe, validation.examiner.images)
    return TrainResult(run.path, module.step, seconds, best, last, validation.examiner.main_metric, shipped=shipped)


def _shipped(run: RunDir, recipe: Recipe, images: int) -> str:
    """Say which last weights a finished run ships; "" where a validation chose them, or over several domains."""
    bundle = run.path / "model.json"
    if shipping.chooses(recipe.eval.ship, images) or not bundle.is_file():
        return ""
    meta = read_meta(bundle)
    return shipping.describe_last(meta["predictor"], images, meta.get("averaged_steps", 0))


def _cut(recipe: Recipe, prepared: Prepared) -> Recipe:
    """Write a limit of the steps down, so that a resumed run follows the same, shorter schedule."""
    cut = {"run.steps": prepared.total_steps, "run.eval_every": prepared.eval_every}
    shorter = recipe.run.model_copy(update={key.removeprefix("run."): value for key, value in cut.items()})
    changed = [key for key, value in cut.items() if getattr(recipe.run, key.removeprefix("run.")) != value]
    origins = recipe.origins | dict.fromkeys(changed, "--limit")
    return recipe.model_copy(update={"run": shorter, "origins": origins})


def _average(module: LitMethod, recipe: Recipe, images: int) -> list[AverageLast]:
    """Return what averages the last weights, where the recipe asks for it and no validation chooses others."""
    if not recipe.run.average_last or shipping.chooses(recipe.eval.ship, images):
        return []
    module.average = WeightAverage(recipe.run.average_last, module.total_steps)
    return [AverageLast(module.average)]


def _fit(
    trainer: L.Trainer,
    module: LitMethod,
    checkpoints: Checkpoints,
    start: Path | None,
    result: Callable[[], TrainResult],
    *,
    goes_on: bool,
) -> TrainResult:
    """Train, from a checkpoint if there is one; whatever ends it early says what is saved and how to go on.

    Args:
        trainer: with its callbacks.
        module: the method in training.
        checkpoints: one of the callbacks.
        start: the checkpoint.
        result: what a finished run reports.
        goes_on: something else is trained after this, by the same command.

    Raises:
        Interrupted: Ctrl-C or SIGTERM, also after the last step: what the run is a part of must not begin the next.
            It has the result of a run that is finished and has no such part.
        DataError: a file could not be read any more.
    """
    run, stop = checkpoints.run, checkpoints.stop
    with stop:
        try:
            trainer.fit(module, ckpt_path=None if start is None else str(start), weights_only=True)
        except StopNow:
            step = min(module.step + 1, module.total_steps)  # or in what follows the last one
            text = f"stopped at once in step {step} of {module.total_steps}. {_saved(run)}"
            raise Interrupted(text, stop.exit_code) from None
        except SystemExit:
            # How Lightning passes on a SIGTERM that came before the first step.
            if stop.signal is None:
                raise
        except DataError as error:
            # A run goes on with the same lists only: what another start advises would end it.
            text = re.sub(r", or remove [^.]*", "", str(error))
            once = "an intact copy is in its place" if error.code == "H201" else "it is mended"
            raise DataError(f"{text}\n  Once {once}: {_saved(run)}", error.code) from error
    ended = module.step == module.total_steps
    if ended:
        stop.agree(trainer)  # a wish that came in the last validation
    if stop.signal is None:
        return result()
    place = f"step {module.step} of {module.total_steps} ({stop.signal.name})"
    text = f"stopped at {place}. {_saved(run)}" if not ended else f"stopped after {place}: {run.path} is finished."
    if ended and goes_on:
        text += f" Go on with the rest: halfmask train --resume {run.root}"
    raise Interrupted(text, stop.exit_code, result() if ended and not goes_on else None)


def _saved(run: RunDir) -> str:
    """Say what of an unfinished run is saved, and how to go on."""
    if not run.last.exists() and run.root == run.path and not (run.path / FOLDS).is_file():
        return f"There is no checkpoint yet: start anew with --overwrite (or --out other than {run.root})."
    if not run.last.exists():
        return f"{run.path} has no checkpoint yet and begins anew. Continue with: halfmask train --resume {run.root}"
    step = read_checkpoint(run.last)["halfmask"]["step"]
    return f"The checkpoint of step {step} is saved. Continue with: halfmask train --resume {run.root}"


def _meta(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """Return what every checkpoint says about the run it is of."""
    dataset = prepared.dataset
    return {
        "recipe": recipe.model_dump(mode="json"),
        "classes": prepared.sources.classes(),
        "split": {name: entry["sha256"] for name, entry in prepared.sources.lists().items()},
        "range": dataset.value_range,
        "nodata": dataset.nodata,
        "ids": ids_of(dataset),
    }


def _open_run(
    run: RunDir, recipe: Recipe, prepared: Prepared, meta: dict[str, Any], *, resume: bool, overwrite: Overwrite
) -> ResumePoint | None:
    """Create the folder, or find where the run in it goes on."""
    if resume:
        if not run.saved():
            raise CheckpointError(
                f"{run.path}: nothing to resume, {run.last} is missing: the run stopped before its first checkpoint. "
                f"Start it anew: halfmask train {run.recipe} --out {run.root} --overwrite",
                "H407",
            )
        point = resume_point(run)
        now = {name: entry["ids"] for name, entry in prepared.sources.lists().items()}
        check_matches(point.checkpoint, point.header, meta, run.recorded_lists(), now)
        return repair(run, point) if is_first_rank() else point
    if is_first_rank():
        run.create(overwrite=overwrite)
        run.write_start(recipe, prepared.sources.lists())
        prepared.sources.write(run, recipe)
    return None


def _check_resume_overrides(overrides: tuple[str, ...]) -> None:
    fixed = [item for item in overrides if item.partition("=")[0] not in _FREE_ON_RESUME]
    if fixed:
        raise RecipeError(
            f"a resumed run keeps its recipe; {', '.join(fixed)} would change its result. Allowed with --resume: "
            f"{', '.join(_FREE_ON_RESUME)}. For other values start a new run with another --out."
        )


def _check_same_pixels(before: str, now: str) -> None:
    if before != now and "jpeg95" in (before, now):
        raise RecipeError(
            f"data.cache={before} and {now} give different pixels, so the resumed run would not be the same one. Keep "
            f"data.cache={before}, or start a new run with another --out."
        )
