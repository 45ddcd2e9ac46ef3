"""CutMix-Seg: a mean teacher whose target for a mixed image is the same mixture of its predictions.

French et al., "Semi-supervised semantic segmentation needs strong, varied perturbations", BMVC 2020,
arXiv:1906.01916.

    x_m  = M x_1 + (1 - M) x_0           M: one box of half the area; x_0, x_1: two independent unlabeled batches
    q    = softmax(M f'(x_1) + (1 - M) f'(x_0))                  f' = EMA teacher, no gradient
    w    = mean over all pixels of 1[max q >= tau]               one number per batch
    L_u  = mean over all pixels of w v sum_k (softmax f(x_m)_k - q_k)^2      v = mixed validity
    L    = CE(f(x_l), y) + lambda L_u
    f'   = d f' + (1 - d) f                                      after the optimizer step

The student sees colored images, the teacher plain ones, as in the published runs (`strong_color`).

Where paper and code differ, the code is followed: `per_pixel` weights (each pixel by its own 1[max q >= tau]) are an
option that the published runs leave off.

Deviations: the teacher labels in evaluation mode, with averaged statistics; in the published code it labels in
training mode, where the frozen norms of the encoder make the two alike (`teacher_norm: own` is that form). Statistics
of the encoder's batch norms are frozen in the published runs (`freeze_norm`). Colors are those of UniMatch with a
jitter of the published strength, without blur.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from halfmask.batch import Batch, Progress
from halfmask.losses.cross_entropy import LabeledLoss, supervised_loss
from halfmask.losses.pseudo_labels import probability_distance
from halfmask.method import Method, ModelBuilder, StepOutput
from halfmask.models.coarse_logits import full
from halfmask.models.model import Model
from halfmask.models.statistics import pseudo_pass
from halfmask.task import Task
from halfmask.teaching.ema import ema_copy
from halfmask.teaching.pseudo_label import agreement, pseudo_label, pseudo_logs
from halfmask.views.boxes import several_boxes
from halfmask.views.mixing import paste
from halfmask.views.strong import StrongAugment


class CutMixSeg(Method):
    """Mean teacher with mixed images, squared distances and one weight per batch.

    Args:
        threshold: tau, the confidence that counts a pixel into the weight of the batch.
        unlabeled_weight: lambda.
        ema_decay: d.
        per_pixel: weight each pixel by its own confidence instead of the batch by the share of confident pixels.
        strong_color: the student sees colored images.
        box_area: share of the image that the box takes.
        teacher_norm: batch-norm statistics of the teacher: averaged (`ema`), or its `own`, in training mode.
        freeze_norm: the encoder's batch norms keep the statistics of the pretrained weights.
        loss: of the labeled images: `ce`, or `ohem`, cross-entropy of the hard pixels.
    """

    status = "implemented"
    supports = frozenset({"class_weights"})
    draws = 2

    def __init__(
        self,
        task: Task,
        build: ModelBuilder,
        *,
        threshold: Annotated[float, Field(ge=0, le=1)] = 0.97,
        unlabeled_weight: Annotated[float, Field(ge=0)] = 1.0,
        ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99,
        per_pixel: bool = False,
        strong_color: bool = True,
        box_area: Annotated[float, Field(gt=0, le=1)] = 0.5,
        teacher_norm: Literal["ema", "own"] = "ema",
        freeze_norm: bool = False,
        loss: LabeledLoss = "ce",
    ) -> None:
        super().__init__(task)
        self.freeze_norm = freeze_norm
        self.student = build()
        self.teacher = ema_copy(self.student, buffers=teacher_norm)
        self.strong = StrongAugment(
            brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.0, same_light=task.same_light
        )
        self.boxes: Callable[..., Tensor] = partial(several_boxes, boxes=1, area=(box_area, box_area))
        self.labeled_loss = supervised_loss(loss, task.ignore_index)
        self.threshold, self.unlabeled_weight, self.ema_decay = threshold, unlabeled_weight, ema_decay
        self.per_pixel, self.strong_color = per_pixel, strong_color

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of one batch."""
        x_l, y_l = batch.labeled.image, batch.labeled.labels
        first, second = batch.draw(0), batch.draw(1)  # image (B, *T, 3, H, W), valid (B, H, W)

        with torch.no_grad():
            logits_0, logits_1 = full(self.teacher(first.image)), full(self.teacher(second.image))  # (B, K, H, W)

        # The same box for pixels, predictions and validity.
        box = self.boxes(first.valid.shape, device=x_l.device)
        x_0, x_1 = (self._student_view(draw.image) for draw in (first, second))
        x_m, logits_t, valid = paste(box, x_0, logits_0, first.valid, partner=(x_1, logits_1, second.valid))

        loss_l = self.labeled_loss(self.student(x_l), y_l, weight=batch.class_weights)
        with pseudo_pass(self.student):
            logits_m = self.student(x_m)
        label, confidence = pseudo_label(logits_t)  # (B, H, W) each
        confident = confidence >= self.threshold
        weight = confident.float() if self.per_pixel else confident.float().mean()
        loss_u = probability_distance(logits_m, logits_t.float().softmax(1), valid * weight)

        logs = pseudo_logs(label, confidence, confident & valid, valid, self.task.n_classes)
        logs["pseudo/agreement"] = agreement(logits_m, label, valid)
        loss = loss_l + self.unlabeled_weight * loss_u
        return StepOutput(loss, {"loss_sup": loss_l, "loss_unsup": loss_u, **logs})

    def after_update(self, progress: Progress) -> None:
        """Move the teacher."""
        self.teacher.update(self.student, self.ema_decay)

    def predictors(self) -> dict[str, Model]:
        """Return the teacher, then the student."""
        return {"teacher": self.teacher.model, "student": self.student}

    def train(self, mode: bool = True) -> "CutMixSeg":
        """Keep frozen statistics as they are."""
        super().train(mode)
        if self.freeze_norm:
            for net in (self.student, self.teacher.model):
                for module in net.encoder.modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.eval()
        return self

    def _student_view(self, image: Tensor) -> Tensor:
        view: Tensor = self.strong(image) if self.strong_color else image
        return view
