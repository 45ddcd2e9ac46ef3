"""PrevMatch: UniMatch, and a second target from networks of earlier epochs.

Shin et al., "Revisiting and Maximizing Temporal Knowledge in Semi-supervised Semantic Segmentation", 2024,
arXiv:2405.20610; on UniMatch (Yang et al., CVPR 2023, arXiv:2208.09910).

    p_w    = softmax f(weak(x_u))                                no gradient, in the pass with the labeled images
    p_prev = softmax of the mean of n earlier networks' logits on weak(x_u);  n ~ U{1, ..., 3}, weights ~ Dirichlet(1)
    L_t    = 1/4 L(f(x_1), t) + 1/4 L(f(x_2), t) + 1/2 L(f_dropped(weak(x_u)), t)       t = p_w (tau) or p_prev (tau')
             L: sum over valid pixels of 1[max t >= tau] * CE / number of valid pixels; x_1, x_2: strong CutMix views
    lambda = 0 at the first and last step, 1 half-way            a triangle
    L      = (CE(f(x_l), y) + L_std + lambda L_prev) / (2 + lambda)

A copy of the network enters the pool at each validation that is better than all before it; of more than `pool` copies
the oldest goes. While the pool is empty lambda is 0. Works on any network.

Where paper and code differ: the partner of CutMix is another crop of the same image in UniMatch's code, by accident
(`cutmix_partner: same_view`, which recipes with published numbers use).

Deviations: a batch without a valid pixel gives 0, not NaN. What a validation is decides how often the pool can grow:
published runs validate each epoch. Without validation images each validation time (`run.eval_every`) lets a copy in.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from halfmask.batch import Batch, Progress, Samples
from halfmask.losses.cross_entropy import LabeledLoss, masked_cross_entropy, supervised_loss
from halfmask.method import Method, ModelBuilder, StepOutput
from halfmask.models.model import Logits, eval_mode
from halfmask.models.statistics import pseudo_pass
from halfmask.task import Task
from halfmask.teaching.pseudo_label import agreement, pseudo_label, pseudo_logs
from halfmask.teaching.snapshots import SnapshotPool
from halfmask.views.channel_dropout import clean_and_dropped, drop_channels
from halfmask.views.mixing import box_mask, paste
from halfmask.views.strong import StrongAugment

Labels = tuple[Tensor, Tensor]  # label and confidence, (B, *S) each


class View(NamedTuple):
    """A strong view.

    Args:
        image: (B, *T, C, H, W).
        valid: (B, *S).
        labels: of the network itself, and of earlier ones where there are any.
    """

    image: Tensor
    valid: Tensor
    labels: list[Labels]


class PrevMatch(Method):
    """UniMatch taught by itself and by its own past.

    Args:
        threshold: tau, for the labels of the network itself.
        previous_threshold: tau', for the labels of earlier networks.
        unlabeled_weight: factor of L_std and of L_prev, also in the divisor; 1 is published.
        pool: earlier networks kept; each takes the memory of one network from the beginning, and none of an optimizer.
        previous: largest number of them asked per step.
        feature_dropout: probability of dropping a channel.
        cutmix: probability of pasting a box from the partner image.
        cutmix_partner: another draw of unlabeled images, or another crop of the same image.
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
        threshold: Annotated[float, Field(ge=0, le=1)] = 0.95,
        previous_threshold: Annotated[float, Field(ge=0, le=1)] = 0.9,
        unlabeled_weight: Annotated[float, Field(ge=0)] = 1.0,
        pool: Annotated[int, Field(ge=1)] = 8,
        previous: Annotated[int, Field(ge=1)] = 3,
        feature_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        cutmix: Annotated[float, Field(ge=0, le=1)] = 0.5,
        cutmix_partner: Literal["shuffle", "same_view"] = "shuffle",
        loss: LabeledLoss = "ce",
    ) -> None:
        super().__init__(task)
        self.student = build()
        self.pool = SnapshotPool(self.student, pool)
        self.register_buffer("best", torch.tensor(-1.0, dtype=torch.float64))
        self.best: Tensor  # score of the newest copy in the pool
        self.strong = StrongAugment(same_light=task.same_light)
        self.boxes: Callable[..., Tensor] = partial(box_mask, p=cutmix)
        self.dropout: Callable[[list[Tensor]], list[Tensor]] = partial(drop_channels, p=feature_dropout)
        self.labeled_loss = supervised_loss(loss, task.ignore_index)
        self.thresholds, self.previous = (threshold, previous_threshold), previous
        self.unlabeled_weight = unlabeled_weight
        self.draws_share_images = cutmix_partner == "same_view"

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of one batch."""
        x_l, y_l = batch.labeled.image, batch.labeled.labels
        weak, other = batch.draw(0), batch.draw(1)  # image (B, *T, 3, H, W), valid (B, H, W)
        has_past = len(self.pool) > 0

        # Labels of the partner images come first, before a training pass moves batch statistics.
        with torch.no_grad(), eval_mode(self.student):
            partner = [pseudo_label(self.student(other.image))]
        logits_l, logits_w, logits_fp, _ = clean_and_dropped(self.student, x_l, weak.image, self.dropout)
        own = [pseudo_label(logits_w)]  # label and confidence, (B, H, W) each
        if has_past:
            own.append(pseudo_label(self.pool(weak.image, most=self.previous)))
            partner.append(pseudo_label(self.pool(other.image, most=self.previous)))

        # Strong views, each with its own colors and box; labels of both kinds travel with the pixels.
        views = [self._strong_view((weak, own), (other, partner)) for _ in range(2)]
        with pseudo_pass(self.student):
            logits_s = self.student(torch.cat([view.image for view in views])).chunk(2)

        loss_l = self.labeled_loss(logits_l, y_l, weight=batch.class_weights)
        losses = []
        for kind, threshold in enumerate(self.thresholds[: len(own)]):
            clean = _loss(logits_fp, *own[kind], weak.valid, threshold)
            mixed = [
                _loss(z, *labels[kind], valid, threshold) for z, (_, valid, labels) in zip(logits_s, views, strict=True)
            ]
            losses.append((mixed[0] + mixed[1]) / 4 + clean / 2)
        rise = (1 - abs(2 * progress.fraction - 1)) if has_past else 0.0
        weight = self.unlabeled_weight
        loss = (loss_l + weight * losses[0] + weight * rise * losses[-1]) / (1 + weight * (1 + rise))

        label, confidence = own[0]
        logs = pseudo_logs(label, confidence, confidence >= self.thresholds[0], weak.valid, self.task.n_classes)
        logs["pseudo/agreement"] = agreement(logits_s[0], views[0].labels[0][0], views[0].valid)
        logs |= {"loss_previous": losses[-1]} if has_past else {}
        return StepOutput(loss, {"loss_sup": loss_l, "loss_unsup": losses[0], **logs})

    def after_evaluation(self, scores: dict[str, float], progress: Progress) -> None:
        """Add the network to the pool when it is better than ever; without validation images, each time."""
        score = scores.get(f"val/{self.task.main_metric}")
        if score is None or score > float(self.best):
            self.best.fill_(-1.0 if score is None else score)
            self.pool.push(self.student)

    def _strong_view(self, own: tuple[Samples, list[Labels]], partner: tuple[Samples, list[Labels]]) -> View:
        """Make a strong view; labels of both kinds travel with the pixels."""
        flat, given = (
            (self.strong(weak.image), weak.valid, *(part for pair in labels for part in pair))
            for weak, labels in (own, partner)
        )
        box = self.boxes(own[0].valid.shape, device=own[0].image.device)
        image, valid, *parts = paste(box, *flat, partner=given)
        return View(image, valid, list(zip(parts[::2], parts[1::2], strict=True)))


def _loss(logits: Logits, label: Tensor, confidence: Tensor, valid: Tensor, threshold: float) -> Tensor:
    # Divided by all valid pixels, not by kept ones: an unsure batch should teach less.
    return masked_cross_entropy(logits, label, valid & (confidence >= threshold), denominator=valid)
