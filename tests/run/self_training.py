"""A method of three stages, for tests: self-training that learns images of stable pseudo-masks first, then all."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from halfmask.batch import Batch, Progress
from halfmask.losses.cross_entropy import cross_entropy
from halfmask.method import Artifacts, Method, Stage, StageContext, StepOutput


class SelfTraining(Method):
    """Labeled images, and unlabeled ones with the pseudo-masks of an earlier stage."""

    weak_labels: ClassVar[frozenset[str]] = frozenset({"masks"})

    def __init__(self, task: Any, build: Any) -> None:
        super().__init__(task)
        self.student = build()

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        unlabeled = batch.draw(0)
        loss_l = cross_entropy(self.student(batch.labeled.image), batch.labeled.labels, self.task.ignore_index)
        loss_u = cross_entropy(self.student(unlabeled.image), unlabeled.labels, self.task.ignore_index)
        return StepOutput((loss_l + loss_u) / 2, {"loss_sup": loss_l, "loss_unsup": loss_u})

    @classmethod
    def plan(cls, recipe: Any) -> list[Stage]:
        seed = recipe.run.seed
        return [
            Stage("first", {"method": {"name": "supervised"}}, keep_checkpoints=3, after=choose),
            Stage(
                "reliable",
                lambda made: {
                    "run.seed": seed + 1,  # other first weights
                    "data.unlabeled": made["reliable"],
                    "data.weak.masks": made["masks"],
                },
                after=label_rest,
            ),
            Stage("all", both),
        ]


def both(made: Artifacts) -> dict[str, Any]:
    return {"data.weak.masks": [str(made["masks"]), str(made["rest_masks"])]}


def choose(stage: StageContext) -> dict[str, Path]:
    """Half of the images: those whose labels changed least since the earlier checkpoints."""
    *earlier, last = (stage.load(path).predictors()["student"] for path in stage.checkpoints())
    stable: dict[str, float] = {}
    with torch.no_grad():
        for id in stage.split.unlabeled:
            image = stage.image(id)
            final = stage.probabilities(last, image).argmax(0)
            before = [stage.probabilities(model, image).argmax(0) for model in earlier]
            stable[id] = sum(float((labels == final).float().mean()) for labels in before)
    order = sorted(stable, key=lambda id: (-stable[id], id))
    reliable, rest = order[: len(order) // 2], order[len(order) // 2 :]
    best = stage.predictor()
    return {
        "reliable": stage.write_list("reliable", reliable),
        "rest": stage.write_list("rest", rest),
        "masks": stage.write_masks("masks", reliable, lambda id, image: hard(stage, best, image)),
    }


def label_rest(stage: StageContext) -> dict[str, Path]:
    rest = stage.artifacts["rest"].read_text().splitlines()
    best = stage.predictor()
    return {"rest_masks": stage.write_masks("masks", rest, lambda id, image: hard(stage, best, image))}


def hard(stage: StageContext, model: Any, image: Tensor) -> Tensor:
    return stage.probabilities(model, image, scales=(1.0,), flip=False).argmax(0)
