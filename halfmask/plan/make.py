"""Choose method, network, crop, batch, steps and validation from the data and the machine, each with its reason.

    plan = make_plan({"data.root": "field"}, seconds=1800.0)
    halfmask.train(plan.recipe, "runs/field")

Rules decide what they can (`halfmask.plan.table` holds what is chosen from); trial steps on the data of the run decide
what memory and time allow. What the user set stays as it is, and is taken into account.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from halfmask.data.splits.opening import load_checked
from halfmask.errors import Faults
from halfmask.plan.budget import Budget, Fit, fit, predicted
from halfmask.plan.choices import ALIKE, Choice, Draft, draft, is_set
from halfmask.plan.facts import DataFacts, Machine, look_at_data, look_at_machine
from halfmask.plan.table import LIMITS
from halfmask.plan.trials import choose_precision
from halfmask.progress import duration, timed
from halfmask.recipe.read import Recipe, load
from halfmask.recipe.shipped import find_recipe
from halfmask.run.cost import Cost
from halfmask.run.folds import check_count, check_foldable
from halfmask.run.loop.shipping import FEW_IMAGES
from halfmask.run.prepare import check_machine
from halfmask.run.prepared import lengths
from halfmask.run.twin import kinds_of

__all__ = ["Choice", "Plan", "make_plan"]

_NAMES = {"control": "control", "supervised": "twin on masks alone"}


@dataclass(frozen=True)
class Plan:
    """A recipe, and how it came about.

    Args:
        recipe: ready to train; the origin of each chosen value is its reason.
        data: facts it was made from.
        machine: likewise.
        choices: in the order of their making.
        memory: bytes it will take, as predicted.
        seconds: of all steps of all runs, as predicted.
        validation_seconds: of all validations.
        cost: of a step, and of all steps of one run, by the same trials.
        folds: of cross-validation, after which one run is trained on all masks; 0: none.
        seeds: runs that differ in the seed.
    """

    recipe: Recipe
    data: DataFacts
    machine: Machine
    choices: tuple[Choice, ...]
    memory: int
    seconds: float
    validation_seconds: float
    cost: Cost
    folds: int = 0
    seeds: int = 1

    def describe(self) -> str:
        """Write every choice with its reason, then memory and time."""
        data, machine = self.data, self.machine
        where = machine.gpu or f"CPU, {machine.cores} core{'s' if machine.cores > 1 else ''}, no GPU"
        images = f"{data.unlabeled} unlabeled, {data.val} validation image{'s' * (data.val != 1)}"
        if self.folds:
            images = f"{data.unlabeled} unlabeled image{'s' * (data.unlabeled != 1)}, {self.folds} folds"
        lines = [
            f"plan     {data.labeled} labeled, {images}, {data.task.n_classes} classes; {where}, "
            f"{machine.memory / 2**30:.1f} GiB free"
        ]
        lines += [f"  {choice.topic:<10} {choice.value}" + (f"  ({choice.reason})" if choice.reason else "") for choice
                  in self.choices]  # fmt: skip
        lines.append(f"  {'memory':<10} about {self.memory / 2**30:.2f} GiB, by trial steps")
        total = f"{duration(self.seconds + self.validation_seconds)}{self._runs()}"
        lines.append(f"  {'time':<10} about {total}, {duration(self.validation_seconds)} of it for validation")
        lines += self._unknown_with_folds() if self.folds else self._unknown()
        if machine.busy:
            cores = f"{machine.cores} core{'s' if machine.cores > 1 else ''}"
            lines.append(
                f"  {'load':<10} {machine.load:.1f} processes on {cores}: other programs slow this one down; the time "
                "holds while they run, and is less without them"
            )
        return "\n".join(lines)

    def _runs(self) -> str:
        if self.folds:
            with_twin = ", each with what it is compared with," if kinds_of(self.recipe) else ""
            return f" for {self.folds} folds{with_twin} and then a run on all masks"
        other = " and ".join(_NAMES[kind] for kind in kinds_of(self.recipe))
        if self.seeds > 1:
            return f" for {self.seeds} seeds" + (f", each with its {other}" if other else "")
        return f" for the run and its {other}" if other else ""

    def _unknown_with_folds(self) -> list[str]:
        """Say what folds that are compared with nothing cannot tell, and what it costs to know it."""
        if self.recipe.method.name == "supervised" or kinds_of(self.recipe):
            return []
        each = (self.seconds - self.cost.seconds + self.validation_seconds) / self.folds
        price = duration(self.seconds + self.validation_seconds + self.folds * each)
        return [
            f"  {'unknown':<10} whether images without masks help: no run is without them. --twin adds one to each "
            f"fold, about {price} in all"
        ]

    def _unknown(self) -> list[str]:
        """Say what so few validation images cannot tell, and what it costs to know it."""
        data = self.data
        masks = data.labeled + (data.val if data.held_out else 0)
        if data.val >= FEW_IMAGES or masks < 2 or self.recipe.data.val not in {"auto", "none"}:
            return []
        folds, seconds = min(5, masks), (self.seconds + self.validation_seconds) / self.seeds
        few = f"{data.val or 'no'} validation image{'s' * (data.val != 1)} cannot tell"
        what, flags, runs = "how good the model is", f"--folds {folds}", folds + 1
        if self.recipe.method.name != "supervised":
            what += ", and whether images without masks help"
            flags, runs = f"{flags} --twin", 2 * folds + 1
        price = f"measures it on all {masks} masks, in about {duration(runs * seconds)}"
        return [f"  {'unknown':<10} {what}: {few}. {flags} {price}"]


def make_plan(
    given: Mapping[str, Any],
    *,
    seconds: float | None = None,
    memory: int | None = None,
    pretrained: bool = False,
    began: float | None = None,
    quiet: bool = True,
    folds: int = 0,
    seeds: int = 1,
    limit: int | None = None,
) -> Plan:
    """Make a plan.

    Args:
        given: dotted keys that are set already, `data.root` among them.
        seconds: budget of time, of the whole command.
        memory: budget of memory in bytes.
        pretrained: weights may be downloaded; those on this machine are used in any case.
        began: `time.monotonic()` at the start of the command; `None`: now.
        quiet: show no progress of looking at the files.
        folds: of cross-validation (`halfmask.run.folds.train_folds`); 0: none.
        seeds: runs that the plan is for, which differ in the seed.
        limit: of the steps, which the training is given beside the recipe.

    Raises:
        RecipeError: a key is wrong, there are fewer masks than folds, or the budget is too small: the smallest possible
            is named.
        DataError: the data cannot be used.
    """
    runs = folds + 1 if folds else seeds
    budget = Budget(seconds, memory, time.monotonic() if began is None else began, runs, folds)
    asked = load_checked(None, dict(given))
    if folds:
        check_foldable(asked, folds)
        given = {key: value for key, value in given.items() if key != "data.val"}  # each fold has its own
        asked = load(None, {**given, "data.val": "none"})
    faults = Faults()
    check_machine(asked, faults)
    with timed("looking at the data"), faults.collected():
        data = look_at_data(asked.data, unlabeled=asked.method.name != "supervised", quiet=quiet)
    faults.raise_all()
    if folds:
        check_count(folds, data.labeled)
    machine = look_at_machine(asked.run.accelerator)
    rules = draft(data, machine, given, pretrained=pretrained, folds=folds)
    settings: dict[str, Any] = {}
    for choice in rules.choices:
        settings |= choice.settings

    def build(more: Mapping[str, Any]) -> Recipe:
        return _recipe(rules.base, {**settings, **more}, given)

    own_length = is_set("run.steps", given) or is_set("run.epochs", given)
    with timed("trying precisions"):
        precision = choose_precision(build({}), data)
    if precision is not None:
        rules = replace(rules, choices=(*rules.choices, precision))
        settings |= precision.settings
    network = rules.network
    usual = None if own_length else network.steps if network else build({}).run.steps or 1000
    with timed("building data and network, and trial steps"):
        fitted = fit(build, usual, network.multiple if network else 32, budget, machine, rules.twin)
    steps, _ = lengths(build(fitted.settings), fitted.measured.prepared.steps_per_epoch, limit)
    if rules.gently is not None:
        alike = steps >= LIMITS.long_run and data.labeled <= LIMITS.few_masks
        weight = ALIKE if alike else rules.gently
        rules = replace(rules, choices=(*rules.choices, weight))
        settings |= weight.settings
    choices = _merged(rules, fitted, given)
    recipe = _with_reasons(build(fitted.settings), choices, given)
    measured = fitted.measured
    total, every = lengths(recipe, measured.prepared.steps_per_epoch, limit)
    whole = replace(measured.prepared, recipe=recipe, total_steps=total, eval_every=every)
    training, validation = predicted(whole, measured)
    cost = replace(measured.cost, steps=total)
    times = folds or seeds
    training = times * training + (cost.seconds if folds else 0.0)  # the run on all masks validates nothing
    if limit is not None and lengths(recipe, measured.prepared.steps_per_epoch, None)[0] > limit:
        choices = _limited(choices, limit)
    return Plan(recipe, data, machine, choices, measured.memory, training, times * validation, cost, folds, seeds)


def _limited(choices: tuple[Choice, ...], steps: int) -> tuple[Choice, ...]:
    """Say what a limit makes of the steps; the recipe keeps its own, which the training cuts."""
    whole = next((choice.value for choice in choices if choice.topic == "steps"), "")
    cut = Choice("steps", f"{steps}", f"--limit{f', of {whole}' if whole else ''}")
    return (*(choice for choice in choices if choice.topic != "steps"), cut)


def _recipe(base: str, settings: Mapping[str, Any], given: Mapping[str, Any]) -> Recipe:
    """Return the base recipe with the plan's settings, and the user's on top."""
    kept = {key: value for key, value in settings.items() if not is_set(key, given)}
    return load(find_recipe(base), {**kept, **given})


def _merged(rules: Draft, fitted: Fit, given: Mapping[str, Any]) -> tuple[Choice, ...]:
    """Join choices in one list: memory and time replace what the rules said; what the user set says so."""
    later = {choice.topic: choice for choice in fitted.choices}
    merged: list[Choice] = []
    for choice in (*rules.choices, *(c for c in fitted.choices if c.topic not in {r.topic for r in rules.choices})):
        changed = later.get(choice.topic)
        if changed is not None and changed is not choice:
            settings = {key: fitted.settings.get(key, value) for key, value in choice.settings.items()}
            choice = Choice(choice.topic, changed.value, changed.reason, settings)
        if choice.settings and all(is_set(key, given) for key in choice.settings):
            value = " ".join(str(given[key]) for key in choice.settings if key in given) or choice.value
            choice = Choice(choice.topic, value, "as you set")
        merged.append(choice)
    return tuple(merged)


def _with_reasons(recipe: Recipe, choices: tuple[Choice, ...], given: Mapping[str, Any]) -> Recipe:
    """Write the reason of each choice as the origin of the values it set."""
    origins = dict(recipe.origins)
    for choice in choices:
        for key in choice.settings:
            for known in origins:
                if (known == key or known.startswith(f"{key}.")) and not is_set(known, given):
                    origins[known] = f"plan: {choice.reason}"
    return recipe.model_copy(update={"origins": origins})
