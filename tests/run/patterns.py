"""Toy methods that docs/extend.md does not show; the tests beside train each through the command line."""

import torch
from torch import Tensor

from halfmask.batch import Batch, Progress
from halfmask.losses.cross_entropy import cross_entropy
from halfmask.method import Method, ModelBuilder, StepOutput
from halfmask.task import Task


class TwoNets(Method):
    """Two networks teach each other hard labels, as in cross pseudo supervision.

    Args:
        weight: of the labels that one network gives the other.
    """

    def __init__(self, task: Task, build: ModelBuilder, *, weight: float = 1.0) -> None:
        super().__init__(task)
        self.net_a, self.net_b = build(), build()
        self.weight = weight

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        x_l, y_l, x_u = batch.labeled.image, batch.labeled.labels, batch.draw(0).image
        ignore = self.task.ignore_index
        logits_a, logits_b = self.net_a(x_u), self.net_b(x_u)
        loss_l = cross_entropy(self.net_a(x_l), y_l, ignore) + cross_entropy(self.net_b(x_l), y_l, ignore)
        loss_u = cross_entropy(logits_a, logits_b.argmax(1), ignore)
        loss_u = loss_u + cross_entropy(logits_b, logits_a.argmax(1), ignore)
        return StepOutput(loss_l + self.weight * loss_u, {"loss_sup": loss_l, "loss_unsup": loss_u})


class Steering(Method):
    """Asks for the classes that the network is least sure of."""

    draws = 0

    def __init__(self, task: Task, build: ModelBuilder) -> None:
        super().__init__(task)
        self.net = build()
        self.register_buffer("sure", torch.zeros(task.n_classes))
        self.sure: Tensor

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        logits = self.net(batch.labeled.image)
        loss = cross_entropy(logits, batch.labeled.labels, self.task.ignore_index)
        with torch.no_grad():
            self.sure.lerp_(logits.softmax(1).mean((0, 2, 3)).float(), 0.5)
        return StepOutput(loss, {"loss_sup": loss})

    def class_weights_for_sampling(self) -> Tensor:
        return (4 * (1 - self.sure)).exp()
