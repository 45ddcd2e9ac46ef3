"""The supervised twin of a run: the same, but without the unlabeled images.

Same network, labeled images and crops of them, batch of labeled images, optimizer, seed, steps, and as many
validations to choose the best checkpoint from. What differs is the method, and with it the predictor that is shipped:
where the run has a moving average of its weights, that is part of what is compared.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from halfmask.data.splits.split import part_ids
from halfmask.errors import RecipeError
from halfmask.plugins import resolve
from halfmask.recipe.read import Recipe, load
from halfmask.run.prepare import prepare
from halfmask.run.prepared import Prepared

FOLDER, RESULT = "twin", "twin.json"
_FEW_IMAGES = 10
_KEPT_PARAMS = ("loss", "ohem_threshold", "ohem_min_kept")


@dataclass(frozen=True)
class Estimate:
    """A score, or a difference of scores, with its 95 % interval; `None` where there is no number."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class TwinResult:
    """What the unlabeled images brought.

    Args:
        metric: score that is compared: `miou`, `changed_iou` or `acc`.
        part: images it was computed on: those the best checkpoints were chosen on.
        images: how many.
        steps: of each of the two.
        method: of the run.
        run: score of the run's shipped predictor.
        twin: score of the supervised twin.
        difference: run - twin, by a paired bootstrap over the images.
        by_class: difference of each class.
        folder: of the twin.
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

    @property
    def verdict(self) -> Literal["helps", "hurts", "unclear"]:
        """What the interval says."""
        low, high = self.difference.low, self.difference.high
        if low is None or high is None or low <= 0 <= high:
            return "unclear"
        return "helps" if low > 0 else "hurts"

    def to_dict(self) -> dict[str, Any]:
        """Return what `twin.json` holds."""
        plain = asdict(self)
        return {**plain, "folder": self.folder.name, "verdict": self.verdict}

    def describe(self) -> str:
        """Say in two lines whether the unlabeled images help."""
        change = self.difference
        value = 100 * (change.value or 0.0)
        interval = "no interval: one image"
        if change.low is not None and change.high is not None:
            interval = f"95 % interval {100 * change.low:+.1f} to {100 * change.high:+.1f}"
        images = f"{self.images} {self.part} image{'s' if self.images > 1 else ''}"
        return (
            f"twin     {self.metric} {_percent(self.run)} with the unlabeled images ({self.method}), "
            f"{_percent(self.twin)} without, {self.steps} steps each: {value:+.1f} points, {interval}, {images}\n"
            f"         {self._sentence()}"
        )

    def _sentence(self) -> str:
        if self.verdict == "helps":
            text = "The unlabeled images help here."
        elif self.verdict == "hurts":
            text = f"The unlabeled images do harm here: the supervised model in {self.folder} is the better one."
        else:
            text = "The unlabeled images do not help measurably here: the interval holds 0."
        if self.images < _FEW_IMAGES:
            text += f" With {self.images} {self.part} images the interval itself is rough."
        return text


def check_comparable(recipe: Recipe, limit: int | None = None) -> Prepared:
    """Refuse a run that has no twin, before it trains.

    Raises:
        RecipeError: the run is supervised itself, has several stages or processes, or nothing to compare on.
    """
    name = recipe.method.name
    if recipe.run.devices * recipe.run.nodes > 1:
        raise RecipeError(
            f"a twin is trained in one process, but the run asks for {recipe.run.devices * recipe.run.nodes}. Train "
            "without --twin; then on one device: halfmask train --resume RUN --twin run.devices=1 run.nodes=1"
        )
    if recipe.data.domains is not None:
        raise RecipeError(
            "a run over several domains has no supervised twin. Leave out --twin, and compare with a run of its own: "
            "method.method=supervised."
        )
    if len(resolve("methods", name).plan(recipe)) > 1:
        raise RecipeError(f"method {name} trains in stages: it has no twin of equal steps. Leave out --twin.")
    prepared = prepare(recipe, limit, look=False)
    if not prepared.method.draws:
        raise RecipeError(f"method {name} uses no unlabeled images: it is its own twin. Leave out --twin.")
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


def twin_recipe(prepared: Prepared) -> Recipe:
    """Return the recipe of the supervised twin."""
    recipe = prepared.recipe
    kept = {key: recipe.method.params[key] for key in _KEPT_PARAMS if key in recipe.method.params}
    if kept.get("loss") not in {"ce", "ohem"}:
        kept.pop("loss", None)
    changed = {
        "method": {"name": "supervised", **kept},
        # In steps: an epoch of the twin would be a pass over the labeled list.
        "run.steps": prepared.total_steps,
        "run.epochs": None,
        "run.eval_every": prepared.eval_every,
        "run.twin": False,
        "data.weak": None,
        "expected": None,
    }
    twin = load(recipe.model_dump(mode="json"), changed)
    origins = {
        key: "twin" if origin == "override" else recipe.origins.get(key, origin) for key, origin in twin.origins.items()
    }
    return twin.model_copy(update={"origins": origins})


def _percent(estimate: Estimate) -> str:
    return "n/a" if estimate.value is None else f"{100 * estimate.value:.1f}"
