"""Mean teacher: consistency with a moving average of the network.

Tarvainen and Valpola, "Mean teachers are better role models: Weight-averaged consistency targets improve
semi-supervised deep learning results", NeurIPS 2017, arXiv:1703.01780; per-pixel form.

    J    = mean over valid pixels of || softmax f(strong(x_u)) - softmax f'(weak(x_u)) ||^2
    L    = CE(f(x_l), y) + lambda * r(t) * J,   r(t) = exp(-5 (1 - t / ramp_up)^2), then 1
    f'   = d * f' + (1 - d) * f,  d = min(1 - 1 / (step + 1), ema_decay)      after the optimizer step

strong = color changes and blur. There is no threshold: a soft target is small where the teacher is unsure, which
also makes it a weak teacher: early soft targets can hold a student from scratch back.

Labeled and strong images share one training pass, as in the paper; with batch normalization the statistics are
taken over both.

Deviations from the paper:
  * Both views share their geometry (crop, flip), so that pixels correspond; the views differ in color only.
  * J is taken on unlabeled images only (the paper: on all), sums over classes instead of averaging, and the
    teacher is in evaluation mode with averaged batch-norm statistics instead of those of its own batch.
"""

from typing import Annotated

import torch
from pydantic import Field

from halfmask.batch import Batch, Progress
from halfmask.losses.cross_entropy import LabeledLoss, squared_error, supervised_loss
from halfmask.method import Method, ModelBuilder, StepOutput
from halfmask.models.model import Model
from halfmask.models.statistics import labeled_and_pseudo
from halfmask.task import Task
from halfmask.teaching.ema import ema_copy
from halfmask.teaching.pseudo_label import agreement, pseudo_label, pseudo_logs
from halfmask.teaching.ramps import ema_ramp, sigmoid_ramp
from halfmask.views.strong import StrongAugment


class MeanTeacher(Method):
    """Consistency between a student on strong views and its moving average on weak views.

    Args:
        unlabeled_weight: lambda, reached after the ramp-up; soft targets of a poor teacher hold the student back.
        ramp_up: part of the run over which the weight rises; longer where masks are few.
        ema_decay: largest d; higher for long runs.
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
        unlabeled_weight: Annotated[float, Field(ge=0)] = 1.0,
        ramp_up: Annotated[float, Field(ge=0, le=1)] = 0.25,
        ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99,
        warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        loss: LabeledLoss = "ce",
    ) -> None:
        super().__init__(task)
        self.warmup = warmup
        self.student = build()
        self.teacher = ema_copy(self.student)
        self.strong = StrongAugment(same_light=task.same_light)
        self.labeled_loss = supervised_loss(loss, task.ignore_index)
        self.unlabeled_weight, self.ramp_up, self.ema_decay = unlabeled_weight, ramp_up, ema_decay

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of one batch."""
        x_l, y_l = batch.labeled.image, batch.labeled.labels
        if progress.fraction < self.warmup:
            loss_l = self.labeled_loss(self.student(x_l), y_l, weight=batch.class_weights)
            return StepOutput(loss_l, {"loss_sup": loss_l})
        x_u, valid = batch.draw(0).image, batch.draw(0).valid  # (B, *T, 3, H, W), (B, H, W)

        with torch.no_grad():
            logits_w = self.teacher(x_u)  # (B, K, H, W)

        logits_l, logits_s = labeled_and_pseudo(self.student, x_l, self.strong(x_u))

        loss_l = self.labeled_loss(logits_l, y_l, weight=batch.class_weights)
        loss_u = squared_error(logits_s, logits_w, valid)
        weight = self.unlabeled_weight * sigmoid_ramp(progress.step, self.ramp_up * progress.total_steps)

        label, confidence = pseudo_label(logits_w)
        logs = pseudo_logs(label, confidence, valid, valid, self.task.n_classes)
        logs["pseudo/agreement"] = agreement(logits_s, label, valid)
        return StepOutput(loss_l + weight * loss_u, {"loss_sup": loss_l, "loss_unsup": loss_u, **logs})

    def after_update(self, progress: Progress) -> None:
        """Move the teacher."""
        self.teacher.update(self.student, ema_ramp(progress.step, self.ema_decay))

    def predictors(self) -> dict[str, Model]:
        """Return the teacher, then the student."""
        return {"teacher": self.teacher.model, "student": self.student}
