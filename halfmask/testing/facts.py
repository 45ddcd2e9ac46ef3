"""Count what a method takes, on tiny networks: networks, and images that pass them in a step."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from halfmask.batch import Progress
from halfmask.method import Method
from halfmask.models.model import Model
from halfmask.plugins import names, params_model, resolve
from halfmask.recipe.read import load
from halfmask.recipe.shipped import recipe_names
from halfmask.testing.tiny import tiny_batch, tiny_builder, tiny_task

_SIZE = 2
_LATE = Progress(900, 1000, 100)  # after warm-ups


@dataclass(frozen=True)
class MethodFacts:
    """What a method takes; empty where it needs parameters of the user."""

    trained: int = 0  # networks that receive gradients
    averaged: int = 0  # other networks: moving averages, earlier ones
    with_gradient: float = 0.0  # images that pass an encoder with gradient in a step, per image of the labeled batch
    without: float = 0.0  # images that pass one without
    needs: tuple[str, ...] = ()  # in words, what a step needs besides masks and images

    @property
    def networks(self) -> str:
        """Write the networks: `1 + 1 averaged`."""
        return f"{self.trained}" + (f" + {self.averaged} averaged" if self.averaged else "") if self.trained else ""

    @property
    def passes(self) -> str:
        """Write the images per step: `2 + 1`, with gradient and without."""
        return f"{self.with_gradient:g} + {self.without:g}" if self.with_gradient else ""


def facts_of(cls: type[Method]) -> MethodFacts:
    """Build a method of tiny networks with its defaults, take one step late in a run, and count."""
    if any(field.is_required() for field in params_model(cls).model_fields.values()):
        return MethodFacts(needs=needs_of(cls, cls.draws))
    task = tiny_task("segmentation" if "segmentation" in cls.tasks else next(iter(sorted(cls.tasks))))
    make: Any = cls
    with torch.random.fork_rng():
        method: Method = make(task, tiny_builder(task)).train()
        models = [module for module in method.modules() if isinstance(module, Model)]
        passed = {True: 0, False: 0}

        def count(encoder: nn.Module, images: tuple[torch.Tensor, ...], maps: Any) -> None:
            passed[torch.is_grad_enabled()] += len(images[0])

        for model in models:
            model.encoder.register_forward_hook(count)
        batch = tiny_batch(task, draws=method.draws, share_images=method.draws_share_images, size=_SIZE)
        for _ in method.updates(batch, _LATE):
            pass
    trained = sum(any(parameter.requires_grad for parameter in model.parameters()) for model in models)
    needs = needs_of(cls, method.draws)
    return MethodFacts(trained, len(models) - trained, passed[True] / _SIZE, passed[False] / _SIZE, needs)


def needs_of(cls: type[Method], draws: int) -> tuple[str, ...]:
    """Say in words what a method needs besides masks and unlabeled images."""
    found = ["no unlabeled images"] if draws == 0 and not cls.weak_labels else []
    found += ["two batches of unlabeled images"] if draws > 1 else []
    found += ["as many labeled as unlabeled images in a batch"] if cls.equal_batches else []
    found += [f"{cls.smallest_batch} unlabeled images per device"] if cls.smallest_batch > 1 else []
    found += ["tags of the unlabeled images"] if "tags" in cls.weak_labels else []
    stages = _stages(cls)
    if stages > 1:
        return (*found, f"{stages} trainings in a row")
    return (*found, "takes masks of unlabeled images too") if "masks" in cls.weak_labels else tuple(found)


def _stages(cls: type[Method]) -> int:
    """Count the trainings that the folder recipe of a method plans."""
    name = next((name for name in names("methods") if resolve("methods", name) is cls), "")
    return len(cls.plan(load(f"{name}/folder"))) if f"{name}/folder" in recipe_names() else 1
