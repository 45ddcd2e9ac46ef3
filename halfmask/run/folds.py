"""Cross-validation over few masks, then one run on all of them (`halfmask train --folds K`).

    <run>/folds.json           what was asked, the masks that each fold holds out, and at the end the estimate
    <run>/fold-1, fold-2, ...  runs, each without 1/K of the masks; the lists are in lists/
    <run>/                     the run on all masks, which is shipped

No fold chooses anything by its few images: each ends with its averaged last weights (`eval.ship=last`), as the run on
all masks does. Each mask is predicted once, by networks that have not seen it, and the counts of all images together
give score and interval; with `run.twin` also the difference to what the folds are compared with, image by image. The
better of the two is what is trained on all masks.

Steps: the mean over the folds of the validation scores, weighed by their images, says where training could end. Noise
of a few images is not to choose, so that a shorter training is taken only where it scores `_CLEARLY` more than the end;
its learning rate then falls to the end of the shorter run. The score stays that of the folds at their end.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from halfmask.atomic import write_json
from halfmask.data.folder.lists import write_list
from halfmask.errors import CheckpointError, RecipeError
from halfmask.infer.bootstrap import difference, scored
from halfmask.infer.bundle import FOLDS
from halfmask.plugins import resolve
from halfmask.recipe.read import Recipe, load
from halfmask.recipe.sections import UnlabeledRecipe
from halfmask.run import fit as engine
from halfmask.run.checkpoint import difference_of
from halfmask.run.fit import TrainResult
from halfmask.run.folder import RunDir, fold_name, naming_resume
from halfmask.run.loop.progress import ProgressLine
from halfmask.run.loop.shipping import FEW_IMAGES
from halfmask.run.prepare import prepare
from halfmask.run.prepared import Prepared
from halfmask.run.train import predicted, train
from halfmask.run.twin import FOLDERS, Estimate, Kind, kinds_of, twin_recipe

_CLEARLY = 0.01  # of the score
_LISTS = "lists"


@dataclass(frozen=True)
class FoldsResult:
    """What cross-validation found.

    Args:
        metric: score that is estimated.
        images: that were held out, each once.
        folds: how many trainings that took.
        steps: of the run on all masks.
        asked_steps: of each fold.
        score: of the run, with its interval.
        other: of what it is compared with; `None`: nothing.
        difference: run - other, by a paired bootstrap over the images.
        kind: what the other is.
        ships: which of both is trained on all masks and shipped.
    """

    metric: str
    images: int
    folds: int
    steps: int
    asked_steps: int
    score: Estimate
    other: Estimate | None = None
    difference: Estimate | None = None
    kind: Kind | None = None
    ships: Literal["run", "other"] = "run"

    def describe(self) -> str:
        """Say in a few lines how good the model is, and what follows from it."""
        lines = [
            f"folds    {self.metric} {_told(self.score)}, on {self.images} masks, each predicted by networks that have "
            f"not seen it ({self.folds} folds)"
        ]
        if self.other is not None and self.difference is not None:
            lines.append(f"         {_NAMES[self.kind]}: {_told(self.other)}; {_told(self.difference, sign=True)}")
            lines.append(f"         {self._verdict()}")
        if self.steps < self.asked_steps:
            lines.append(f"         {self.steps} of {self.asked_steps} steps were clearly better than all of them.")
        return "\n".join(lines)

    def _verdict(self) -> str:
        assert self.difference is not None
        low, high = self.difference.low, self.difference.high
        without = "without their loss" if self.kind == "control" else "on masks alone"
        shipped = f"the network trained {'with them' if self.ships == 'run' else without} is shipped"
        told = low is not None and high is not None and not low <= 0 <= high
        few = self.images < FEW_IMAGES  # a bootstrap of so few knows a handful of outcomes
        if few or not told:
            what = "the images without masks help" if self.kind == "control" else "the run is better than masks alone"
            why = f"{self.images} masks are too few" if few else "the interval holds 0"
            more = ", which scores more" if self.difference.value else ": both score alike"
            return f"Whether {what} cannot be told, {why}: {shipped}{more}."
        better = self.ships == "run"
        if self.kind == "control":
            return f"The images without masks {'helped' if better else 'did not help'} here: {shipped}."
        return f"The run is {'better' if better else 'worse'} than training on masks alone: {shipped}."


_NAMES: dict[Kind | None, str] = {"control": "without the loss of the unlabeled images", "supervised": "masks alone"}


def train_folds(
    recipe: Recipe | None, out: str | Path, folds: int = 0, *, resume: bool = False, overwrite: bool = False,
    quiet: bool = False, limit: int | None = None,
) -> tuple[TrainResult, FoldsResult]:  # fmt: skip
    """Train K folds, estimate by the masks that each left out, and train on all masks; options as of `train`.

    Raises:
        RecipeError: the data is not to be divided, or not so often.
        CheckpointError: there is nothing to go on with, or there are other masks now than when it began.
        Interrupted: Ctrl-C or SIGTERM; `halfmask train --resume OUT` goes on.
    """
    out, line = Path(out), ProgressLine(quiet)
    asked: dict[str, Any] = {}
    if resume:
        asked = _begun(out)
        recipe, folds, limit = load(asked["recipe"]), asked["folds"], asked["limit"]
    else:
        assert recipe is not None
        RunDir(out).check_free(overwrite=overwrite)
    check_foldable(recipe, folds)
    prepared = _whole(recipe, limit)
    if resume:
        held_out: list[list[str]] = asked["held_out"]
        _check_same_masks(out, held_out, prepared.split.labeled)
    else:
        check_count(folds, len(prepared.split.labeled))
        held_out = _dealt(prepared.split.labeled, folds, recipe.data.labeled_seed)
        if overwrite:
            RunDir(out).create(overwrite=True)
        asked = {"recipe": recipe.model_dump(mode="json"), "folds": folds, "limit": limit, "held_out": held_out}
        write_json(out / FOLDS, asked)
    with naming_resume(out):
        for number, ids in enumerate(held_out, 1):
            if not quiet:
                masks = f"{len(ids)} of {len(prepared.split.labeled)} masks"
                line.say(f"fold     {number} of {folds}: {masks} are held out")
            _train_fold(recipe, prepared, out, number, ids, limit=limit, quiet=quiet)
        found = _pooled(recipe, prepared, out, held_out)
        write_json(out / FOLDS, {**asked, "result": asdict(found)})
        line.tell(found.describe())
        if RunDir(out).saved():
            result = engine.fit(None, out, resume=True, quiet=quiet)
        else:
            final = _final(recipe, prepared, found)
            result = engine.fit(final, out, overwrite="but_folds", quiet=quiet)
    return replace(result, folds=found), found


def check_folds(recipe: Recipe, folds: int, limit: int | None = None) -> None:
    """Refuse what cannot be divided into so many folds, before anything is trained.

    Raises:
        RecipeError: the recipe, or the number of its masks, does not allow it.
    """
    check_foldable(recipe, folds)
    check_count(folds, len(_whole(recipe, limit).split.labeled))


def check_foldable(recipe: Recipe, folds: int) -> None:
    """Refuse a recipe that cannot be cross-validated, whatever its masks.

    Raises:
        RecipeError: fewer than two folds, several datasets, stages or processes, or a validation list of one's own.
    """
    data, run = recipe.data, recipe.run
    if folds < 2:
        raise RecipeError(f"--folds {folds}: at least two are needed; usual are 5.", "H303")
    if data.domains is not None or len(resolve("methods", recipe.method.name).plan(recipe)) > 1:
        raise RecipeError("--folds needs one dataset and a method of one stage. Leave it out, and name data.val=LIST.")
    if run.devices * run.nodes > 1:
        raise RecipeError("--folds trains in one process: use run.devices=1, or leave it out.")
    if data.val not in {"auto", "none"}:
        raise RecipeError(f"--folds holds masks out by itself, but data.val={data.val} names others. Give one of both.")


def check_count(folds: int, masks: int) -> None:
    """Refuse more folds than there are masks. Raises RecipeError: with the largest number."""
    if masks < 2:
        raise RecipeError(f"--folds needs at least two masks, but {masks} is in use. Label more images.")
    if folds > masks:
        raise RecipeError(f"--folds {folds}, but {masks} masks are in use. Give at most --folds {masks}.")


def _whole(recipe: Recipe, limit: int | None) -> Prepared:
    """Prepare the run on all masks."""
    whole = load(recipe.model_dump(mode="json"), {"data.val": "none", "run.twin": None, "eval.ship": "last"})
    return prepare(whole, limit, look=False)


def _dealt(labeled: Sequence[str], folds: int, seed: int) -> list[list[str]]:
    """Split the masks into folds at random, as evenly as possible."""
    order = np.random.default_rng(seed).permutation(len(labeled)).tolist()
    return [sorted(labeled[place] for place in order[number::folds]) for number in range(folds)]


def _check_same_masks(out: Path, held_out: Sequence[Sequence[str]], labeled: Sequence[str]) -> None:
    """Refuse other masks than those the folds were dealt from: one would be held out twice, or never."""
    then = [id for ids in held_out for id in ids]
    if sorted(then) != sorted(labeled):
        raise CheckpointError(
            f"{out / FOLDS}: the masks differ from those that the folds were made of."
            f"{difference_of('labeled', {'labeled': then}, {'labeled': labeled})}\n  Restore the files, or start "
            "anew with the masks there are: --folds K with --overwrite or another --out.",
            "H405",
        )


def _train_fold(
    recipe: Recipe, prepared: Prepared, out: Path, number: int, ids: Sequence[str], *, limit: int | None, quiet: bool
) -> None:
    run = RunDir(out / fold_name(number), root=out)
    begun = run.recipe.is_file() and bool(run.saved())
    if begun:
        train(None, run.path, resume=True, quiet=quiet, root=out)
        return
    lists = {"labeled": [id for id in prepared.split.labeled if id not in set(ids)], "val": list(ids)}
    changed: dict[str, Any] = {"data.split": None, "eval.ship": "last", "eval.select_on": "val", "expected": None}
    if not isinstance(recipe.data.unlabeled, UnlabeledRecipe) and prepared.split.unlabeled:
        lists["unlabeled"] = list(prepared.split.unlabeled)
    for name, listed in lists.items():
        path = (out / _LISTS / f"{fold_name(number)}-{name}.txt").resolve()
        write_list(path, listed)
        changed[f"data.{name}"] = str(path)
    asked = load(recipe.model_dump(mode="json"), changed)
    train(asked, run.path, overwrite=True, quiet=quiet, limit=limit, root=out)


def _pooled(recipe: Recipe, prepared: Prepared, out: Path, held_out: Sequence[Sequence[str]]) -> FoldsResult:
    """Score what the folds predict of the masks that each has not seen."""
    kind = next(iter(kinds_of(recipe)), None)
    runs = [out / fold_name(number) for number in range(1, len(held_out) + 1)]
    task, absent = prepared.dataset.task, recipe.eval.absent_classes
    own = np.concatenate([predicted(run, run).counts for run in runs])
    compared: dict[str, Any] = {}
    shipped = runs
    if kind is not None:
        others = [run / FOLDERS[kind] for run in runs]
        other = np.concatenate([predicted(run, folder).counts for run, folder in zip(runs, others, strict=True)])
        change = Estimate.of(difference(own, other, task.kind, absent).main)
        shipped = others if (change.value or 0.0) < 0 else runs
        compared = {
            "other": Estimate.of(scored(other, task.kind, absent).main),
            "difference": change,
            "kind": kind,
            "ships": "other" if shipped is others else "run",
        }
    return FoldsResult(
        metric=task.main_metric,
        images=len(own),
        folds=len(runs),
        steps=_steps(shipped, [len(ids) for ids in held_out], task.main_metric, prepared.total_steps),
        asked_steps=prepared.total_steps,
        score=Estimate.of(scored(own, task.kind, absent).main),
        **compared,
    )


def _steps(runs: Sequence[Path], images: Sequence[int], metric: str, total: int) -> int:
    """Return the steps that are clearly best on the mean of all folds, else all."""
    sums: dict[int, list[float]] = {}
    for run, count in zip(runs, images, strict=True):
        for record in RunDir(run).metrics.read_text(encoding="utf-8").splitlines():
            values: Mapping[str, Any] = json.loads(record)
            if f"val/{metric}" in values:
                sums.setdefault(int(values["step"]), []).append(count * float(values[f"val/{metric}"]))
    curve = {step: sum(values) / sum(images) for step, values in sums.items() if len(values) == len(runs)}
    best = max(curve, key=lambda step: curve[step], default=total)
    return best if curve and curve[best] > curve.get(total, math.inf) + _CLEARLY else total


def _final(recipe: Recipe, prepared: Prepared, found: FoldsResult) -> Recipe:
    """Return the recipe of the run on all masks."""
    base = prepared.recipe
    if found.ships == "other" and found.kind is not None:
        base = twin_recipe(prepared, found.kind)
    return load(
        base.model_dump(mode="json"),
        {"run.steps": found.steps, "run.epochs": None, "run.eval_every": recipe.run.eval_every, "expected": None},
    )


def _begun(out: Path) -> dict[str, Any]:
    try:
        told = dict(json.loads((out / FOLDS).read_text(encoding="utf-8")))
        lists = [[str(id) for id in ids] for ids in told["held_out"]]
        return {"recipe": dict(told["recipe"]), "folds": int(told["folds"]), "limit": told["limit"], "held_out": lists}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{out / FOLDS}: cannot be read ({error}). Start anew with --folds K --overwrite.", "H402"
        ) from error


def _told(estimate: Estimate, *, sign: bool = False) -> str:
    form = "+.1f" if sign else ".1f"
    value = "n/a" if estimate.value is None else f"{100 * estimate.value:{form}}{' points' if sign else ' %'}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} (95 % interval {100 * estimate.low:{form}} to {100 * estimate.high:{form}})"
