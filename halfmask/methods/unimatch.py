"""UniMatch: two strong views of each unlabeled image, and a third view whose features lose channels.

Yang et al., "Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation", CVPR 2023,
arXiv:2208.09910.

    p_w  = softmax f(weak(x_u))                                  no gradient
    x_v  = CutMix_v(strong_v(x_u))                               v = 1, 2; own colors and own box each
    L_v  = sum over valid pixels of 1[max p_w >= tau] * CE(f(x_v), argmax p_w) / number of valid pixels
    L_fp = the same with the logits decoder(dropout(encoder(weak(x_u))));  whole channels are dropped
    L_u  = (1 - mu) * (L_1 + L_2) / 2 + mu * L_fp
    L    = (CE(f(x_l), y) + lambda * L_u) / (1 + lambda)

The published weights 1/4, 1/4, 1/2 are mu = 1/2. There is no second network.

Which images share a forward pass decides which ones the batch-norm statistics are taken over; as published:
  * the partner images of CutMix are labeled in evaluation mode, before anything else;
  * labeled and weak images pass the encoder together, in training mode; the decoder sees their features twice in one
    pass, clean and with dropped channels (what the labeled images give with dropped channels is not used). The
    pseudo-labels come from this pass (on purpose, the authors say: statistics of clean images), or from an earlier
    one in evaluation mode (`label_mode: eval`);
  * both strong views pass together.

Where paper and code differ:
  * The partner of CutMix is "another image" in the paper. The published code takes another crop of the same image, by
    accident (authors, in their issue tracker: equally good as shuffling). It stands behind the published numbers and
    is the default, `cutmix_partner: same_view`; `shuffle` is what was intended.
  * Channels are dropped in every feature map; DeepLabV3+ reads the finest and the coarsest, as published.
  * `teacher: ema` is the form in which UniMatch V2 (arXiv:2410.10777, Table 5) runs this method: an EMA teacher labels
    weak and partner images. Its code is not published.

Deviations: lambda does not change the effective learning rate; a batch without a valid pixel gives L_u = 0, not NaN.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from halfmask.batch import Batch, Progress, Samples
from halfmask.losses.cross_entropy import LabeledLoss, masked_cross_entropy, supervised_loss
from halfmask.method import Method, ModelBuilder, StepOutput
from halfmask.models.model import Logits, Model, eval_mode
from halfmask.models.statistics import pseudo_pass
from halfmask.task import Task
from halfmask.teaching.ema import Teacher, ema_copy
from halfmask.teaching.pseudo_label import agreement, pseudo_label, pseudo_logs
from halfmask.teaching.ramps import ema_ramp
from halfmask.views.channel_dropout import clean_and_dropped, drop_channels
from halfmask.views.mixing import box_mask, paste
from halfmask.views.strong import StrongAugment


class UniMatch(Method):
    """Consistency of two strong views and of a view with dropped feature channels.

    Args:
        threshold: tau, the confidence a pseudo-label needs to be used; lower it where the coverage stays small.
        unlabeled_weight: lambda.
        feature_weight: mu, part of the dropped-channels view in the unlabeled loss.
        feature_dropout: probability of dropping a channel.
        teacher: who labels the weak images: the `student`, or an `ema` of it, which is then also evaluated and shipped.
        label_mode: mode of a student that labels: `train`, in the pass it learns from, or `eval`, in one more pass.
        ema_decay: largest d of an EMA teacher.
        cutmix: probability of pasting a box from the partner image.
        cutmix_partner: another crop of the same image (`same_view`), another draw of unlabeled images (`shuffle`), or
            the image with the mirrored place in the batch (`flip`, one forward pass less).
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
        threshold: Annotated[float, Field(ge=0, le=1)] = 0.95,
        unlabeled_weight: Annotated[float, Field(ge=0)] = 1.0,
        feature_weight: Annotated[float, Field(ge=0, le=1)] = 0.5,
        feature_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        teacher: Literal["student", "ema"] = "student",
        label_mode: Literal["train", "eval"] = "train",
        ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.996,
        cutmix: Annotated[float, Field(ge=0, le=1)] = 0.5,
        cutmix_partner: Literal["same_view", "shuffle", "flip"] = "same_view",
        warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        loss: LabeledLoss = "ce",
    ) -> None:
        super().__init__(task)
        self.warmup = warmup
        self.student = build()
        self.teacher: Teacher[Model] | None = ema_copy(self.student) if teacher == "ema" else None
        self.strong = StrongAugment(same_light=task.same_light)
        self.boxes: Callable[..., Tensor] = partial(box_mask, p=cutmix)
        self.dropout: Callable[[list[Tensor]], list[Tensor]] = partial(drop_channels, p=feature_dropout)
        self.labeled_loss = supervised_loss(loss, task.ignore_index)
        self.threshold, self.unlabeled_weight, self.ema_decay = threshold, unlabeled_weight, ema_decay
        self.feature_weight = feature_weight
        self.labels_apart = teacher == "ema" or label_mode == "eval"
        self.draws = 1 if cutmix_partner == "flip" else 2
        self.draws_share_images = cutmix_partner == "same_view"
        self.smallest_batch = 2 if cutmix_partner == "flip" and cutmix > 0 else 1

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of one batch."""
        x_l, y_l = batch.labeled.image, batch.labeled.labels
        if progress.fraction < self.warmup:
            loss_l = self.labeled_loss(self.student(x_l), y_l, weight=batch.class_weights)
            return StepOutput(loss_l, {"loss_sup": loss_l})
        x_u, valid = batch.draw(0).image, batch.draw(0).valid  # (B, *T, 3, H, W), (B, H, W)

        # Pseudo-labels; those in evaluation mode first, before a training pass moves batch statistics.
        other = self._labeled(batch.draw(1)) if self.draws == 2 else None
        own = self._labeled(batch.draw(0)) if self.labels_apart else None
        logits_l, logits_w, logits_fp, _ = clean_and_dropped(self.student, x_l, x_u, self.dropout)
        own = own or (x_u, *pseudo_label(logits_w), valid)
        _, label, confidence, _ = own  # (B, H, W) each
        logs = pseudo_logs(label, confidence, confidence >= self.threshold, valid, self.task.n_classes)

        # Strong views, each with its own colors and box; all that belongs to a pixel travels with it.
        views = [self._strong_view(own, other) for _ in range(2)]
        with pseudo_pass(self.student):
            logits_s = self.student(torch.cat([view[0] for view in views]))

        loss_l = self.labeled_loss(logits_l, y_l, weight=batch.class_weights)
        first, second = (
            self._unlabeled_loss(logits, *view[1:]) for logits, view in zip(logits_s.chunk(2), views, strict=True)
        )
        loss_s, loss_fp = (first + second) / 2, self._unlabeled_loss(logits_fp, label, confidence, valid)
        loss_u = (1 - self.feature_weight) * loss_s + self.feature_weight * loss_fp

        loss = (loss_l + self.unlabeled_weight * loss_u) / (1 + self.unlabeled_weight)
        logs["pseudo/agreement"] = agreement(logits_s[: len(x_u)], views[0][1], views[0][3])
        terms = {"loss_sup": loss_l, "loss_unsup": loss_u, "loss_strong": loss_s, "loss_features": loss_fp}
        return StepOutput(loss, {**terms, **logs})

    def after_update(self, progress: Progress) -> None:
        """Move the teacher, where there is one."""
        if self.teacher is not None:
            self.teacher.update(self.student, ema_ramp(progress.step, self.ema_decay))

    def predictors(self) -> dict[str, Model]:
        """Return the teacher where there is one, then the student."""
        own: dict[str, Model] = {"student": self.student}
        return own if self.teacher is None else {"teacher": self.teacher.model, **own}

    def _labeled(self, weak: Samples) -> tuple[Tensor, ...]:
        """Return the image, pseudo-label and confidence in evaluation mode, validity."""
        labeler = self.student if self.teacher is None else self.teacher
        with torch.no_grad(), eval_mode(labeler):
            return weak.image, *pseudo_label(labeler(weak.image)), weak.valid

    def _strong_view(self, own: tuple[Tensor, ...], other: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        """Return the strong image, label, confidence, validity; `other` is pasted in (default: the flipped batch)."""
        partner = None if other is None else (self.strong(other[0]), *other[1:])
        box = self.boxes(own[3].shape, device=own[0].device)
        return paste(box, self.strong(own[0]), *own[1:], partner=partner)

    def _unlabeled_loss(self, logits: Logits, label: Tensor, confidence: Tensor, valid: Tensor) -> Tensor:
        # Divided by all valid pixels, not by kept ones: an unsure batch should teach less.
        keep = valid & (confidence >= self.threshold)
        return masked_cross_entropy(logits, label, keep, denominator=valid)
