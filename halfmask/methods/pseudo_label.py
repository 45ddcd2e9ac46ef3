"""Naive self-training: the network's own labels on unlabeled images, made anew in every step.

Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks", ICML
Workshop 2013; dense form as used as the baseline of Wang et al., AllSpark, CVPR 2024, arXiv:2403.01818.

    yhat = argmax f(x_u)                              evaluation mode, the same weights, no gradient
    L    = (CE(f(x_l), y) + lambda CE(f(x_u), yhat)) / (1 + lambda),   lambda = 1

The unlabeled image is the same tensor in both passes: there is no weak/strong pair and no threshold, so it is the
self-training other methods have to improve on. It can collapse: watch `pseudo/share`.

Labeled and unlabeled images share one training pass; with batch normalization that is part of the method, because
the statistics are taken over both.

Deviations:
  * Padded pixels teach nothing by default; the published code trains on them (`ignore_padding: false`).
  * Lee raises the unlabeled weight slowly; AllSpark's code, followed here, uses 1 throughout.
"""

from typing import Annotated

import torch
from pydantic import Field

from halfmask.batch import Batch, Progress
from halfmask.losses.cross_entropy import LabeledLoss, masked_cross_entropy, supervised_loss
from halfmask.method import Method, ModelBuilder, StepOutput
from halfmask.models.model import eval_mode
from halfmask.models.statistics import labeled_and_pseudo
from halfmask.task import Task
from halfmask.teaching.pseudo_label import pseudo_label, pseudo_logs
from halfmask.views.strong import StrongAugment


class PseudoLabel(Method):
    """Online self-training on one view.

    Args:
        threshold: confidence a pseudo-label needs to be used; 0 uses all. Raise it if one class takes over.
        unlabeled_weight: lambda; 0 leaves out what the unlabeled images teach.
        labeled_color: color changes and blur on the labeled images, which these otherwise would not get.
        ignore_padding: leave the padded part of unlabeled crops out of the loss.
        warmup: part of the run in which labels alone teach, so that pseudo-labels begin with a network that knows
            something.
        loss: of the labeled images: `ce`, or `ohem`, cross-entropy of the hard pixels.
    """

    status = "implemented"
    supports = frozenset({"class_weights"})

    def __init__(
        self,
        task: Task,
        build: ModelBuilder,
        *,
        threshold: Annotated[float, Field(ge=0, le=1)] = 0.0,
        unlabeled_weight: Annotated[float, Field(ge=0)] = 1.0,
        labeled_color: bool = True,
        ignore_padding: bool = True,
        warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        loss: LabeledLoss = "ce",
    ) -> None:
        super().__init__(task)
        self.warmup = warmup
        self.student = build()
        self.strong = StrongAugment(same_light=task.same_light)
        self.labeled_loss = supervised_loss(loss, task.ignore_index)
        self.threshold, self.unlabeled_weight = threshold, unlabeled_weight
        self.labeled_color, self.ignore_padding = labeled_color, ignore_padding

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of one batch."""
        x_l, y_l = batch.labeled.image, batch.labeled.labels
        if self.labeled_color:
            x_l = self.strong(x_l)
        if progress.fraction < self.warmup:
            loss_l = self.labeled_loss(self.student(x_l), y_l, weight=batch.class_weights)
            return StepOutput(loss_l, {"loss_sup": loss_l})
        x_u, valid = batch.draw(0).image, batch.draw(0).valid  # (B, *T, 3, H, W), (B, H, W)

        with torch.no_grad(), eval_mode(self.student):
            label, confidence = pseudo_label(self.student(x_u))  # (B, H, W) each
        if not self.ignore_padding:
            valid = torch.ones_like(valid)
        keep = valid & (confidence >= self.threshold)

        logits_l, logits_u = labeled_and_pseudo(self.student, x_l, x_u)

        loss_l = self.labeled_loss(logits_l, y_l, weight=batch.class_weights)
        loss_u = masked_cross_entropy(logits_u, label, keep, denominator=valid)
        logs = pseudo_logs(label, confidence, keep, valid, self.task.n_classes)
        loss = (loss_l + self.unlabeled_weight * loss_u) / (1 + self.unlabeled_weight)
        return StepOutput(loss, {"loss_sup": loss_l, "loss_unsup": loss_u, **logs})
