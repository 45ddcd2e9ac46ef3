"""The data of a run: one dataset here; several that take turns in `halfmask.run.domains`.

`prepare` chooses which of the two; everything after it (batches, validation, checkpoints, the run's files) asks
`Prepared.sources` and does not know how many there are.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from halfmask.data.contract import Dataset
from halfmask.data.loading.loader import Source, TrainLoader, train_loader
from halfmask.data.splits.split import Split, part_ids
from halfmask.infer.evaluate import DatasetItems, evaluate_model
from halfmask.infer.metrics import Scores
from halfmask.models.model import Network
from halfmask.recipe.read import DataRecipe, Recipe
from halfmask.run.folder import RunDir, describe_split
from halfmask.run.loop.validation import Evaluate, Examiner, TaskExaminer


class Sources(ABC):
    """The data of a run, opened and checked."""

    @abstractmethod
    def describe(self) -> str:
        """Say how many images of each kind there are, and how many classes."""

    @abstractmethod
    def classes(self) -> list[str]:
        """List the classes as a checkpoint records them."""

    @abstractmethod
    def lists(self) -> dict[str, Any]:
        """Return the lists of images as split.json has them."""

    @abstractmethod
    def loader(self, recipe: DataRecipe, **settings: Any) -> TrainLoader:
        """Build the loader of training batches.

        Args:
            recipe: batch sizes and workers are taken from it; trials change them.
            settings: arguments of `halfmask.data.loading.loader.train_loader`.
        """

    @abstractmethod
    def examiner(self, recipe: Recipe) -> Examiner:
        """Build what scores the networks at each validation."""

    @abstractmethod
    def write(self, run: RunDir, recipe: Recipe) -> None:
        """Write what the folder of a new run holds beside its recipe and lists."""


class OneSource(Sources):
    """One dataset, with or without another place for the unlabeled images."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def describe(self) -> str:
        """Say how many images of each kind there are, and how many classes."""
        dataset, split = self.source.dataset, self.source.split
        images = "image pairs" if dataset.dates > 1 else "images"
        return (
            f"{len(split.labeled)} labeled, {len(split.unlabeled)} unlabeled, {len(split.val)} validation "
            f"{images}, {dataset.task.n_classes} classes"
        )

    def classes(self) -> list[str]:
        """List the classes."""
        return list(self.source.dataset.task.classes)

    def lists(self) -> dict[str, Any]:
        """Return the lists of images."""
        return describe_split(self.source.split)

    def loader(self, recipe: DataRecipe, **settings: Any) -> TrainLoader:
        """Build the loader of training batches."""
        return train_loader(replace(self.source, recipe=recipe), **settings)

    def examiner(self, recipe: Recipe) -> Examiner:
        """Build what scores the networks."""
        dataset, split = self.source.dataset, self.source.split
        images = len(validated_ids(recipe, dataset, split))
        return TaskExaminer(dataset.task, evaluator_of(recipe, dataset, split), images)

    def write(self, run: RunDir, recipe: Recipe) -> None:
        """Write nothing more."""


def validated_ids(recipe: Recipe, dataset: Dataset, split: Split) -> Sequence[str]:
    """Return the images that checkpoints are chosen on."""
    part = recipe.eval.select_on
    return split.val if part == "val" else part_ids(recipe.data, dataset, part)


def evaluator_of(recipe: Recipe, dataset: Dataset, split: Split) -> Evaluate | None:
    """Return the function that scores a model on the validation images; `None` where there are none."""
    ids = validated_ids(recipe, dataset, split)
    if not ids:
        return None
    items, task = DatasetItems(dataset, ids), dataset.task

    def evaluate(model: Network, rank: int, world: int) -> Scores:
        device = next(model.parameters()).device
        return evaluate_model(model, items, task, recipe.eval, device, crop=recipe.data.crop, rank=rank, world=world)

    return evaluate
