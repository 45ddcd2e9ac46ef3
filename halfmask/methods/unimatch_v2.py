"""UniMatch V2: two strong views whose features lose complementary channels, labeled by an EMA teacher.

Yang et al., "UniMatch V2: Pushing the Limit of Semi-Supervised Semantic Segmentation", TPAMI 2025, arXiv:2410.10777.
One stream holds both perturbations, of images and of features, where UniMatch V1 has two streams.

    p_w  = softmax f'(weak(x_u))                               f' = EMA teacher, no gradient
    x_v  = CutMix_v(strong_v(x_u))                             v = 1, 2; own colors and own box each
    z_v  = encoder features of x_v, channels times m (v = 1) or 2 - m (v = 2);  m = 2 * Bernoulli(1/2) per image and
           channel, the same for all feature maps; 1 throughout for half of the images
    L_v  = sum over valid pixels of 1[max p_w >= tau] * CE(decoder(z_v), argmax p_w) / number of valid pixels
    L    = (CE(f(x_l), y) + lambda * (L_1 + L_2) / 2) / (1 + lambda)
    f'   = d * f' + (1 - d) * f,  d = min(1 - 1 / (step + 1), ema_decay)      after the optimizer step

With `distribution_alignment` p_w is aligned to the shares of the classes before it is thresholded
(`halfmask.teaching.alignment`), as the published logs of CIFAR-10 and STL-10 have it.

Pseudo-label, confidence and validity are cut and pasted with the pixels of each view. The labeled images and the
teacher's never lose channels. A network without batch statistics sees labeled and strong images in one pass, which
changes nothing; otherwise they pass separately, as published.

Where paper and code differ, the code, behind the published numbers, is followed:
  * Dropout acts on all maps the decoder reads (paper: where encoder meets decoder); `dropout_at: classifier` is the
    position of the paper's ablation.
  * Exactly half of each batch stays undropped, rounded down, per process (`dropout_keep: bernoulli`: by chance).
  * For change detection the published code labels with the student (`teacher: student`); the average is evaluated only.
  * The mixing partner is the image with the mirrored place in the batch: the middle one of an odd batch meets itself.

Deviations from both:
  * Feature maps of unequal width (of a CNN) get masks of their own; which images stay undropped is the same for all.
  * The teacher copies integer buffers; the published code scales and truncates them.
  * Lambda does not change the effective learning rate; a batch without a valid pixel gives L_v = 0 instead of NaN.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from halfmask.batch import Batch, Progress, Samples
from halfmask.losses.cross_entropy import LabeledLoss, masked_cross_entropy, supervised_loss
from halfmask.method import Method, ModelBuilder, StepOutput
from halfmask.models.model import Logits, Model, eval_mode
from halfmask.models.statistics import pseudo_pass
from halfmask.task import Task
from halfmask.teaching.alignment import AlignmentName, alignment_of
from halfmask.teaching.ema import Teacher, ema_copy
from halfmask.teaching.pseudo_label import agreement, pseudo_label, pseudo_logs
from halfmask.teaching.ramps import ema_ramp
from halfmask.views.channel_dropout import channel_masks, scale_channels
from halfmask.views.mixing import box_mask, paste
from halfmask.views.strong import StrongAugment


class UniMatchV2(Method):
    """Consistency of two strong views under complementary channel dropout.

    Args:
        threshold: tau, the confidence a pseudo-label needs to be used; lower it where the coverage stays small.
        unlabeled_weight: lambda.
        teacher: who labels the weak images: an `ema` of the student, or the `student` itself (in evaluation mode).
        ema_decay: largest d of the average, which is evaluated and shipped in either case.
        cutmix: probability of pasting a box from the partner image; classification mixes nothing.
        cutmix_partner: the image with the mirrored place in the batch (`flip`), or another draw of unlabeled images
            (`shuffle`, one more forward pass of the teacher).
        distribution_alignment: of the pseudo-labels, to the shares of the classes among the labels (`labeled`), or,
            of whole images, to equal shares (`uniform`).
        views: strong views per unlabeled image.
        dropout: of feature channels: `complementary`, drawn for each view (`independent`), or `none`.
        dropout_at: `taps`, all feature maps by one mask; `levels`, each map by its own; `classifier`, the embedding
            before the last layer.
        dropout_keep: half of the images of a batch stay undropped, `exact` or by chance (`bernoulli`).
        warmup: part of the run in which labels alone teach, so that pseudo-labels begin with a network that knows
            something.
        loss: of the labeled images: `ce`, or `ohem`, cross-entropy of the hard pixels.
    """

    status = "implemented"
    supports = frozenset({"class_weights"})
    tasks: ClassVar[frozenset[str]] = frozenset({"segmentation", "change", "classification"})

    def __init__(
        self,
        task: Task,
        build: ModelBuilder,
        *,
        threshold: Annotated[float, Field(ge=0, le=1)] = 0.95,
        unlabeled_weight: Annotated[float, Field(ge=0)] = 1.0,
        teacher: Literal["ema", "student"] = "ema",
        ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.996,
        cutmix: Annotated[float, Field(ge=0, le=1)] = 0.5,
        cutmix_partner: Literal["flip", "shuffle"] = "flip",
        distribution_alignment: AlignmentName = "none",
        views: Literal[1, 2] = 2,
        dropout: Literal["complementary", "independent", "none"] = "complementary",
        dropout_at: Literal["taps", "levels", "classifier"] = "taps",
        dropout_keep: Literal["exact", "bernoulli"] = "exact",
        warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        loss: LabeledLoss = "ce",
    ) -> None:
        super().__init__(task)
        self.warmup = warmup
        self.student = build()
        self.teacher: Teacher[Model] = ema_copy(self.student)
        self.labeler: Literal["ema", "student"] = teacher
        self.strong = StrongAugment(same_light=task.same_light)
        self.boxes: Callable[..., Tensor] = partial(box_mask, p=cutmix)
        self.align = alignment_of(task.kind, task.n_classes, distribution_alignment, task.ignore_index)
        self.dropout: Callable[..., list[Tensor]] = partial(
            channel_masks,
            views=views,
            complementary=dropout == "complementary",
            shared=dropout_at == "taps",
            keep=dropout_keep,
        )
        self.labeled_loss = supervised_loss(loss, task.ignore_index)
        self.threshold, self.unlabeled_weight, self.ema_decay = threshold, unlabeled_weight, ema_decay
        self.views, self.dropout_at = views, None if dropout == "none" else dropout_at
        mixes = cutmix > 0 and task.kind != "classification"
        self.draws = 2 if mixes and cutmix_partner == "shuffle" else 1
        flips = mixes and cutmix_partner == "flip"
        self.smallest_batch = 2 if flips or dropout != "none" else 1  # one image would always lose channels
        # With drop path, one pass draws otherwise than two: results differ, not their distribution.
        self.one_pass = not self.student.has_batch_stats

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of one batch."""
        x_l, y_l = batch.labeled.image, batch.labeled.labels
        if progress.fraction < self.warmup:
            loss_l = self.labeled_loss(self.student(x_l), y_l, weight=batch.class_weights)
            return StepOutput(loss_l, {"loss_sup": loss_l})

        # Pseudo-labels of the weak views; both strong views learn from the same.
        own = image, label, confidence, valid = self._labeled(batch.draw(0), y_l)  # (B, *T, 3, H, W), then (B, *S) each
        other = self._labeled(batch.draw(1), y_l) if self.draws == 2 else None
        logs = pseudo_logs(label, confidence, confidence >= self.threshold, valid, self.task.n_classes)

        # Strong views, each with its own colors and box.
        views = [self._strong_view(own, other) for _ in range(self.views)]
        x_s = torch.cat([view[0] for view in views])  # (views * B, *T, 3, H, W)
        if self.one_pass:
            logits = self._perturbed(torch.cat((x_l, x_s)), clean=len(x_l))
            logits_l, *logits_s = logits.split((len(x_l), *self.views * [len(image)]))
        else:
            logits_l = self.student(x_l)
            with pseudo_pass(self.student):
                logits_s = self._perturbed(x_s).chunk(self.views)

        loss_l = self.labeled_loss(logits_l, y_l, weight=batch.class_weights)
        losses = []
        for logits_v, (_, label_v, confidence_v, valid_v) in zip(logits_s, views, strict=True):
            keep = valid_v & (confidence_v >= self.threshold)
            # Divided by all valid pixels, not by kept ones: an unsure batch should teach less.
            losses.append(masked_cross_entropy(logits_v, label_v, keep, denominator=valid_v))
        loss_u = torch.stack(losses).mean()

        loss = (loss_l + self.unlabeled_weight * loss_u) / (1 + self.unlabeled_weight)
        logs["pseudo/agreement"] = agreement(logits_s[0], views[0][1], views[0][3])
        return StepOutput(loss, {"loss_sup": loss_l, "loss_unsup": loss_u, **logs})

    def after_update(self, progress: Progress) -> None:
        """Move the teacher."""
        self.teacher.update(self.student, ema_ramp(progress.step, self.ema_decay))

    def predictors(self) -> dict[str, Model]:
        """Return the teacher, then the student."""
        return {"teacher": self.teacher.model, "student": self.student}

    def _labeled(self, weak: Samples, y_l: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the image, pseudo-label, confidence and validity."""
        labeler = self.teacher if self.labeler == "ema" else self.student
        with torch.no_grad(), eval_mode(labeler):
            logits = labeler(weak.image)
        if self.align is not None:
            logits = self.align(logits, y_l)
        label, confidence = pseudo_label(logits)
        return weak.image, label, confidence, weak.valid

    def _strong_view(self, own: tuple[Tensor, ...], other: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        """Return the strong image, label, confidence, validity; `other` is pasted in (default: the flipped batch)."""
        partner = None if other is None else (self.strong(other[0]), *other[1:])
        box = self.boxes(own[3].shape, device=own[0].device)
        return paste(box, self.strong(own[0]), *own[1:], partner=partner)

    def _perturbed(self, image: Tensor, clean: int = 0) -> Logits:
        """Return the logits; from the image number `clean` on, features lose channels."""
        features = self.student.encode(image)
        if self.dropout_at in ("taps", "levels"):
            features = self._dropped(features, clean)
        embedding = self.student.embed(features)
        if self.dropout_at == "classifier":
            (embedding,) = self._dropped([embedding], clean)
        return self.student.classify(embedding, (image.shape[-2], image.shape[-1]))

    def _dropped(self, maps: list[Tensor], clean: int) -> list[Tensor]:
        images = (len(maps[0]) - clean) // self.views
        masks = self.dropout(images, [x.shape[1] for x in maps], device=maps[0].device)
        masks = [F.pad(mask, (0, 0, clean, 0), value=1.0) for mask in masks]  # rows of the clean images come first
        return [scale_channels(x, mask) for x, mask in zip(maps, masks, strict=True)]
