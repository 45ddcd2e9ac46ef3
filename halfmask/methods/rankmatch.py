"""RankMatch: UniMatch, and strong features that must rank their neighbors as the weak ones do.

Mai et al., "RankMatch: Exploring the Better Consistency Regularization for Semi-supervised Semantic Segmentation", CVPR
2024; on UniMatch (Yang et al., CVPR 2023, arXiv:2208.09910).

    L_uni   = UniMatch: (CE(f(x_l), y) + 1/4 L_1 + 1/4 L_2 + 1/2 L_fp) / 2;  L_v on strong CutMix views, L_fp on the
              weak view with dropped channels, each by pseudo-labels above tau, divided by all valid pixels
    g_v     = embedding (before the classifier) of the strong view v
    h_v     = the same mixture of the embeddings of the weak images       no gradient
    L_rank  = 1/2 sum_v rank(h_v, g_v)                           `halfmask.losses.rank`: 64 agents, 4 of them ranked
    L       = L_uni + mu L_rank

Where paper and code differ: the partner of CutMix is another crop of the same image in UniMatch's code, by accident
(`cutmix_partner: same_view`, which recipes with published numbers use).

Deviations: the weak embeddings of the partner images come from the pass in evaluation mode that labels them; those of
the images themselves from the training pass with the labeled images. A batch without a valid pixel gives 0, not NaN.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from halfmask.batch import Batch, Progress, Samples
from halfmask.losses.cross_entropy import LabeledLoss, masked_cross_entropy, supervised_loss
from halfmask.losses.rank import rank_consistency
from halfmask.method import Method, ModelBuilder, StepOutput
from halfmask.models.model import Logits, eval_mode
from halfmask.models.statistics import pseudo_pass
from halfmask.task import Task
from halfmask.teaching.pseudo_label import agreement, pseudo_label, pseudo_logs
from halfmask.views.channel_dropout import clean_and_dropped, drop_channels
from halfmask.views.mixing import box_mask, paste
from halfmask.views.strong import StrongAugment


class RankMatch(Method):
    """UniMatch with a consistency of ranked correlations.

    Args:
        threshold: tau, the confidence a pseudo-label needs to be used.
        unlabeled_weight: lambda of UniMatch; 1 is published.
        rank_weight: mu; 0 is UniMatch.
        agents: pixels of each image that all others are compared with.
        top: agents that are ranked for each pixel; the cost grows with its factorial.
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
        unlabeled_weight: Annotated[float, Field(ge=0)] = 1.0,
        rank_weight: Annotated[float, Field(ge=0)] = 0.1,
        agents: Annotated[int, Field(ge=2)] = 64,
        top: Annotated[int, Field(ge=2, le=6)] = 4,
        feature_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        cutmix: Annotated[float, Field(ge=0, le=1)] = 0.5,
        cutmix_partner: Literal["shuffle", "same_view"] = "shuffle",
        loss: LabeledLoss = "ce",
    ) -> None:
        super().__init__(task)
        self.student = build()
        self.strong = StrongAugment(same_light=task.same_light)
        self.boxes: Callable[..., Tensor] = partial(box_mask, p=cutmix)
        self.dropout: Callable[[list[Tensor]], list[Tensor]] = partial(drop_channels, p=feature_dropout)
        self.rank: Callable[[Tensor, Tensor], Tensor] = partial(rank_consistency, agents=agents, top=top)
        self.labeled_loss = supervised_loss(loss, task.ignore_index)
        self.threshold, self.unlabeled_weight, self.rank_weight = threshold, unlabeled_weight, rank_weight
        self.draws_share_images = cutmix_partner == "same_view"

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of one batch."""
        x_l, y_l = batch.labeled.image, batch.labeled.labels
        x_u, valid = batch.draw(0).image, batch.draw(0).valid  # (B, *T, 3, H, W), (B, H, W)
        size = (x_u.shape[-2], x_u.shape[-1])

        # Labels of the partner images come first, before a training pass moves batch statistics.
        other, h_other = self._partner(batch.draw(1))
        logits_l, logits_w, logits_fp, h_own = clean_and_dropped(self.student, x_l, x_u, self.dropout)
        label, confidence = pseudo_label(logits_w)  # (B, H, W) each
        logs = pseudo_logs(label, confidence, confidence >= self.threshold, valid, self.task.n_classes)

        # Strong views, each with its own colors and box; weak embeddings are mixed by the same box.
        boxes = [self.boxes(valid.shape, device=x_u.device) for _ in range(2)]
        views = [
            paste(box, self.strong(x_u), label, confidence, valid, partner=(self.strong(other[0]), *other[1:]))
            for box in boxes
        ]
        with pseudo_pass(self.student):
            g = self.student.embed(self.student.encode(torch.cat([view[0] for view in views])))  # (2 B, D, h, w)
        logits_s = self.student.classify(g, size).chunk(2)

        loss_l = self.labeled_loss(logits_l, y_l, weight=batch.class_weights)
        first, second = (self._loss(logits, *view[1:]) for logits, view in zip(logits_s, views, strict=True))
        loss_u = (first + second) / 4 + self._loss(logits_fp, label, confidence, valid) / 2
        ranks = [
            self.rank(paste(_small(box, h_own), h_own, partner=(h_other,))[0], strong)
            for box, strong in zip(boxes, g.chunk(2), strict=True)
        ]
        loss_rank = (ranks[0] + ranks[1]) / 2

        weight = self.unlabeled_weight
        loss = (loss_l + weight * loss_u) / (1 + weight) + self.rank_weight * loss_rank
        logs["pseudo/agreement"] = agreement(logits_s[0], views[0][1], views[0][3])
        return StepOutput(loss, {"loss_sup": loss_l, "loss_unsup": loss_u, "loss_rank": loss_rank, **logs})

    @classmethod
    def control_params(cls) -> dict[str, Any] | None:
        """Return parameters that leave out the ranks too."""
        return {"unlabeled_weight": 0.0, "rank_weight": 0.0}

    @torch.no_grad()
    def _partner(self, weak: Samples) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return image, pseudo-label, confidence and validity of the partner images, and their embedding."""
        with eval_mode(self.student):
            embedding = self.student.embed(self.student.encode(weak.image))
            logits = self.student.classify(embedding, (weak.image.shape[-2], weak.image.shape[-1]))
        return (weak.image, *pseudo_label(logits), weak.valid), embedding

    def _loss(self, logits: Logits, label: Tensor, confidence: Tensor, valid: Tensor) -> Tensor:
        # Divided by all valid pixels, not by kept ones: an unsure batch should teach less.
        keep = valid & (confidence >= self.threshold)
        return masked_cross_entropy(logits, label, keep, denominator=valid)


def _small(box: Tensor, features: Tensor) -> Tensor:
    return F.interpolate(box[:, None].float(), size=features.shape[-2:], mode="nearest")[:, 0].bool()
