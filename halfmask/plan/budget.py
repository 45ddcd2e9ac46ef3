"""Fit a recipe to memory and time by trials: the batch and the crop that fit, the steps that are left for training."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from halfmask.errors import RecipeError
from halfmask.plan.choices import Choice
from halfmask.plan.facts import Machine
from halfmask.plan.table import LIMITS
from halfmask.plan.trials import Measured, measure, with_twins
from halfmask.progress import duration
from halfmask.recipe.read import Recipe
from halfmask.run.prepared import Prepared
from halfmask.run.twin import kinds_of

Build = Callable[[dict[str, Any]], Recipe]  # settings -> recipe, with the user's keys on top
_WINDOW = 256  # side of the windows that large images are validated in
_STARTUP = 4.0  # seconds to begin training: files are looked at, loggers begin, checkpoints are written
_ROUNDS = 5  # of trials


@dataclass(frozen=True)
class Budget:
    """What a command may take.

    Args:
        seconds: from the start of the command to its end; `None`: no limit.
        memory: bytes; `None`: what is free.
        began: `time.monotonic()` at that start.
        runs: that share the seconds: one for each seed, or one for each fold and one on all masks.
        folds: of cross-validation; 0: none.
    """

    seconds: float | None = None
    memory: int | None = None
    began: float = 0.0
    runs: int = 1
    folds: int = 0

    def left(self, startup: float) -> float:
        """Return the seconds that remain for training and validation of one run, without the margin.

        Args:
            startup: seconds from the run's start to its first step, and after the last one.
        """
        spent = time.monotonic() - self.began
        return (((self.seconds or math.inf) - spent) / self.runs - startup) * (1 - LIMITS.margin)


@dataclass(frozen=True)
class Fit:
    """A recipe that fits, what it takes, and what had to be changed.

    Args:
        measured: of the recipe.
        settings: keys that were set for memory or time.
        choices: why.
    """

    measured: Measured
    settings: dict[str, Any]
    choices: tuple[Choice, ...]


def fit(
    build: Build,
    usual_steps: int | None,
    multiple: int,
    budget: Budget,
    machine: Machine,
    twin: Choice | None = None,
) -> Fit:
    """Shrink batch and crop until memory and time suffice, then set the steps.

    Args:
        build: gives the recipe for settings.
        usual_steps: where no time is given; `None`: the user set the steps.
        multiple: of the crop.
        budget: of memory and time.
        machine: with what is free.
        twin: what the run is to be compared with, where the time is enough for both.

    Raises:
        RecipeError: the budget is too small; the smallest possible is named.
    """
    _check_start(budget, 1 + len(kinds_of(build({}))))
    limit = min(budget.memory or machine.memory, machine.memory)
    settings: dict[str, Any] = {}
    notes: dict[str, Choice] = {}
    if budget.memory is not None and machine.gpu is None:
        settings["data.workers"] = 0
        notes["workers"] = Choice("workers", "none", "each loader process would take memory of its own")
    for attempt in range(_ROUNDS):
        measured = measure(build(settings), budget.folds)
        change = _for_memory(measured, limit, multiple, notes)
        if change is None and usual_steps is not None and budget.seconds is not None:
            _check_reachable(measured, budget, multiple)  # before another trial
            change = _for_time(measured, budget, multiple, notes)
        # The user's own keys may stand in the way of a change.
        if change is None or attempt == _ROUNDS - 1 or build({**settings, **change}) == build(settings):
            break
        settings |= change
    if measured.memory > limit or _at_least(measured) > limit:
        raise RecipeError(_too_little_memory(measured, limit, budget), "H305")
    if twin is not None:
        measured, notes[twin.topic] = _with_twin(measured, twin, build, settings, budget)
        settings |= notes[twin.topic].settings
    if usual_steps is not None:
        choice = _steps(measured, usual_steps, budget, multiple)
        settings |= choice.settings
        notes["steps"] = choice
    return Fit(measured, settings, tuple(notes.values()))


def _for_memory(measured: Measured, limit: int, multiple: int, notes: dict[str, Choice]) -> dict[str, Any] | None:
    """Return the next smaller setting; `None`: it fits, or nothing smaller is left."""
    recipe, allowed = measured.prepared.recipe, int(limit * (1 - LIMITS.margin))
    if measured.cost.memory > allowed:
        fitting = measured.cost.fitting(allowed)
        size = f"{_size(limit)} of memory"
        if fitting is not None and fitting[0] < recipe.data.batch.labeled:
            labeled, unlabeled = fitting[0], fitting[1] or 1
            reason = f"the largest that fits {size}"
            notes["batch"] = Choice("batch", f"{labeled}+{unlabeled}", reason)
            return {"data.batch.labeled": labeled, "data.batch.unlabeled": unlabeled}
        room, least = allowed - measured.cost.fixed, measured.cost.per_unit * measured.cost.fewest
        crop = _smaller(recipe.data.crop, room / max(least, 1), multiple)
        if crop is None:
            return None
        notes["crop"] = Choice("crop", str(crop), f"smaller than usual, to fit {size}")
        return {"data.crop": crop}
    if measured.validation_memory > allowed:
        if recipe.eval.batch > 1:
            return {"eval.batch": 1}
        if recipe.eval.mode != "slide" and measured.prepared.dataset.task.kind != "classification":
            window = max(recipe.data.crop, _WINDOW // multiple * multiple)
            notes["windows"] = Choice("windows", str(window), "whole images would take too much memory to validate")
            return {"eval.mode": "slide", "eval.window": window}
    return None


def _check_start(budget: Budget, runs: int) -> None:
    """Refuse, before any trial, a time that is over before a first step.

    Args:
        budget: of time.
        runs: the run, and those it is compared with.
    """
    if budget.left(_STARTUP * runs) <= 0:
        spent, runs = time.monotonic() - budget.began, runs * budget.runs
        raise RecipeError(
            f"--time {duration(budget.seconds or 0.0)} is too short: {duration(spent)} went by before the first trial "
            f"step, and {'a run' if runs == 1 else f'each of {runs} runs'} takes {duration(_STARTUP)} to begin. "
            f"Give at least --time {math.ceil(2 * (spent + _STARTUP * runs))}s.",
            "H305",
        )


def _check_reachable(measured: Measured, budget: Budget, multiple: int) -> None:
    """Refuse a time that the smallest crop would not meet either, were a step's time in proportion to its pixels."""
    crop = measured.prepared.recipe.data.crop
    part = ((_smaller(crop, 1e-9, multiple) or crop) / crop) ** 2
    least = LIMITS.least_steps * measured.step_seconds * part + measured.validation_seconds
    if least > budget.left(_startup(measured)):
        raise RecipeError(_too_little_time(measured, budget, multiple), "H305")


def _for_time(measured: Measured, budget: Budget, multiple: int, notes: dict[str, Choice]) -> dict[str, Any] | None:
    steps, _ = _affordable(measured, budget.left(_startup(measured)))
    if steps >= LIMITS.good_steps:
        return None
    crop = _smaller(measured.prepared.recipe.data.crop, max(steps, 1) / LIMITS.good_steps, multiple)
    if crop is None or budget.left(_startup(measured)) < 2 * measured.trial_seconds:
        return None  # another trial would cost more than it can bring
    notes["crop"] = Choice("crop", str(crop), "smaller than usual, for more steps in the time there is")
    return {"data.crop": crop}


def _steps(measured: Measured, usual: int, budget: Budget, multiple: int) -> Choice:
    prepared = measured.prepared
    if budget.seconds is None:
        every = _every(measured, usual)
        settings = {"run.steps": usual, **({"run.eval_every": every} if every else {})}
        return Choice("steps", f"{usual}", "usual for this network; or give a time: --time 30m", settings)
    left = budget.left(_startup(measured))
    steps, validations = _affordable(measured, left)
    if steps < LIMITS.least_steps:
        raise RecipeError(_too_little_time(measured, budget, multiple), "H305")
    most = LIMITS.most_times * usual
    several = f", which {budget.runs} runs share" if budget.runs > 1 else ""
    text = f"as many as fit into {duration(budget.seconds)}{several}, at {measured.step_seconds:.2g} s per step"
    if steps > most:
        steps, text = most, f"{LIMITS.most_times} times the usual {usual}; more time brings little"
    if validations:
        text += f", beside {validations} validations of {duration(measured.validation_seconds)}"
    every = max(1, math.ceil(steps / validations)) if validations else None
    if prepared.recipe.run.twin:
        text += "; those of what it is compared with included"
    return Choice("steps", f"{steps}", text, {"run.steps": steps, **({"run.eval_every": every} if every else {})})


def _with_twin(
    measured: Measured, twin: Choice, build: Build, settings: dict[str, Any], budget: Budget
) -> tuple[Measured, Choice]:
    """Add the share of a twin, or choose none where it would leave the run too few steps."""
    if "run.twin" not in twin.settings:  # the user asked for it: it is measured
        return measured, twin
    steps = math.inf if budget.seconds is None else _affordable(measured, budget.left(2 * _startup(measured)))[0]
    if steps >= 2 * LIMITS.good_steps:
        return with_twins(measured, build({**settings, **twin.settings})), twin
    reason = (
        f"{duration(budget.seconds or 0.0)} is too short for a second training, on masks alone, so whether the "
        "unlabeled images help will not be known: give more time, or --twin"
    )
    return measured, Choice(twin.topic, "none", reason)


def _startup(measured: Measured) -> float:
    """Return the seconds of preparing, which plan and run do once more each; a busy machine is slow at both."""
    runs = 1 + len(kinds_of(measured.prepared.recipe))
    return (_STARTUP + 2 * measured.prepare_seconds) * runs


def _affordable(measured: Measured, seconds: float) -> tuple[int, int]:
    """Return the steps and validations that fit a time."""
    each = measured.validation_seconds
    if not each:
        return max(0, int(seconds / measured.step_seconds)), 0
    spare = seconds - LIMITS.least_steps * measured.step_seconds
    most = min(LIMITS.validations, int(seconds * LIMITS.validation_share / each), int(max(spare, 0) / each))
    validations = max(1, most)
    return max(0, int((seconds - validations * each) / measured.step_seconds)), validations


def _every(measured: Measured, steps: int) -> int | None:
    """Return the steps between validations, where the usual number of them would take too long."""
    usual = measured.prepared.eval_every
    training, each = steps * measured.step_seconds, measured.validation_seconds
    if not each or steps / usual * each <= LIMITS.validation_share * (training + steps / usual * each):
        return None
    return math.ceil(steps / max(1, int(LIMITS.validation_share * training / each)))


def _too_little_time(measured: Measured, budget: Budget, multiple: int) -> str:
    spent = time.monotonic() - budget.began

    def needed(step_seconds: float, trials: float) -> float:
        least = LIMITS.least_steps * step_seconds + measured.validation_seconds
        each = max(least / (1 - LIMITS.margin), 2 * trials) + _startup(measured)
        return budget.runs * each + trials + 1.2 * spent + 2

    smallest = needed(measured.step_seconds, 0.0)
    several = f", in each of {budget.runs} runs" if budget.runs > 1 else ""
    crop = measured.prepared.recipe.data.crop
    if (smaller := _smaller(crop, 1e-9, multiple)) is not None:  # which takes another trial
        smallest = min(smallest, needed(measured.step_seconds * (smaller / crop) ** 2, measured.trial_seconds))
    return (
        f"--time {duration(budget.seconds or 0.0)} is too short: {LIMITS.least_steps} steps of "
        f"{measured.step_seconds:.2g} s, one validation ({duration(measured.validation_seconds)}) and the preparation "
        f"({duration(spent)}) need more{several}. Give at least --time {math.ceil(smallest)}s."
    )


def _too_little_memory(measured: Measured, limit: int, budget: Budget) -> str:
    batch, crop = measured.prepared.recipe.data.batch, measured.prepared.recipe.data.crop
    least = _at_least(measured)
    smallest = math.ceil(least / (1 - LIMITS.margin) / 2**20 / 50) * 50
    asked = f"--memory {_size(limit)}" if budget.memory is not None else f"{_size(limit)} of free memory"
    return (
        f"{asked} is too little: the smallest batch at crop {crop} takes {_size(least)} (batch {batch.labeled}+"
        f"{batch.unlabeled}: {_size(measured.memory)}). Give at least --memory {smallest}MB, or name a smaller network "
        "(model.encoder={name: resnet, depth: 18, width: 8})."
    )


def _at_least(measured: Measured) -> int:
    """Return the bytes of the smallest batch and of a validation."""
    cost = measured.cost
    return max(cost.fixed + cost.per_unit * cost.fewest, measured.validation_memory)


def _smaller(crop: int, part: float, multiple: int) -> int | None:
    """Return a crop with about that part of the pixels, not below the smallest; `None`: there is none."""
    if part <= 0:
        return None
    smallest = -(-LIMITS.smallest_crop // multiple) * multiple
    wanted = int(crop * min(part, 1.0) ** 0.5) // multiple * multiple
    smaller = max(smallest, min(wanted, crop - multiple))
    return smaller if smaller < crop else None


def read_duration(text: str) -> float:
    """Read `30m`, `1.5h`, `90s`, `2d`, or `1h30m`, in seconds; a bare number is minutes.

    >>> read_duration("30m"), read_duration("1h30m"), read_duration("45")
    (1800.0, 5400.0, 2700.0)

    Raises:
        ValueError: something else.
    """
    units = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
    rest, total = text.strip().lower().replace("min", "m").replace(" ", ""), 0.0
    if rest.replace(".", "", 1).isdigit():
        rest += "m"
    while rest:
        digits = next((i for i, letter in enumerate(rest) if letter in units), len(rest))
        if digits in {0, len(rest)}:
            raise ValueError(text)
        total += float(rest[:digits]) * units[rest[digits]]
        rest = rest[digits + 1 :]
    if not 0 < total < math.inf:
        raise ValueError(text)
    return total


def _size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def predicted(prepared: Prepared, measured: Measured) -> tuple[float, float]:
    """Return seconds of all steps and of all validations."""
    validations = math.ceil(prepared.total_steps / prepared.eval_every) if measured.validation_seconds else 0
    return measured.step_seconds * prepared.total_steps, validations * measured.validation_seconds
