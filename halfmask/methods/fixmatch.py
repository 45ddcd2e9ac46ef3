"""FixMatch for dense prediction, in the two forms that serve as baselines of UniMatch.

Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", NeurIPS 2020,
arXiv:2001.07685; per-pixel forms as in Yang et al., UniMatch, CVPR 2023, arXiv:2208.09910 (`teacher: student`)
and UniMatch V2, TPAMI 2025, arXiv:2410.10777 (`teacher: ema`).

    p_w  = softmax f'(weak(x_u))                           f' = EMA teacher or the student; no gradient
    L_u  = sum over valid pixels of 1[max p_w >= tau] * CE(f(strong(x_u)), argmax p_w) / number of valid pixels
    L    = (CE(f(x_l), y) + lambda * L_u) / (1 + lambda)
    f'   = d * f' + (1 - d) * f,  d = min(1 - 1 / (step + 1), ema_decay)      after the optimizer step

With `targets: soft` every valid pixel teaches, by the whole distribution:

    L_u  = sum over valid pixels of CE(f(strong(x_u)), p_w) / number of valid pixels

This is mean teacher's target (arXiv:1703.01780) in FixMatch's views. Hard labels sharpen what the teacher believes,
and a class that it seldom finds vanishes; soft ones keep it as it is. With a small weight (lambda = 0.3), after labels
alone have taught for half of a short run, they are the default for one's own folder (docs/results.md).

With `distribution_alignment` p_w is aligned to the shares of the classes before it is thresholded
(`halfmask.teaching.alignment`; an addition of later work).

strong = color changes and blur, then CutMix with a partner image; pseudo-label, confidence and validity are cut
and pasted with the pixels.

Which images share a forward pass matters for networks with batch normalization (it decides which images the
statistics are taken over) and changes nothing for others. Both forms do as the published code does:
  * `teacher: ema`: the student sees labeled and strong images in one pass; the teacher is in evaluation mode.
  * `teacher: student`: labeled and weak images share one pass in training mode, which gives the pseudo-labels;
    strong images pass alone. A separate partner view is labeled in evaluation mode, before that pass.
    `label_mode: eval` labels the weak images likewise, and labeled images then pass alone, too: with few steps or
    masks averaged statistics are steadier than those of one batch.

Deviations from the paper:
  * CutMix and the EMA teacher are additions of the dense forms; FixMatch evaluates, but does not label with, an EMA.
  * The loss is divided by 1 + lambda, so that lambda does not change the effective learning rate.
  * A batch without a valid pixel gives L_u = 0 (a plain division gives NaN).
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from halfmask.batch import Batch, Progress
from halfmask.losses.cross_entropy import LabeledLoss, masked_cross_entropy, soft_cross_entropy, supervised_loss
from halfmask.method import Method, ModelBuilder, StepOutput
from halfmask.models.coarse_logits import full
from halfmask.models.model import Model, eval_mode
from halfmask.models.statistics import labeled_and_pseudo, pseudo_pass
from halfmask.task import Task
from halfmask.teaching.alignment import AlignmentName, alignment_of
from halfmask.teaching.ema import Teacher, ema_copy
from halfmask.teaching.pseudo_label import agreement, pseudo_label, pseudo_logs
from halfmask.teaching.ramps import ema_ramp
from halfmask.views.mixing import box_mask, paste
from halfmask.views.strong import StrongAugment

_THRESHOLD = 0.95


class FixMatch(Method):
    """Weak-to-strong consistency with a confidence threshold.

    Args:
        targets: `hard`: labels of confident pixels; `soft`: the whole distribution, at every pixel, without threshold.
        threshold: tau, the confidence a hard label needs to be used; lower it where the coverage stays small.
        unlabeled_weight: lambda.
        teacher: who labels the weak images: an `ema` of the student, or the `student` itself.
        label_mode: mode of a student that labels: `train`, in the pass it learns from, or `eval`, in a pass before.
        ema_decay: largest d; unused with `teacher: student`.
        cutmix: probability of pasting a box from the partner image.
        cutmix_partner: the image with the mirrored place in the batch (`flip`); another draw of unlabeled images
            (`shuffle`, one more forward pass); another crop of the same image (`same_view`, as UniMatch's code).
        distribution_alignment: of the pseudo-labels, to the shares of the classes among the labels (`labeled`), or,
            of whole images, to equal shares (`uniform`).
        warmup: part of the run in which labels alone teach, so that pseudo-labels begin with a network that knows
            something.
        loss: of the labeled images: `ce`, or `ohem`, cross-entropy of the hard pixels.
    """

    status = "implemented"
    supports = frozenset({"class_weights"})
    tasks = frozenset({"segmentation", "change", "classification"})

    def __init__(
        self,
        task: Task,
        build: ModelBuilder,
        *,
        targets: Literal["hard", "soft"] = "hard",
        threshold: Annotated[float, Field(ge=0, le=1)] = _THRESHOLD,
        unlabeled_weight: Annotated[float, Field(ge=0)] = 1.0,
        teacher: Literal["ema", "student"] = "ema",
        label_mode: Literal["train", "eval"] = "train",
        ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.996,
        cutmix: Annotated[float, Field(ge=0, le=1)] = 0.5,
        cutmix_partner: Literal["flip", "shuffle", "same_view"] = "flip",
        distribution_alignment: AlignmentName = "none",
        warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        loss: LabeledLoss = "ce",
    ) -> None:
        super().__init__(task)
        self.warmup = warmup
        self.student = build()
        self.teacher: Teacher[Model] | None = ema_copy(self.student) if teacher == "ema" else None
        self.strong = StrongAugment(same_light=task.same_light)
        self.boxes: Callable[..., Tensor] = partial(box_mask, p=cutmix)
        self.align = alignment_of(task.kind, task.n_classes, distribution_alignment, task.ignore_index)
        self.labeled_loss = supervised_loss(loss, task.ignore_index)
        self.soft = targets == "soft"
        if self.soft and threshold != _THRESHOLD:
            warnings.warn(
                "method.threshold has no effect with method.targets=soft, where every pixel teaches. For labels of "
                "sure pixels alone set method.targets=hard.",
                stacklevel=2,
            )
        self.threshold = 0.0 if self.soft else threshold  # soft: every pixel passes
        self.unlabeled_weight, self.ema_decay = unlabeled_weight, ema_decay
        self.cutmix, self.cutmix_partner, self.label_mode = cutmix, cutmix_partner, label_mode
        self.draws = 1 if cutmix_partner == "flip" else 2
        self.draws_share_images = cutmix_partner == "same_view"

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of one batch."""
        x_l, y_l = batch.labeled.image, batch.labeled.labels
        if progress.fraction < self.warmup:
            loss_l = self.labeled_loss(self.student(x_l), y_l, weight=batch.class_weights)
            return StepOutput(loss_l, {"loss_sup": loss_l})
        x_u, valid = batch.draw(0).image, batch.draw(0).valid  # (B, *T, 3, H, W), (B, H, W)

        # Pseudo-labels of the weak views; the partner's first, before a training pass moves batch statistics.
        partner = self._partner(batch)
        if self.teacher is None and self.label_mode == "train":
            logits_l, logits_w = labeled_and_pseudo(self.student, x_l, x_u)
        else:
            labeler = self.student if self.teacher is None else self.teacher
            with torch.no_grad(), eval_mode(labeler):
                logits_w = labeler(x_u)
        if self.align is not None:
            logits_w = self.align(logits_w, y_l)
        label, confidence = pseudo_label(logits_w)  # (B, H, W) each
        logs = pseudo_logs(label, confidence, confidence >= self.threshold, valid, self.task.n_classes)

        # Strong view: one box per image; image, validity and targets must travel together.
        targets = (full(logits_w).detach(),) if self.soft else (label, confidence)
        box = self.boxes(valid.shape, device=x_u.device)
        x_s, valid, *mixed = paste(box, self.strong(x_u), valid, *targets, partner=partner)
        if self.teacher is not None:
            logits_l, logits_s = labeled_and_pseudo(self.student, x_l, x_s)
        elif self.label_mode == "train":
            with pseudo_pass(self.student):
                logits_s = self.student(x_s)
        else:
            logits_l = self.student(x_l)
            with pseudo_pass(self.student):
                logits_s = self.student(x_s)

        loss_l = self.labeled_loss(logits_l, y_l, weight=batch.class_weights)
        if self.soft:
            loss_u, label = soft_cross_entropy(logits_s, mixed[0], valid), mixed[0].argmax(1)
        else:
            label, confidence = mixed
            keep = valid & (confidence >= self.threshold)
            # Divided by all valid pixels, not by kept ones: an unsure batch should teach less.
            loss_u = masked_cross_entropy(logits_s, label, keep, denominator=valid)

        loss = (loss_l + self.unlabeled_weight * loss_u) / (1 + self.unlabeled_weight)
        logs["pseudo/agreement"] = agreement(logits_s, label, valid)
        return StepOutput(loss, {"loss_sup": loss_l, "loss_unsup": loss_u, **logs})

    def after_update(self, progress: Progress) -> None:
        """Move the teacher."""
        if self.teacher is not None:
            self.teacher.update(self.student, ema_ramp(progress.step, self.ema_decay))

    def predictors(self) -> dict[str, Model]:
        """Return the teacher where there is one, then the student."""
        own: dict[str, Model] = {"student": self.student}
        return own if self.teacher is None else {"teacher": self.teacher.model, **own}

    def _partner(self, batch: Batch) -> tuple[Tensor, ...] | None:
        """Return the image, validity and targets to paste from; `None` = the flipped batch."""
        if self.cutmix_partner == "flip":
            if self.cutmix > 0 and len(batch.draw(0).image) == 1:
                warnings.warn("CutMix with the flipped batch does nothing at one image per process.", stacklevel=3)
            return None
        other = batch.draw(1)
        labeler = self.student if self.teacher is None else self.teacher
        with torch.no_grad(), eval_mode(labeler):
            logits = labeler(other.image)
            targets = (full(logits),) if self.soft else pseudo_label(logits)
        return self.strong(other.image), other.valid, *targets
