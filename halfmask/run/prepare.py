"""Everything about a run that can be checked before it trains: most of it in seconds, then every file once."""

from collections.abc import Mapping
from typing import Any

import torch

from halfmask.data.loading.loader import Source
from halfmask.data.loading.sampler import steps_per_epoch
from halfmask.data.splits import split as splits
from halfmask.data.splits.verify import default_folder
from halfmask.errors import DataError
from halfmask.method import DomainMethod, Method, trained_models
from halfmask.models.build import Builder
from halfmask.plugins import arguments, resolve
from halfmask.progress import looking_at_files
from halfmask.recipe.read import Recipe
from halfmask.run.domains import prepare_domains
from halfmask.run.loop.optim import base_rate, with_optimizers
from halfmask.run.loop.progress import require_logger
from halfmask.run.loop.trainer import with_precision
from halfmask.run.prepared import (
    Prepared,
    balance_classes,
    check_batches,
    check_crop,
    check_pairing,
    check_shares,
    check_task,
    lengths,
    weak_of,
)
from halfmask.run.sources import OneSource

__all__ = ["Prepared", "describe", "prepare"]


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
    require_logger(run.logger)
    check_batches(recipe, world)
    cls = resolve("methods", recipe.method.name)
    if data.domains is not None or issubclass(cls, DomainMethod):
        return prepare_domains(recipe, limit, look=look, quiet=quiet)
    dataset = splits.open_dataset(data)
    split = splits.resolve_split(data, dataset)
    torch.manual_seed(run.seed)
    builder = Builder(
        recipe.model, dataset.task, crop=data.crop, channels=dataset.channels, mean=dataset.mean, std=dataset.std
    )
    check_task(cls, recipe, dataset.task.kind)
    check_pairing(cls, recipe)
    method: Method = cls(dataset.task, builder, **arguments(cls, recipe.method.params))
    check_crop(method, recipe)
    recipe = with_precision(recipe, method)
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
            "choose method.name=supervised.",
            "H210",
        )
    check_shares(method, recipe, split, world)
    rare = balance_classes(method, recipe, dataset, split)
    if rare.balance is None and method.class_weights_for_sampling() is not None:
        warnings = (
            *warnings,
            f"method {recipe.method.name} says how often each class is to be shown, but data.balance=none walks the "
            "labeled list as it is. Let it choose: data.balance=classes.",
        )
    weak = weak_of(method, recipe, unlabeled or dataset, split)
    warnings = (*warnings, *weak.remarks)
    length, batch = (
        (len(split.unlabeled), data.batch.unlabeled) if method.draws else (len(split.labeled), data.batch.labeled)
    )
    per_epoch = steps_per_epoch(length, batch, drop_last=data.drop_last)
    total, every = lengths(recipe, per_epoch, limit)
    if look:
        with looking_at_files(quiet) as on_file:
            found = splits.verify(
                dataset, split, unlabeled, pseudo=weak.masks, stamps=default_folder(), on_file=on_file
            )
        warnings = (*warnings, *found)
    sources = OneSource(Source(data, dataset, unlabeled, split, rare.balance, weak))
    return Prepared(
        with_optimizers(recipe, method), dataset, unlabeled, split, method, per_epoch, total, every, warnings,
        rare.balance, weak=weak, sources=sources, class_weights={} if rare.weights is None else {"": rare.weights},
    )  # fmt: skip


def describe(prepared: Prepared) -> str:
    """Say in a few lines what will be trained."""
    recipe = prepared.recipe
    epochs = prepared.total_steps / prepared.steps_per_epoch
    return (
        f"data     {prepared.sources.describe()}\n"
        f"method   {recipe.method.name}; {_networks(prepared.method)}\n"
        f"training {prepared.total_steps} steps ({epochs:.1f} epochs), crop {recipe.data.crop}, batch "
        f"{recipe.data.batch.labeled} labeled"
        + (f" + {recipe.data.batch.unlabeled} unlabeled" if prepared.method.draws else "")
        + f", learning rate {base_rate(recipe.optim, recipe.data.batch.labeled):g}"
        + "".join(f"\n         optimizer {key}: {_written(own)}" for key, own in recipe.optim.optimizers.items())
    )


def _written(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )


def _networks(method: Method) -> str:
    """Write how many networks are trained, and how many parameters in all; what only follows them is not counted."""
    count = len(trained_models(method))
    parameters = sum(one.numel() for one in method.parameters() if one.requires_grad) / 1e6
    return f"{'network' if count == 1 else f'{count} networks,'} {parameters:.2f} M parameters"
