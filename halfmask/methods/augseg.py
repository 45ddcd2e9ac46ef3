"""AugSeg: a plain mean teacher with few random color operations, and labeled crops pasted where it is unsure.

Zhao et al., "Augmentation Matters: A Simple-yet-Effective Approach to Semi-supervised Semantic Segmentation", CVPR
2023, arXiv:2212.04976.

    p, y_u, c = softmax f'(weak(x_u)), argmax, max               f' = EMA teacher, no gradient
    rho_i     = mean over pixels of (1 - H(p) / ln K) c          how sure the teacher is of image i (eq. 7)
    copy_i    = x_u with a box of a labeled image pasted in, with probability 1 - rho_i; its label is y, its c is 1
    x_m       = strong(x_u) outside a box, copy_pi(i) inside     pi: a permutation of the batch
    L_u       = sum over pixels of 1[c_m >= tau] * CE(f(x_m), y_m) / number of all pixels
    L         = CE(f(x_l), y) + lambda L_u
    f'        = d f' + (1 - d) f,  d = min(1 - 1 / (step + 1), ema_decay)

Box of the copy: lambda ~ Beta(8, 2); of the mixture: Beta(4, 4); sides times sqrt(1 - lambda). Label and confidence
travel with the pixels. An injected crop teaches only where the second box shows it. Labeled and mixed images pass the
student together.

Where paper and code differ, the code is followed: the divisor counts ignored pixels too; on Cityscapes the threshold
is off (`threshold: 0`), and with 92 labels of Pascal one more pass of the clean unlabeled images moves the batch-norm
statistics (`clean_pass`).

Deviations: padded pixels teach nothing (`ignore_padding: false` is the published form).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from halfmask.batch import Batch, Progress
from halfmask.losses.cross_entropy import LabeledLoss, supervised_loss
from halfmask.losses.pseudo_labels import pseudo_label_loss
from halfmask.method import Method, ModelBuilder, StepOutput
from halfmask.models.coarse_logits import full
from halfmask.models.model import Model
from halfmask.models.statistics import labeled_and_pseudo
from halfmask.task import Task
from halfmask.teaching.ema import ema_copy
from halfmask.teaching.pseudo_label import agreement, pseudo_label, pseudo_logs
from halfmask.teaching.ramps import ema_ramp
from halfmask.views.boxes import beta_box
from halfmask.views.mixing import paste
from halfmask.views.pillow_ops import RandomColors


class AugSeg(Method):
    """Mean teacher with random colors and labeled crops in unsure images.

    Args:
        threshold: tau, the confidence a pseudo-label needs to be used; 0 uses all.
        unlabeled_weight: lambda.
        ema_decay: largest d.
        operations: largest number of color operations per image.
        clean_pass: pass the clean unlabeled images through the student too, for its batch-norm statistics.
        ignore_padding: pixels of padding teach nothing.
        loss: of the labeled images: `ce`, or `ohem`, cross-entropy of the hard pixels.
    """

    status = "implemented"
    supports = frozenset({"class_weights"})
    equal_batches: ClassVar[bool] = True  # a labeled image for every unlabeled one to be pasted in
    smallest_batch = 2

    def __init__(
        self,
        task: Task,
        build: ModelBuilder,
        *,
        threshold: Annotated[float, Field(ge=0, le=1)] = 0.95,
        unlabeled_weight: Annotated[float, Field(ge=0)] = 1.0,
        ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999,
        operations: Annotated[int, Field(ge=1)] = 3,
        clean_pass: bool = False,
        ignore_padding: bool = True,
        loss: LabeledLoss = "ce",
    ) -> None:
        super().__init__(task)
        self.student = build()
        self.teacher = ema_copy(self.student)
        self.strong = RandomColors(most=operations)
        self.crop_boxes: Callable[..., Tensor] = partial(beta_box, beta=(8.0, 2.0))
        self.mix_boxes: Callable[..., Tensor] = partial(beta_box, beta=(4.0, 4.0))
        self.labeled_loss = supervised_loss(loss, task.ignore_index)
        self.threshold, self.unlabeled_weight, self.ema_decay = threshold, unlabeled_weight, ema_decay
        self.clean_pass, self.ignore_padding = clean_pass, ignore_padding

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of one batch."""
        x_l, y_l = batch.labeled.image, batch.labeled.labels
        x_u, valid = batch.draw(0).image, batch.draw(0).valid  # (B, *T, 3, H, W), (B, H, W)
        counted = valid if self.ignore_padding else torch.ones_like(valid)

        with torch.no_grad():
            logits_w = full(self.teacher(x_u))  # (B, K, H, W)
            sure = image_confidence(logits_w)  # (B,)
        label, confidence = pseudo_label(logits_w)
        logs = pseudo_logs(label, confidence, confidence >= self.threshold, counted, self.task.n_classes)

        # All that belongs to a pixel travels with it; a label that is unknown teaches nothing, as padding does.
        known = y_l != self.task.ignore_index
        own = (self.strong(x_u), label, confidence, counted)
        given = (x_l, y_l, torch.ones_like(confidence), known)
        x_m, y_m, c_m, use = self._mixed(own, given, sure)

        logits_l, logits_m = labeled_and_pseudo(self.student, x_l, x_m)
        if self.clean_pass:
            with torch.no_grad():
                self.student(x_u)

        loss_l = self.labeled_loss(logits_l, y_l, weight=batch.class_weights)
        loss_u = pseudo_label_loss(logits_m, y_m, use & (c_m >= self.threshold), valid=use, divisor="all")
        logs["pseudo/agreement"] = agreement(logits_m, y_m, use)
        logs["pseudo/sure"] = sure.mean()
        loss = loss_l + self.unlabeled_weight * loss_u
        return StepOutput(loss, {"loss_sup": loss_l, "loss_unsup": loss_u, **logs})

    def after_update(self, progress: Progress) -> None:
        """Move the teacher."""
        self.teacher.update(self.student, ema_ramp(progress.step, self.ema_decay))

    def predictors(self) -> dict[str, Model]:
        """Return the teacher, then the student."""
        return {"teacher": self.teacher.model, "student": self.student}

    def _mixed(
        self, own: tuple[Tensor, ...], given: tuple[Tensor, ...], sure: Float[Tensor, " B"]
    ) -> tuple[Tensor, ...]:
        """Paste labeled crops into copies of unsure images, then a box of the copies into the images."""
        order, draws, boxes = self._draws(own[3])
        inject = (draws > sure).view(-1, *[1] * (own[3].ndim - 1))
        copies = paste(boxes[0] & inject, *own, partner=[tensor[order] for tensor in given])
        return paste(boxes[1], *own, partner=[tensor[order] for tensor in copies])

    def _draws(self, valid: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Draw a permutation, a uniform number per image, and the boxes of the copies and of the mixture."""
        images, device = len(valid), valid.device
        boxes = [draw(valid.shape, device=device) for draw in (self.crop_boxes, self.mix_boxes)]
        return torch.randperm(images, device=device), torch.rand(images, device=device), boxes


def image_confidence(logits: Float[Tensor, "B K *S"]) -> Float[Tensor, " B"]:
    """Average (1 - entropy / ln K) * largest probability over the pixels of each image (eq. 7)."""
    log_p = logits.log_softmax(1)
    probability = log_p.exp()
    entropy = -(probability * log_p).sum(1)
    sure = (1 - entropy / math.log(logits.shape[1])) * probability.amax(1)
    return sure.flatten(1).mean(1) if sure.ndim > 1 else sure
