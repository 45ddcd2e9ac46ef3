"""The parts of a prepared run (method, task, batches, network), and checks that they fit together."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from halfmask.data.contract import Dataset, count_classes
from halfmask.data.loading.loader import HostBatch, TrainLoader
from halfmask.data.loading.sampler import ClassBalance, StepSampler
from halfmask.data.splits.split import Split
from halfmask.data.splits.weak import NOTHING_KNOWN, Weak, load_weak
from halfmask.errors import RecipeError, ShapeError
from halfmask.losses.cross_entropy import class_weights
from halfmask.method import Method
from halfmask.models.model import Model, has_batch_norm
from halfmask.plugins import names, resolve
from halfmask.recipe.read import Recipe
from halfmask.recipe.sections import MOST_STEPS, RunRecipe
from halfmask.run.loop.module import MakeLoader
from halfmask.run.loop.validation import CleanStatistics
from halfmask.run.sources import Sources

_COMPARED_IMAGES = 32  # whose statistics are compared with those of the training at its end
_FEWEST_VALIDATIONS, _MOST_VALIDATIONS = 10, 20


@dataclass(frozen=True)
class Prepared:
    """Everything that can be checked without training."""

    recipe: Recipe  # what was checked
    dataset: Dataset  # of the labeled and validation images; of several domains, the first's, like the next ones
    unlabeled: Dataset | None  # of the unlabeled images
    split: Split  # which ids have masks, and which have none
    method: Method  # built
    steps_per_epoch: int  # passes are counted by it
    total_steps: int  # of the run
    eval_every: int  # steps between validations
    warnings: tuple[str, ...] = ()  # to be shown before training
    balance: ClassBalance | None = None  # draws the labeled samples by class
    weak: Weak = NOTHING_KNOWN  # what is known of the unlabeled images
    sources: Sources = field(kw_only=True)  # the same data, be it one dataset or several that take turns
    # of the labeled loss, by the name of the domain ("" where there is one dataset)
    class_weights: Mapping[str, Tensor] = field(default_factory=dict)


class RareClasses(NamedTuple):
    """What is done for rare classes: `None` where the recipe asks for nothing."""

    balance: ClassBalance | None = None  # draws the labeled samples by class
    weights: Tensor | None = None  # (K,), of the labeled loss


def check_length(recipe: RunRecipe) -> None:
    """Refuse a recipe that does not say how long to train."""
    if recipe.steps is None and recipe.epochs is None:
        raise RecipeError("run.steps or run.epochs must say how long to train, for example run.steps=4000.")


def lengths(recipe: Recipe, per_epoch: int, limit: int | None) -> tuple[int, int]:
    """Return the steps of the run, and those between validations; the last step is always validated.

    Raises:
        RecipeError: the recipe does not say how long to train.
    """
    run = recipe.run
    check_length(run)
    total = run.steps or (run.epochs or 1) * per_epoch
    if total > MOST_STEPS:
        raise RecipeError(
            f"run.epochs={run.epochs} of {per_epoch} steps each are {total:,} steps; at most {MOST_STEPS:,} are "
            f"possible. Allowed: int in [1, {MOST_STEPS // per_epoch}].",
            "H303",
        )
    every = run.eval_every or max(1, min(max(per_epoch, total // _MOST_VALIDATIONS), total // _FEWEST_VALIDATIONS))
    return min(total, limit or total), every  # a run that is cut short validates as often as the whole one


def check_balance(cls: type[Method], recipe: Recipe) -> None:
    """Refuse settings for rare classes that the method or the order of the images does not allow."""
    data, rule = recipe.data, recipe.optim.class_weights
    if rule != "none" and "class_weights" not in cls.supports:
        raise RecipeError(
            f"method {recipe.method.name} has a loss of its own, which takes no weights of classes. Use "
            "optim.class_weights=none; rare classes can be shown more often instead: data.balance=classes."
        )
    if data.balance != "none" and (data.labeled_cut or not data.independent_shuffle):
        raise RecipeError(
            "data.balance=classes draws labeled images by class; data.labeled_cut and data.independent_shuffle=false "
            "tie them to the unlabeled ones. Use data.labeled_cut=false data.independent_shuffle=true."
        )


def balance_classes(method: Method, recipe: Recipe, dataset: Dataset, split: Split) -> RareClasses:
    """Weight the classes in the method's loss, and draw labeled crops by class, where the recipe says so."""
    data, rule = recipe.data, recipe.optim.class_weights
    check_balance(type(method), recipe)
    if data.balance == "none" and rule == "none":
        return RareClasses()
    counts = count_classes(dataset, split.labeled)
    return RareClasses(
        ClassBalance(counts, recipe.run.seed) if data.balance == "classes" else None,
        None if rule == "none" else torch.tensor(class_weights(counts.sum(0).tolist(), rule)),
    )


def weak_of(method: Method, recipe: Recipe, dataset: Dataset, split: Split) -> Weak:
    """Read what the recipe says of the unlabeled images, if the method uses it.

    Raises:
        RecipeError: the method does not.
        DataError: tags or pseudo-masks cannot be used.
    """
    asked = recipe.data.weak
    if asked is None:
        return NOTHING_KNOWN
    named = {name for name in ("tags", "masks") if getattr(asked, name) is not None}
    if not named:
        raise RecipeError("data.weak names neither tags nor masks: give data.weak.tags=FILE or data.weak.masks=DIR.")
    if not named & method.weak_labels:
        uses = f"only data.weak.{' and '.join(sorted(method.weak_labels))}" if method.weak_labels else "no weak labels"
        raise RecipeError(
            f"data.weak names {' and '.join(sorted(named))}, but method {recipe.method.name} uses {uses}. "
            f"Leave data.weak out, or use a method that learns from them: {', '.join(_learning_from(named))}."
        )
    if "masks" in named and "masks" in method.weak_labels:
        asked = asked.model_copy(update={"tags": None})  # the masks were made of them
    return load_weak(asked, dataset, method.task, split.unlabeled)


def _learning_from(named: set[str]) -> list[str]:
    """List the methods that use these weak labels."""
    return [name for name in names("methods") if named <= resolve("methods", name).weak_labels]


def check_batches(recipe: Recipe, world: int) -> None:
    """Refuse batches that cannot be dealt to the processes."""
    for name in ("labeled", "unlabeled"):
        size = getattr(recipe.data.batch, name)
        if size % world:
            raise RecipeError(
                f"data.batch.{name}={size} is the total over all devices and cannot be divided by {world}. "
                f"Use {max(size // world, 1) * world} or {(size // world + 1) * world}."
            )


def check_pairing(cls: type[Method], recipe: Recipe) -> None:
    """Refuse unequal batches where the method needs equal ones."""
    batch = recipe.data.batch
    if cls.equal_batches and not (batch.labeled == batch.unlabeled and recipe.data.drop_last):
        raise RecipeError(
            f"method {recipe.method.name} splits each batch into a labeled and an unlabeled half of equal size, but "
            f"data.batch is {batch.labeled} labeled and {batch.unlabeled} unlabeled, data.drop_last is "
            f"{str(recipe.data.drop_last).lower()}. Use data.batch={{labeled: {batch.labeled}, unlabeled: "
            f"{batch.labeled}}} and data.drop_last=true."
        )


def check_task(cls: type[Method], recipe: Recipe, kind: str) -> None:
    """Refuse a kind of task that the method or the protocol cannot do."""
    if kind not in cls.tasks:
        allowed = ", ".join(sorted(cls.tasks))
        raise RecipeError(f"method {recipe.method.name} does not work for {kind} data, only for: {allowed}.")
    if kind == "classification" and recipe.eval.mode != "whole":
        raise RecipeError(
            f"eval.mode={recipe.eval.mode} cuts windows, but a label is of the whole image: eval.mode=whole."
        )


def check_crop(method: Method, recipe: Recipe) -> None:
    """Refuse a crop that one of the method's networks cannot take."""
    crop = recipe.data.crop
    models = [module for module in method.modules() if isinstance(module, Model)]
    multiple = math.lcm(*(model.size_multiple for model in models))
    if crop % multiple:
        names = dict.fromkeys(str(model.spec["model"]["encoder"]["name"]) for model in models if model.spec)
        raise ShapeError(
            f"data.crop={crop}, but encoder {' with '.join(names)} needs multiples of {multiple}. Use "
            f"data.crop={max(crop // multiple, 1) * multiple} or {(crop // multiple + 1) * multiple}; evaluation fits "
            "the size by itself (eval.fit)."
        )


def check_shares(method: Method, recipe: Recipe, split: Split, world: int) -> None:
    """Refuse passes of fewer images than batch normalization or the method can use, on any device, in any step."""
    data, problems = recipe.data, []
    sampler = StepSampler(len(split.labeled), len(split.unlabeled), data, draws=method.draws, world=world)
    for stream, name in enumerate(("labeled", "unlabeled")[: 1 + bool(method.draws)]):
        images = sampler.smallest_batch(stream) // world
        size = getattr(data.batch, name)
        paired = method.smallest_batch if name == "unlabeled" else 1
        fewest = max(2 if has_batch_norm(method) else 1, paired)
        if images >= fewest:
            continue
        if size // world >= fewest:  # only the last batch of a pass is too small
            length = len(getattr(split, name))
            problems.append(
                f"data.drop_last=false ends each pass over the {length} {name} images with a batch of "
                f"{sampler.smallest_batch(stream)}: {_reason(method, recipe, paired)} Use data.drop_last=true, or a "
                f"data.batch.{name} that divides {length}."
            )
            continue
        more = f"Raise data.batch.{name} to {fewest * world} or more"
        other = ", or use a model without batch norm (model.encoder.name=dinov2, model.decoder.name=dpt)"
        other = other if method.smallest_batch == 1 else ""
        problems.append(
            f"data.batch.{name}={size} gives {images} {name} image{'s' if images > 1 else ''} per device: "
            f"{_reason(method, recipe, paired)} {more}{other}."
        )
    if problems:
        raise RecipeError("\n".join(problems))


def _reason(method: Method, recipe: Recipe, paired: int) -> str:
    reasons = []
    if has_batch_norm(method):
        reasons.append("this model has batch normalization, which needs at least two images on each device")
    if paired > 1:
        reasons.append(
            f"method {recipe.method.name} pairs the images of a batch (mixing partners, complementary dropout) and "
            f"needs at least {paired} on each device"
        )
    return f"{'; '.join(reasons)}."


def loader_maker(prepared: Prepared, out: Path) -> MakeLoader:
    """Return what makes the loader of a range of steps; decoded images are cached in `out` where the recipe asks."""
    recipe, method = prepared.recipe, prepared.method

    def make(start: int, stop: int, rank: int, world: int) -> DataLoader[HostBatch]:
        settings: dict[str, Any] = {
            "seed": recipe.run.seed,
            "draws": method.draws,
            "draws_share_images": method.draws_share_images,
            "rank": rank,
            "world": world,
            "pin": torch.cuda.is_available() and recipe.run.accelerator != "cpu",
            "cache": out / "cache",
        }
        loader = prepared.sources.loader(recipe.data, **settings)
        loader.steps.start, loader.steps.stop = start, stop
        return loader

    return make


def clean_statistics(prepared: Prepared) -> CleanStatistics | None:
    """Return what estimates the statistics of batch norm anew; `None` for networks without batch norm.

    A run over several domains keeps the averages of its training: its networks share layers, but not images.
    """
    recipe, method = prepared.recipe, prepared.method
    if recipe.data.domains is not None:
        return None
    if not any(network.has_batch_stats for network in method.predictors().values()):
        return None
    batch, images = recipe.data.batch, recipe.run.precise_bn or _COMPARED_IMAGES
    per_step = batch.labeled + (batch.unlabeled if method.draws else 0)

    def make(rank: int, world: int) -> TrainLoader:
        data = recipe.data.model_copy(update={"workers": 0, "cache": "none"})
        loader = prepared.sources.loader(data, seed=recipe.run.seed, draws=min(method.draws, 1), rank=rank, world=world)
        loader.steps.start, loader.steps.stop = 0, math.ceil(images / (per_step * world))
        return loader

    return CleanStatistics(make, used=recipe.run.precise_bn > 0)
