"""Measure what a recipe takes on this machine: memory and time of a step, and of a validation."""

import contextlib
import ctypes
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from halfmask.infer.evaluate import DatasetItems, count
from halfmask.recipe.read import Recipe
from halfmask.run.cost import Cost, predict_cost, watch_peak
from halfmask.run.loop.trainer import uses_gpu, with_precision
from halfmask.run.prepare import prepare
from halfmask.run.prepared import Prepared
from halfmask.run.twin import compared_ids, twin_recipe


@dataclass(frozen=True)
class Measured:
    """What a run takes.

    Args:
        prepared: the run.
        cost: memory and time of its steps.
        step_seconds: of a step, of the twin's too where there is one.
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
        """Bytes at the most, per process."""
        return max(self.cost.memory, self.validation_memory)


def measure(recipe: Recipe) -> Measured:
    """Try steps and validation.

    Raises:
        RecipeError, ShapeError, DataError: the recipe cannot be trained.
        torch.OutOfMemoryError: even the smallest trial does not fit.
    """
    recipe = with_precision(recipe)
    _give_back()
    began = time.perf_counter()
    prepared = prepare(recipe, look=False)
    prepare_seconds = time.perf_counter() - began
    cost = predict_cost(prepared)
    _give_back()
    seconds, memory = _validation(prepared)
    steps = cost.step_seconds
    predictors = len(prepared.method.predictors())
    if recipe.run.twin:
        twin = prepare(twin_recipe(prepared), look=False)
        steps += predict_cost(twin).step_seconds
        predictors += 1
    whole = time.perf_counter() - began
    return Measured(prepared, cost, steps, seconds * predictors, memory, prepare_seconds, whole)


def _give_back() -> None:
    """Return freed memory to the system, so that an earlier trial is not counted as part of the next."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # Linux with glibc


def _validation(prepared: Prepared) -> tuple[float, int]:
    """Seconds for one predictor on all validation images, and bytes at the most."""
    ids = compared_ids(prepared)
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
    return (time.perf_counter() - began) / len(chosen) * len(ids), peak.most


def _largest(prepared: Prepared, ids: Sequence[str]) -> list[str]:
    """The images whose files are largest: likely those that take most memory."""
    files = {id: sum(path.stat().st_size for path in prepared.dataset.image_files(id) if path.exists()) for id in ids}
    return sorted(ids, key=lambda id: -files[id])[: prepared.recipe.eval.batch]
