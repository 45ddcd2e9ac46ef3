"""PixCon: UniMatch V2, and a contrast of labeled pixels with those that were classified rightly before.

The authors of PixCon, "PixCon", 2026, arXiv:2607.03068. With a strong teacher most confident pseudo-labels are right;
the gain left is the class structure of the embedding.

    L_base  = UniMatch V2 (Yang et al., arXiv:2410.10777): EMA teacher, two strong CutMix views, complementary channel
              dropout, threshold tau
    z       = unit vectors of proj(embedding of x_l)             proj: 1x1 convolution, norm, ReLU, 1x1 convolution
    A       = pixels of z's grid with a known label that the student predicts; at most 64 at random per class
    L_pix   = mean over A of -log(sum_{b in Q_c} e^(a b / t) / sum_{b in Q} e^(a b / t))       c: class of a
    L       = L_base + mu L_pix
    then the anchors A enter the queues Q: 256 vectors per class, no gradient

The contrast sees the queues before this batch enters; with empty queues it is 0. The projection is not shipped.

Deviations: labeled and strong images pass the student separately, also where no batch norm asks for it. The published
configuration speaks of gradients accumulated to 16 images; no such option is in the code, and recipes use 4.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from halfmask.batch import Batch, Progress
from halfmask.losses.contrast import queue_contrast
from halfmask.losses.cross_entropy import LabeledLoss, masked_cross_entropy, supervised_loss
from halfmask.method import Method, ModelBuilder, StepOutput
from halfmask.models.coarse_logits import full
from halfmask.models.model import Logits, Model
from halfmask.models.projection import projection
from halfmask.models.statistics import pseudo_pass
from halfmask.task import Task
from halfmask.teaching.ema import ema_copy
from halfmask.teaching.pseudo_label import agreement, pseudo_label, pseudo_logs
from halfmask.teaching.queues import ClassQueues, few_per_class
from halfmask.teaching.ramps import ema_ramp
from halfmask.views.channel_dropout import channel_masks, scale_channels
from halfmask.views.mixing import box_mask, paste
from halfmask.views.strong import StrongAugment


class PixCon(Method):
    """UniMatch V2 with pixel contrast against queues of labeled pixels.

    Args:
        threshold: tau, the confidence a pseudo-label needs to be used.
        unlabeled_weight: lambda.
        contrast_weight: mu; 0 is UniMatch V2.
        temperature: t.
        anchors_per_class: pixels of each class that are compared and remembered, per step.
        queue: vectors remembered per class.
        width: of the projected vectors.
        ema_decay: largest d of the teacher.
        cutmix: probability of pasting a box from the partner image.
        loss: of the labeled images: `ce`, or `ohem`, cross-entropy of the hard pixels.
    """

    status = "implemented"
    supports = frozenset({"class_weights"})
    smallest_batch = 2
    most_anchors = 1024  # per step, over all classes

    def __init__(
        self,
        task: Task,
        build: ModelBuilder,
        *,
        threshold: Annotated[float, Field(ge=0, le=1)] = 0.95,
        unlabeled_weight: Annotated[float, Field(ge=0)] = 1.0,
        contrast_weight: Annotated[float, Field(ge=0)] = 0.1,
        temperature: Annotated[float, Field(gt=0)] = 0.1,
        anchors_per_class: Annotated[int, Field(ge=1)] = 64,
        queue: Annotated[int, Field(ge=1)] = 256,
        width: Annotated[int, Field(ge=1)] = 256,
        ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.996,
        cutmix: Annotated[float, Field(ge=0, le=1)] = 0.5,
        loss: LabeledLoss = "ce",
    ) -> None:
        super().__init__(task)
        self.student = build()
        self.teacher = ema_copy(self.student)
        self.projection = projection(self.student.decoder.embedding, width)
        self.queues = ClassQueues(task.n_classes, queue, width)
        self.strong = StrongAugment(same_light=task.same_light)
        self.boxes: Callable[..., Tensor] = partial(box_mask, p=cutmix)
        self.dropout: Callable[..., list[Tensor]] = channel_masks
        self.labeled_loss = supervised_loss(loss, task.ignore_index)
        self.threshold, self.unlabeled_weight, self.ema_decay = threshold, unlabeled_weight, ema_decay
        self.contrast_weight, self.temperature = contrast_weight, temperature
        self.anchors_per_class = anchors_per_class

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of one batch."""
        x_l, y_l = batch.labeled.image, batch.labeled.labels
        x_u, valid = batch.draw(0).image, batch.draw(0).valid  # (B, *T, 3, H, W), (B, H, W)

        with torch.no_grad():
            label, confidence = pseudo_label(self.teacher(x_u))  # (B, H, W) each
        logs = pseudo_logs(label, confidence, confidence >= self.threshold, valid, self.task.n_classes)

        # Strong views, each with its own colors and box.
        boxes = [self.boxes(valid.shape, device=x_u.device) for _ in range(2)]
        views = [paste(box, self.strong(x_u), label, confidence, valid) for box in boxes]
        with pseudo_pass(self.student):
            logits_s = self._perturbed(torch.cat([view[0] for view in views]))

        embedding = self.student.embed(self.student.encode(x_l))  # (B, D, h, w)
        logits_l = self.student.classify(embedding, (x_l.shape[-2], x_l.shape[-1]))

        loss_l = self.labeled_loss(logits_l, y_l, weight=batch.class_weights)
        # Divided by all valid pixels, not by kept ones: an unsure batch should teach less.
        losses = [
            masked_cross_entropy(logits, y, v & (c >= self.threshold), denominator=v)
            for logits, (_, y, c, v) in zip(logits_s.chunk(2), views, strict=True)
        ]
        loss_u = torch.stack(losses).mean()
        loss_pix = self._contrast(embedding, logits_l, y_l)

        loss = (loss_l + self.unlabeled_weight * loss_u) / (1 + self.unlabeled_weight) + self.contrast_weight * loss_pix
        logs["pseudo/agreement"] = agreement(logits_s[: len(x_u)], views[0][1], views[0][3])
        logs["memory/filled"] = self.queues.filled.float().mean(1)  # (K,)
        return StepOutput(loss, {"loss_sup": loss_l, "loss_unsup": loss_u, "loss_contrast": loss_pix, **logs})

    def after_update(self, progress: Progress) -> None:
        """Move the teacher."""
        self.teacher.update(self.student, ema_ramp(progress.step, self.ema_decay))

    @classmethod
    def control_params(cls) -> dict[str, Any] | None:
        """Return parameters that leave out the contrast too."""
        return {"unlabeled_weight": 0.0, "contrast_weight": 0.0}

    def predictors(self) -> dict[str, Model]:
        """Return the teacher, then the student."""
        return {"teacher": self.teacher.model, "student": self.student}

    def _perturbed(self, image: Tensor) -> Logits:
        """Return the logits of both strong views, whose features lose complementary channels."""
        maps = self.student.encode(image)
        masks = self.dropout(len(image) // 2, [x.shape[1] for x in maps], device=image.device)
        maps = [scale_channels(x, mask) for x, mask in zip(maps, masks, strict=True)]
        return self.student.classify(self.student.embed(maps), (image.shape[-2], image.shape[-1]))

    def _contrast(self, embedding: Tensor, logits: Logits, target: Tensor) -> Tensor:
        """Compare labeled pixels that are classified rightly with the queues, then let them in."""
        vectors = F.normalize(self.projection(embedding), dim=1).movedim(1, -1).flatten(0, 2)  # (B * h * w, d)
        size, classes = embedding.shape[-2:], self.task.n_classes
        truth, found = (_resized(labels, size).flatten() for labels in (target, full(logits).argmax(1)))
        right = (truth == found) & (truth != self.task.ignore_index)
        pixels, chosen = few_per_class(
            torch.where(right, truth, classes), self.anchors_per_class, self.anchors_per_class * classes, classes
        )
        anchors = vectors[pixels]
        chance = torch.rand(len(chosen), device=chosen.device) + 2.0 * (chosen == classes)  # empty places come last
        most = chance.argsort()[: self.most_anchors]
        loss = queue_contrast(
            anchors[most], chosen[most], self.queues.slots, self.queues.filled, temperature=self.temperature
        )
        self.queues.enqueue(anchors, chosen)
        return loss


def _resized(labels: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(labels[:, None].float(), size=size, mode="nearest")[:, 0].long()
