"""Everything about a run that can be checked before it trains: most of it in seconds, then every file once."""

from collections.abc import Mapping
from typing import Any

import torch

from halfmask.data.loading.loader import Source
from halfmask.data.loading.sampler import steps_per_epoch
from halfmask.data.splits import split as splits
from halfmask.data.splits.opening import Opened, look_at_files, open_data
from halfmask.data.splits.weak import NOTHING_KNOWN
from halfmask.errors import DataError, Faults
from halfmask.method import DomainMethod, Method, trained_models
from halfmask.models.build import Builder
from halfmask.plugins import arguments, resolve
from halfmask.recipe.read import Recipe
from halfmask.run.domains import prepare_domains
from halfmask.run.loop.optim import base_rate, with_optimizers
from halfmask.run.loop.progress import require_logger
from halfmask.run.loop.trainer import check_compilation, check_device, check_recompute, with_precision
from halfmask.run.prepared import (
    Prepared,
    balance_classes,
    check_balance,
    check_batches,
    check_crop,
    check_length,
    check_pairing,
    check_shares,
    check_task,
    lengths,
    weak_of,
)
from halfmask.run.sources import OneSource, validated_ids

__all__ = ["Prepared", "check_settings", "describe", "prepare"]


def prepare(recipe: Recipe, limit: int | None = None, *, look: bool = True, quiet: bool = True) -> Prepared:
    """Open data, build the method, and check that they fit; all that is wrong comes in one error.

    What takes longest comes last: every file is looked at, once for as long as it does not change.

    Args:
        recipe: what to check.
        limit: of the steps.
        look: look at the files; of several processes one is enough. Where something is wrong, all of them look.
        quiet: show no progress of that.

    Raises:
        RecipeError, ShapeError, DataError: with all problems.
        MissingExtraError: the logger's package is not installed.
    """
    data, faults = recipe.data, Faults()
    check_settings(recipe, faults)
    faults.check(check_length, recipe.run)
    cls = resolve("methods", recipe.method.name)
    if data.domains is not None or issubclass(cls, DomainMethod):
        with faults.collected():
            prepared = prepare_domains(recipe, limit, look=look or bool(faults), quiet=quiet)
        faults.raise_all()
        return prepared
    opened = open_data(data, faults)
    method = _build(cls, recipe, opened, faults) if opened is not None and opened.known else None
    unlabeled, weak = None, NOTHING_KNOWN
    if opened is not None and method is not None:
        with faults.collected():
            unlabeled = splits.unlabeled_dataset(data, opened.dataset) if method.draws else None
            weak = weak_of(method, recipe, unlabeled or opened.dataset, opened.split)
        faults.check(validated_ids, recipe, opened.dataset, opened.split)
        if opened.whole:
            with faults.collected():
                _check_images(method, recipe, opened.split)
                lengths(recipe, _pass_of(method, recipe, opened.split), limit)
    found: tuple[str, ...] = ()
    if opened is not None and (look or faults):
        found = look_at_files(opened, unlabeled, faults, pseudo=weak.masks, quiet=quiet)
    faults.raise_all()
    assert opened is not None  # else something is wrong, and has been raised
    assert method is not None
    dataset, split = opened.dataset, opened.split
    per_epoch = _pass_of(method, recipe, split)
    total, every = lengths(recipe, per_epoch, limit)
    rare = balance_classes(method, recipe, dataset, split)
    recipe = with_precision(recipe, method)
    sources = OneSource(Source(data, dataset, unlabeled, split, rare.balance, weak))
    warnings = (*split.remarks, *_remarks(method, recipe, opened), *weak.remarks, *found)
    return Prepared(
        with_optimizers(recipe, method), dataset, unlabeled, split, method, per_epoch, total, every, warnings,
        rare.balance, weak=weak, sources=sources, class_weights={} if rare.weights is None else {"": rare.weights},
    )  # fmt: skip


def check_settings(recipe: Recipe, faults: Faults) -> None:
    """Check what needs neither data nor network: batches, packages, the device."""
    faults.check(check_batches, recipe, recipe.run.devices * recipe.run.nodes)
    check_machine(recipe, faults)


def check_machine(recipe: Recipe, faults: Faults) -> None:
    """Check packages and the device, which a plan does not choose."""
    faults.check(require_logger, recipe.run.logger)
    faults.check(check_device, recipe.run)
    faults.check(check_compilation, recipe.run)


def _build(cls: type[Method], recipe: Recipe, opened: Opened, faults: Faults) -> Method | None:
    """Build the method and check that it fits the data; pretrained weights are left out where something is wrong."""
    dataset = opened.dataset
    faults.check(check_task, cls, recipe, dataset.task.kind)
    faults.check(check_pairing, cls, recipe)
    faults.check(check_balance, cls, recipe)
    torch.manual_seed(recipe.run.seed)
    made: type[Any] = cls  # which parameters it has is its own affair
    method: Method | None = None
    with faults.collected():
        builder = Builder(
            recipe.model, dataset.task, crop=recipe.data.crop, channels=dataset.channels, mean=dataset.mean,
            std=dataset.std, pretrained=not faults,
        )  # fmt: skip
        method = made(dataset.task, builder, **arguments(cls, recipe.method.params))
        check_crop(method, recipe)
        check_recompute(method, recipe.run)
    return method


def _check_images(method: Method, recipe: Recipe, split: splits.Split) -> None:
    if method.draws and not split.unlabeled:
        raise DataError(
            f"method {recipe.method.name} learns from unlabeled images and there are none: every image of "
            f"{recipe.data.root} has a mask in use. Name others with data.unlabeled, use fewer masks with "
            "data.labeled, or choose method.name=supervised.",
            "H210",
        )
    check_shares(method, recipe, split, recipe.run.devices * recipe.run.nodes)


def _pass_of(method: Method, recipe: Recipe, split: splits.Split) -> int:
    """Return the steps of one pass over the images."""
    ids, batch = split.labeled, recipe.data.batch.labeled
    if method.draws:
        ids, batch = split.unlabeled, recipe.data.batch.unlabeled
    return steps_per_epoch(len(ids), batch, drop_last=recipe.data.drop_last)


def _remarks(method: Method, recipe: Recipe, opened: Opened) -> list[str]:
    """Say what the settings do not do, though someone may expect it."""
    data, protocol, remarks = recipe.data, recipe.eval, []
    if not opened.split.val and protocol.select_on == "val" and data.val != "none":
        remarks.append(
            "no validation images (a list of labeled images is used as it is, and fewer than five masks are not "
            "divided): no best checkpoint is chosen, the last weights are kept. Name a list or part with data.val, "
            "draw lists with halfmask split --val N, or evaluate another part: halfmask evaluate RUN --part test."
        )
    if protocol.select_on == "test" and not validated_ids(recipe, opened.dataset, opened.split):
        remarks.append(
            "eval.select_on=test, but the data has no test images with masks: no best checkpoint is chosen, the last "
            "weights are kept. Add them, or use eval.select_on=val."
        )
    if data.balance == "none" and method.class_weights_for_sampling() is not None:
        remarks.append(
            f"method {recipe.method.name} says how often each class is to be shown, but data.balance=none walks the "
            "labeled list as it is. Let it choose: data.balance=classes."
        )
    idle = {"window": protocol.mode == "whole", "stride": protocol.mode != "slide"}
    remarks += [
        f"eval.{key}={value} has no effect with eval.mode={protocol.mode}: leave it out, or use eval.mode=slide."
        for key in idle
        if idle[key] and (value := getattr(protocol, key)) is not None
    ]
    return remarks


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
