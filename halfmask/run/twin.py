"""What a run is compared with: the same run without what unlabeled images teach, and plain supervised training.

The control is the run's own method with the loss of the unlabeled images left out (`Method.control_params`): same
networks, averaged weights, batches, passes, augmentation, seed, steps, validations, and the same choice of what is
shipped. A difference to it is the unlabeled images' doing. The supervised twin is method `supervised`: it lacks the
averaged weights and the passes of the unlabeled images too, so that a gain over it may be due to these.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from halfmask.data.splits.split import part_ids
from halfmask.errors import RecipeError
from halfmask.infer.bootstrap import Interval
from halfmask.plugins import resolve
from halfmask.recipe.read import Recipe, load
from halfmask.run.loop.shipping import FEW_IMAGES
from halfmask.run.prepare import prepare
from halfmask.run.prepared import Prepared

Kind = Literal["control", "supervised"]
FOLDERS: dict[Kind, str] = {"control": "control", "supervised": "twin"}  # in the folder of the run
_ROUGH = 10  # images below which an interval is called rough


@dataclass(frozen=True)
class Estimate:
    """A score, or a difference of scores, with its 95 % interval; `None` where there is no number."""

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, interval: Interval) -> "Estimate":
        """Take over an interval; what is nan there is `None` here."""
        return cls(*(None if math.isnan(number) else number for number in interval))


@dataclass(frozen=True)
class TwinResult:
    """A run beside its control, or beside plain supervised training.

    Args:
        metric: score that is compared: `miou`, `changed_iou` or `acc`.
        part: images it was computed on: those the best checkpoints were chosen on.
        images: how many.
        steps: of each of the two.
        method: of the run.
        run: score of the run's shipped predictor.
        twin: score of the other run's.
        difference: run - twin, by a paired bootstrap over the images.
        by_class: difference of each class.
        folder: of the other run.
        kind: what the other run is.
        ships: the other run's network is shipped; `None`: the comparison decides nothing.
    """

    metric: str
    part: str
    images: int
    steps: int
    method: str
    run: Estimate
    twin: Estimate
    difference: Estimate
    by_class: dict[str, Estimate]
    folder: Path
    kind: Kind = "control"
    ships: bool | None = None

    @property
    def verdict(self) -> Literal["helps", "hurts", "unclear"]:
        """Conclusion that the interval allows: on the unlabeled images or, beside supervised training, on the run.

        Fewer than five images give no verdict: a bootstrap of two knows three outcomes.
        """
        low, high = self.difference.low, self.difference.high
        if low is None or high is None or low <= 0 <= high or self.images < FEW_IMAGES:
            return "unclear"
        return "helps" if low > 0 else "hurts"

    def to_dict(self) -> dict[str, Any]:
        """Return what `twin.json` holds."""
        plain = asdict(self)
        return {**plain, "folder": self.folder.name, "verdict": self.verdict}

    def describe(self) -> str:
        """Say in two lines what the difference is, and what may be concluded from it."""
        change = self.difference
        value = 100 * (change.value or 0.0)
        interval = "no interval: one image" if self.images == 1 else "no interval"
        if change.low is not None and change.high is not None:
            interval = f"95 % interval {100 * change.low:+.1f} to {100 * change.high:+.1f}"
        images = f"{self.images} {self.part} image{'s' if self.images > 1 else ''}"
        other = "by the control, without their loss" if self.kind == "control" else "by method supervised"
        name = "control  " if self.kind == "control" else "twin     "
        return (
            f"{name}{self.metric} {_percent(self.run)} with the unlabeled images ({self.method}), "
            f"{_percent(self.twin)} {other}, {self.steps} steps each: {value:+.1f} points, {interval}, {images}\n"
            f"         {self._sentence()}"
            f"{self._shipped()}"
        )

    def _shipped(self) -> str:
        if self.ships is None:
            return ""
        without = "with masks alone" if self.kind == "supervised" else "without their loss"
        run = self.folder.parent
        what = f"the network trained {without}, {self.folder}" if self.ships else f"that of {run}"
        if self.images < FEW_IMAGES:
            return f"\n         Shipped: {what}; validation cannot tell which is better."
        if not self.difference.value:
            return f"\n         Shipped: {what}. Both score alike."
        doubt = " though the interval holds 0" if self.verdict == "unclear" else ""
        text = f"\n         Shipped: {what}. Validation found it better{doubt and ','}{doubt}."
        if self.ships:
            text += f" `predict {run}` and others take it; the files in {run} itself are the other network's."
        return text

    def _sentence(self) -> str:
        control = self.kind == "control"
        if self.verdict == "helps":
            text = "The unlabeled images help here." if control else "The run is better than plain supervised training."
        elif self.verdict == "hurts":
            what = "The unlabeled images do harm" if control else "The run is worse than plain supervised training"
            text = f"{what} here: the model in {self.folder} is the better one."
        elif self.difference.low is None or self.images < FEW_IMAGES:
            what = "the unlabeled images help" if control else "the run is better than plain supervised training"
            count = "One image" if self.images == 1 else f"{self.images} images"
            return f"{count} cannot show whether {what}: compare on more validation images."
        else:
            what = "The unlabeled images do not help" if control else "The run is not better than supervised training"
            text = f"{what} measurably here: the interval holds 0."
        if not control and self.verdict != "hurts":
            text += (
                " Whether the unlabeled images do it, only the control can tell (run.twin=control): method supervised "
                "also lacks averaged weights and the passes of the unlabeled images."
            )
        if self.images < _ROUGH:
            text += f" With {self.images} {self.part} images the interval itself is rough."
        return text


def control_of(recipe: Recipe) -> Mapping[str, Any] | None:
    """Return the parameters of the control of a recipe's method; `None` where it has none."""
    params: Mapping[str, Any] | None = resolve("methods", recipe.method.name).control_params()
    return params


def teaches_nothing(method: str, params: Mapping[str, Any]) -> bool:
    """Tell whether a run leaves the loss of the unlabeled images out, as the control of its method does.

    >>> teaches_nothing("fixmatch", {"threshold": 0.9, "unlabeled_weight": 0.0})
    True
    """
    without: Mapping[str, Any] | None = resolve("methods", method).control_params()
    return bool(without) and all(params.get(key) == value for key, value in (without or {}).items())


def kinds_of(recipe: Recipe) -> tuple[Kind, ...]:
    """Return what a recipe's run is to be compared with; without a control, plain supervised training is left."""
    asked = recipe.run.twin
    if asked is None:
        return ()
    if asked == "supervised" or control_of(recipe) is None:
        return ("supervised",)
    return ("control", "supervised") if asked == "both" else ("control",)


def check_comparable(recipe: Recipe, limit: int | None = None) -> Prepared:
    """Refuse a run that has no twin, before it trains.

    Raises:
        RecipeError: the run is supervised itself, has several stages or processes, or nothing to compare on.
    """
    name = recipe.method.name
    if recipe.run.devices * recipe.run.nodes > 1:
        raise RecipeError(
            f"a control is trained in one process, but the run asks for {recipe.run.devices * recipe.run.nodes}. Train "
            "without --twin; then on one device: halfmask train --resume RUN --twin run.devices=1 run.nodes=1"
        )
    if recipe.data.domains is not None:
        raise RecipeError(
            "a run over several domains has no control. Leave out --twin, and compare with a run of its own: "
            "method.method=supervised."
        )
    if len(resolve("methods", name).plan(recipe)) > 1:
        raise RecipeError(
            f"method {name} trains in stages: it has no control of equal steps. Leave out --twin, and compare with a "
            "run of its own, method=supervised: halfmask report RUN OTHER."
        )
    prepared = prepare(recipe, limit, look=False)
    if not prepared.method.draws:
        raise RecipeError(f"method {name} uses no unlabeled images: it is its own control. Leave out --twin.")
    if not compared_ids(prepared):
        raise RecipeError(
            "--twin compares on validation images, and there are none. Name them with data.val=LIST, give at least "
            "five masks (a fifth is held out), or leave out --twin."
        )
    return prepared


def compared_ids(prepared: Prepared) -> list[str]:
    """Return the images both are compared on: those the run chooses its best checkpoint on."""
    part, split = prepared.recipe.eval.select_on, prepared.split
    return list(split.val if part == "val" else part_ids(prepared.recipe.data, prepared.dataset, part))


def twin_recipe(prepared: Prepared, kind: Kind) -> Recipe:
    """Return the recipe of what a run is compared with."""
    recipe = prepared.recipe
    # In steps: an epoch of method supervised would be a pass over the labeled list.
    changed: dict[str, Any] = {
        "run.steps": prepared.total_steps,
        "run.epochs": None,
        "run.eval_every": prepared.eval_every,
        "run.twin": None,
        "expected": None,
    }
    if kind == "control":
        params = control_of(recipe)
        assert params is not None
        changed |= {f"method.{key}": value for key, value in params.items()}
    else:
        loss = recipe.method.params.get("loss")
        known = loss == "ce" or (isinstance(loss, dict) and loss.get("name") == "ohem")
        kept = {"loss": loss} if known else {}  # others are of their methods
        changed |= {"method": {"name": "supervised", **kept}, "data.weak": None}
    twin = load(recipe.model_dump(mode="json"), changed)
    origins = {
        key: "twin" if origin == "override" else recipe.origins.get(key, origin) for key, origin in twin.origins.items()
    }
    return twin.model_copy(update={"origins": origins})


def _percent(estimate: Estimate) -> str:
    return "n/a" if estimate.value is None else f"{100 * estimate.value:.1f}"
