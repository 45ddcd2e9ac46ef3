"""Measure what a recipe takes on this machine: memory and time of a step, and of a validation."""

import contextlib
import ctypes
import gc
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from halfmask.infer.evaluate import DatasetItems, count
from halfmask.models.build import Builder
from halfmask.plan.choices import Choice
from halfmask.plan.facts import DataFacts
from halfmask.recipe.read import Recipe
from halfmask.run.cost import Cost, predict_cost, watch_peak
from halfmask.run.loop.trainer import has_fast_bf16, uses_gpu
from halfmask.run.prepare import prepare
from halfmask.run.prepared import Prepared
from halfmask.run.twin import compared_ids, kinds_of, twin_recipe

_LONG = 2.0  # seconds of a trial of precision that is not repeated


@dataclass(frozen=True)
class Measured:
    """What a run takes.

    Args:
        prepared: the run.
        cost: memory and time of its steps.
        step_seconds: of a step, and of one of each run that it is compared with.
        validation_seconds: of all validation images and predictors once; 0 without any.
        validation_memory: bytes at the largest of the images that were tried.
        prepare_seconds: of opening data and network, which the run does again.
        trial_seconds: that all of this took.
    """

    prepared: Prepared
    cost: Cost
    step_seconds: float
    validation_seconds: float
    validation_memory: int
    prepare_seconds: float = 0.0
    trial_seconds: float = 0.0

    @property
    def memory(self) -> int:
        """Peak memory in bytes, per process."""
        return max(self.cost.memory, self.validation_memory)


def measure(recipe: Recipe, folds: int = 0) -> Measured:
    """Try steps and validation.

    Args:
        recipe: of the run.
        folds: of cross-validation: each validates on its part of the labeled images; 0: none.

    Raises:
        RecipeError, ShapeError, DataError: the recipe cannot be trained.
        torch.OutOfMemoryError: even the smallest trial does not fit.
    """
    _give_back()
    began = time.perf_counter()
    prepared = prepare(recipe, look=False)
    prepare_seconds = time.perf_counter() - began
    cost = predict_cost(prepared)
    _give_back()
    seconds, memory = _validation(prepared, folds)
    seconds *= len(prepared.method.predictors())
    whole = time.perf_counter() - began
    alone = Measured(prepared, cost, cost.step_seconds, seconds, memory, prepare_seconds, whole)
    return with_twins(alone, recipe)


def with_twins(measured: Measured, recipe: Recipe) -> Measured:
    """Add steps and validations of what a run is compared with.

    Args:
        measured: of the run alone.
        recipe: the run's, which says with what (`run.twin`).
    """
    began = time.perf_counter()
    prepared = replace(measured.prepared, recipe=recipe)
    steps, validation = measured.step_seconds, measured.validation_seconds
    for kind in kinds_of(recipe):
        if kind == "control":  # takes the same passes
            steps, validation = steps + measured.step_seconds, validation + measured.validation_seconds
            continue
        twin = prepare(twin_recipe(prepared, kind), look=False)
        steps += predict_cost(twin).step_seconds
        validation += measured.validation_seconds / len(prepared.method.predictors())
    trial = measured.trial_seconds + time.perf_counter() - began
    return replace(measured, prepared=prepared, step_seconds=steps, validation_seconds=validation, trial_seconds=trial)


def time_precisions(recipe: Recipe, data: DataFacts) -> dict[str, float]:
    """Return seconds of the processor for one forward and backward pass of a network, by precision.

    Both are tried by turns on two images of the training crop, and the fastest of three counts (of one, where a pass
    takes long). The time is that of this process, so that other work on the machine does not decide.

    Args:
        recipe: with the network, its memory layout and the crop.
        data: with the task and the number of bands.
    """
    crop, layout = recipe.data.crop, torch.channels_last if recipe.run.channels_last else torch.contiguous_format
    model = Builder(recipe.model, data.task, crop=crop, channels=data.channels, pretrained=False)()
    model = model.train().to(memory_format=layout)
    image = torch.rand(2, data.channels, crop, crop).to(memory_format=layout)
    if data.task.kind == "change":
        image = torch.stack((image, image.flip(-1)), dim=1)
    seconds = {"32-true": math.inf, "bf16-mixed": math.inf}
    for _ in range(3):
        for precision in seconds:
            began = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss = model(image).float().square().mean()
            loss.backward()
            seconds[precision] = min(seconds[precision], time.process_time() - began)
        if max(seconds.values()) > _LONG:
            break
    return seconds


def choose_precision(recipe: Recipe, data: DataFacts) -> Choice | None:
    """Choose the faster precision by trial; `None` where only one is to be had, or the recipe names one."""
    if recipe.run.precision != "auto" or uses_gpu(recipe.run) or not has_fast_bf16(recipe.run):
        return None
    seconds = time_precisions(recipe, data)
    names = {"32-true": "float32", "bf16-mixed": "bfloat16"}
    faster, slower = sorted(seconds, key=lambda precision: seconds[precision])
    reason = (
        f"{1000 * seconds[faster]:.0f} ms against {1000 * seconds[slower]:.0f} ms with {names[slower]}: forward and "
        "backward of 2 images, on this CPU"
    )
    return Choice("precision", names[faster], reason, {"run.precision": faster})


def _give_back() -> None:
    """Return freed memory to the system, so that an earlier trial is not counted as part of the next."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # Linux with glibc


def _validation(prepared: Prepared, folds: int) -> tuple[float, int]:
    """Measure the seconds of one predictor on all validation images, and the peak memory in bytes."""
    ids = prepared.split.labeled if folds else compared_ids(prepared)
    if not ids:
        return 0.0, 0
    chosen = _largest(prepared, ids)
    recipe, task = prepared.recipe, prepared.dataset.task
    device = torch.device("cuda" if uses_gpu(recipe.run) else "cpu")
    model = next(iter(prepared.method.predictors().values()))
    items = DatasetItems(prepared.dataset, chosen)
    with watch_peak(device) as peak:
        began = time.perf_counter()
        count(model, items, task, recipe.eval, device, crop=recipe.data.crop)
    return (time.perf_counter() - began) / len(chosen) * len(ids) / (folds or 1), peak.most


def _largest(prepared: Prepared, ids: Sequence[str]) -> list[str]:
    """Return the images whose files are largest: likely those that take most memory."""
    files = {id: sum(path.stat().st_size for path in prepared.dataset.image_files(id) if path.exists()) for id in ids}
    return sorted(ids, key=lambda id: -files[id])[: prepared.recipe.eval.batch]
