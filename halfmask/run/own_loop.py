"""Methods and batches for a training loop of your own, without the trainer.

recipe = load_recipe("fixmatch/folder", {"data.root": "field"})
method = build_method(recipe)
for batch in loaders(recipe, 1000, method):
    loss, logs = method.step(batch, progress)
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from halfmask.batch import Batch
from halfmask.data.contract import Dataset, count_classes
from halfmask.data.loading.loader import Source, TrainLoader, to_batch, train_loader
from halfmask.data.loading.sampler import ClassBalance
from halfmask.data.splits.split import Split, open_dataset, resolve_split, unlabeled_dataset
from halfmask.data.splits.weak import NOTHING_KNOWN, load_weak
from halfmask.errors import RecipeError
from halfmask.method import Method
from halfmask.models.build import Builder, task_of
from halfmask.models.statistics import set_passes
from halfmask.plugins import arguments, names, resolve
from halfmask.recipe.read import Recipe, load
from halfmask.task import Task

Overrides = Sequence[str] | Mapping[str, Any]


def builder_of(recipe: Recipe, data: Dataset | Task, *, pretrained: bool = True) -> Builder:
    """Return the builder of a recipe's networks.

    Args:
        recipe: its `model` section and crop are used.
        data: decides the classes; a dataset also the bands and their normalization.
        pretrained: `False` ignores `weights` entries, where other weights are loaded afterwards.
    """
    if isinstance(data, Task):
        return Builder(recipe.model, data, crop=recipe.data.crop, pretrained=pretrained)
    return Builder(
        recipe.model, data.task, crop=recipe.data.crop, channels=data.channels, mean=data.mean, std=data.std,
        pretrained=pretrained,
    )  # fmt: skip


def build_method(
    recipe: Recipe | str | Path,
    data: Dataset | Task | Sequence[str] | int | None = None,
    overrides: Overrides = (),
    *,
    pretrained: bool = True,
) -> Method:
    """Build a method with fresh networks: by a recipe, or by the method's name.

    Args:
        recipe: a recipe, a file, the name of a shipped recipe (`fixmatch/folder`), or the name of a method
            (`unimatch_v2`, `mylab.mirror:Mirror`), which gets the default network.
        data: what is predicted: class names, their number, a task, or a dataset; `None`: opens the recipe's data.
        overrides: dotted recipe keys, for example `{"model.encoder": "mit", "method.threshold": 0.9}`.
        pretrained: `False` ignores `weights` entries, where other weights are loaded afterwards.

    Raises:
        RecipeError: unknown names or keys, parts that do not fit, or a run over several datasets.
        DataError: the recipe's data cannot be opened.

    >>> method = build_method("fixmatch", ["ground", "patch"], {"model.encoder.depth": 18})
    >>> list(method.predictors())
    ['teacher', 'student']
    """
    made = _recipe_of(recipe, overrides)
    _refuse_several(made)
    if data is None:
        data = open_dataset(made.data)
    elif not isinstance(data, Dataset | Task):
        data = task_of(data)
    task = data if isinstance(data, Task) else data.task
    builder = builder_of(made, data, pretrained=pretrained)
    cls = resolve("methods", made.method.name)
    method: Method = cls(task, builder, **arguments(cls, made.method.params))
    set_passes(method, made.run.passes)
    return method


class Batches:
    """Batches on a device, step by step; iterate again for the same ones.

    Args:
        loader: of the steps.
        task: what is predicted.
        split: ids of the labeled, unlabeled and validation images.
        device: where the batches go.

    Attributes:
        steps_per_epoch: of one pass over the unlabeled images (the labeled ones where a method takes no others).
    """

    def __init__(self, loader: TrainLoader, task: Task, split: Split, device: torch.device | str) -> None:
        self.loader, self.task, self.split, self.device = loader, task, split, device
        self.steps_per_epoch = loader.steps.steps_per_epoch

    def __len__(self) -> int:
        """Return the number of steps."""
        return self.loader.steps.stop - self.loader.steps.start

    def __iter__(self) -> Iterator[Batch]:
        for host in self.loader:
            yield to_batch(host, self.device, self.task)


def loaders(
    recipe: Recipe | str | Path,
    steps: int,
    method: Method | None = None,
    *,
    start: int = 0,
    device: torch.device | str = "cpu",
) -> Batches:
    """Open a recipe's data and return its labeled and unlabeled batches, the same as in `train`.

    Args:
        recipe: a recipe, a file, or the name of a shipped one; `data` and `run.seed` are used.
        steps: how many batches the whole training has.
        method: decides how many unlabeled images a step takes; `None`: one batch of them.
        start: first step, to go on after an interruption: each batch depends on its step alone.
        device: where the batches go.

    Raises:
        DataError: the data cannot be opened, or the lists do not fit together.
        RecipeError: unknown keys, or a run over several datasets.
    """
    made = _recipe_of(recipe, ())
    _refuse_several(made)
    data = made.data
    dataset = open_dataset(data)
    split = resolve_split(data, dataset)
    other = unlabeled_dataset(data, dataset)
    balance = None
    if data.balance == "classes":
        balance = ClassBalance(count_classes(dataset, split.labeled), made.run.seed)
    weak = NOTHING_KNOWN if data.weak is None else load_weak(data.weak, other, dataset.task, split.unlabeled)
    loader = train_loader(
        Source(data, dataset, other, split, balance, weak),
        seed=made.run.seed,
        draws=1 if method is None else method.draws,
        draws_share_images=method is not None and method.draws_share_images,
        pin=torch.device(device).type == "cuda",
    )
    loader.steps.start, loader.steps.stop = start, steps
    return Batches(loader, dataset.task, split, device)


def _recipe_of(recipe: Recipe | str | Path, overrides: Overrides) -> Recipe:
    if isinstance(recipe, Recipe):
        return load(recipe.model_dump(mode="json"), overrides) if overrides else recipe
    if isinstance(recipe, str) and (":" in recipe or recipe in names("methods")):
        return load({"method": {"name": recipe}}, overrides)
    return load(recipe, overrides)


def _refuse_several(recipe: Recipe) -> None:
    if recipe.data.domains is not None:
        raise RecipeError(
            "data.domains names several datasets, which only halfmask.train and halfmask train deal out in turns. "
            "For a loop of your own choose one of them: data.root=DIR data.domains=null."
        )
