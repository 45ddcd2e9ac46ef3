"""Everything about a run that can be checked before it trains: most of it in seconds, then every file once."""

from dataclasses import dataclass

import torch

from halfmask.blocks.class_weights import class_weights
from halfmask.data import splits
from halfmask.data._class_counts import count_classes
from halfmask.data._dataset import Dataset
from halfmask.data._stamps import default_folder
from halfmask.data.sampler import ClassBalance, StepSampler, steps_per_epoch
from halfmask.data.splits import Split
from halfmask.engine import loggers
from halfmask.engine.optim import base_rate
from halfmask.engine.progress import LookingLine
from halfmask.errors import DataError, RecipeError, ShapeError
from halfmask.methods import Method
from halfmask.models.build import Builder
from halfmask.models.model import Model
from halfmask.plugins import resolve
from halfmask.recipe import Recipe

_FEWEST_VALIDATIONS, _MOST_VALIDATIONS = 10, 20


@dataclass(frozen=True)
class Prepared:
    """Everything that can be checked without training."""

    recipe: Recipe
    dataset: Dataset
    unlabeled: Dataset | None
    split: Split
    method: Method
    steps_per_epoch: int
    total_steps: int
    eval_every: int
    warnings: tuple[str, ...] = ()
    balance: ClassBalance | None = None


def prepare(recipe: Recipe, limit: int | None = None, *, look: bool = True, quiet: bool = True) -> Prepared:
    """Open data, build the method, and check that they fit.

    What takes longest comes last: every file is looked at, once for as long as it does not change.

    Args:
        recipe: what to check.
        limit: of the steps.
        look: look at the files; of several processes one is enough.
        quiet: show no progress of that.

    Raises:
        RecipeError, ShapeError, DataError: with all problems of their kind.
        MissingExtraError: the logger's package is not installed.
    """
    run, data = recipe.run, recipe.data
    world = run.devices * run.nodes
    loggers.require(run.logger)
    _check_batches(recipe, world)
    dataset = splits.open_dataset(data)
    split = splits.resolve_split(data, dataset)
    torch.manual_seed(run.seed)
    builder = Builder(
        recipe.model, dataset.task, crop=data.crop, channels=dataset.channels, mean=dataset.mean, std=dataset.std
    )
    cls = resolve("methods", recipe.method.name)
    _check_task(cls, recipe, dataset.task.kind)
    _check_pairing(cls, recipe)
    method: Method = cls(dataset.task, builder, **recipe.method.params)
    _check_model(method.student, recipe)
    unlabeled = splits.unlabeled_dataset(data, dataset) if method.draws else None
    warnings = split.remarks
    if not split.val and recipe.eval.select_on == "val" and data.val != "none":
        warnings = (
            *warnings,
            "no validation images (a list of labeled images is used as it is, and fewer than five masks are not "
            "divided): no best checkpoint is chosen, the last weights are kept. Name a list or part with data.val, "
            "draw lists with halfmask split --val N, or evaluate another part: halfmask evaluate RUN --part test.",
        )
    if method.draws and not split.unlabeled:
        raise DataError(
            f"method {recipe.method.name} learns from unlabeled images and there are none: every image of "
            f"{data.root} has a mask in use. Name others with data.unlabeled, use fewer masks with data.labeled, or "
            "choose method.name=supervised."
        )
    _check_shares(method, recipe, split, world)
    balance = _attend_to_rare_classes(method, recipe, dataset, split)
    length, batch = (
        (len(split.unlabeled), data.batch.unlabeled) if method.draws else (len(split.labeled), data.batch.labeled)
    )
    per_epoch = steps_per_epoch(length, batch, drop_last=data.drop_last)
    total = run.steps or (run.epochs or 1) * per_epoch
    if run.steps is None and run.epochs is None:
        raise RecipeError("run.steps or run.epochs must say how long to train, for example run.steps=4000.")
    total = min(total, limit or total)
    every = run.eval_every or max(1, min(max(per_epoch, total // _MOST_VALIDATIONS), total // _FEWEST_VALIDATIONS))
    if look:
        with LookingLine(quiet) as on_file:
            found = splits.verify(dataset, split, unlabeled, stamps=default_folder(), on_file=on_file)
        warnings = (*warnings, *found)
    return Prepared(recipe, dataset, unlabeled, split, method, per_epoch, total, every, warnings, balance)


def _attend_to_rare_classes(method: Method, recipe: Recipe, dataset: Dataset, split: Split) -> ClassBalance | None:
    """Weight the classes in the method's loss, and draw labeled crops by class, where the recipe says so."""
    data, rule = recipe.data, recipe.optim.class_weights
    if data.balance == "none" and rule == "none":
        return None
    if data.balance != "none" and (data.labeled_cut or not data.independent_shuffle):
        raise RecipeError(
            "data.balance=classes draws labeled images by class; data.labeled_cut and data.independent_shuffle=false "
            "tie them to the unlabeled ones. Use data.labeled_cut=false data.independent_shuffle=true."
        )
    counts = count_classes(dataset, split.labeled)
    if rule != "none":
        method.weigh_classes(class_weights(counts.sum(0).tolist(), rule))
    return ClassBalance(counts, recipe.run.seed) if data.balance == "classes" else None


def _check_batches(recipe: Recipe, world: int) -> None:
    for name in ("labeled", "unlabeled"):
        size = getattr(recipe.data.batch, name)
        if size % world:
            raise RecipeError(
                f"data.batch.{name}={size} is the total over all devices and cannot be divided by {world}. "
                f"Use {max(size // world, 1) * world} or {(size // world + 1) * world}."
            )


def _check_pairing(cls: type[Method], recipe: Recipe) -> None:
    batch = recipe.data.batch
    if cls.equal_batches and not (batch.labeled == batch.unlabeled and recipe.data.drop_last):
        raise RecipeError(
            f"method {recipe.method.name} splits each batch into a labeled and an unlabeled half of equal size, but "
            f"data.batch is {batch.labeled} labeled and {batch.unlabeled} unlabeled, data.drop_last is "
            f"{str(recipe.data.drop_last).lower()}. Use data.batch={{labeled: {batch.labeled}, unlabeled: "
            f"{batch.labeled}}} and data.drop_last=true."
        )


def _check_task(cls: type[Method], recipe: Recipe, kind: str) -> None:
    if kind not in cls.tasks:
        allowed = ", ".join(sorted(cls.tasks))
        raise RecipeError(f"method {recipe.method.name} does not work for {kind} data, only for: {allowed}.")
    if kind == "classification" and recipe.eval.mode != "whole":
        raise RecipeError(
            f"eval.mode={recipe.eval.mode} cuts windows, but a label is of the whole image: eval.mode=whole."
        )


def _check_model(model: Model, recipe: Recipe) -> None:
    crop, multiple = recipe.data.crop, model.size_multiple
    if crop % multiple:
        raise ShapeError(
            f"data.crop={crop}, but encoder {recipe.model.encoder.name} needs multiples of {multiple}. Use "
            f"data.crop={max(crop // multiple, 1) * multiple} or {(crop // multiple + 1) * multiple}; evaluation fits "
            "the size by itself (eval.fit)."
        )


def _check_shares(method: Method, recipe: Recipe, split: Split, world: int) -> None:
    """Refuse passes of fewer images than batch normalization or the method can use, on any device, in any step."""
    data = recipe.data
    sampler = StepSampler(len(split.labeled), len(split.unlabeled), data, draws=method.draws, world=world)
    for stream, name in enumerate(("labeled", "unlabeled")[: 1 + bool(method.draws)]):
        images = sampler.smallest_batch(stream) // world
        size = getattr(data.batch, name)
        fewest = max(2 if method.student.has_batch_stats else 1, method.smallest_batch if name == "unlabeled" else 1)
        if images >= fewest:
            continue
        if size // world >= fewest:  # only the last batch of a pass is too small
            length = len(getattr(split, name))
            raise RecipeError(
                f"data.drop_last=false ends each pass over the {length} {name} images with a batch of "
                f"{sampler.smallest_batch(stream)}: {_reason(method, recipe, fewest)} Use data.drop_last=true, or a "
                f"data.batch.{name} that divides {length}."
            )
        more = f"Raise data.batch.{name} to {fewest * world} or more"
        other = ", or use a model without batch norm (model.encoder.name=dinov2, model.decoder.name=dpt)"
        other = other if method.smallest_batch == 1 else ""
        raise RecipeError(
            f"data.batch.{name}={size} gives {images} {name} image{'s' if images > 1 else ''} per device: "
            f"{_reason(method, recipe, fewest)} {more}{other}."
        )


def _reason(method: Method, recipe: Recipe, fewest: int) -> str:
    if method.student.has_batch_stats and fewest == 2:
        return "this model has batch normalization, which needs at least two images on each device."
    return (
        f"method {recipe.method.name} pairs the images of a batch (mixing partners, complementary dropout) and needs "
        f"at least {fewest} on each device."
    )


def describe(prepared: Prepared) -> str:
    """Say in three lines what will be trained."""
    split, recipe = prepared.split, prepared.recipe
    images = "image pairs" if prepared.dataset.dates > 1 else "images"
    parameters = sum(parameter.numel() for parameter in prepared.method.student.parameters()) / 1e6
    epochs = prepared.total_steps / prepared.steps_per_epoch
    return (
        f"data     {len(split.labeled)} labeled, {len(split.unlabeled)} unlabeled, {len(split.val)} validation "
        f"{images}, {prepared.dataset.task.n_classes} classes\n"
        f"method   {recipe.method.name}; network {parameters:.2f} M parameters\n"
        f"training {prepared.total_steps} steps ({epochs:.1f} epochs), crop {recipe.data.crop}, batch "
        f"{recipe.data.batch.labeled} labeled"
        + (f" + {recipe.data.batch.unlabeled} unlabeled" if prepared.method.draws else "")
        + f", learning rate {base_rate(recipe.optim, recipe.data.batch.labeled):g}"
    )
