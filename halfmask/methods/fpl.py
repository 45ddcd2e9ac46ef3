"""FPL: instead of one label, the few best classes of a pixel are accepted, one of which is right.

Qiao et al., "Fuzzy Positive Learning for Semi-Supervised Semantic Segmentation", CVPR 2023, arXiv:2210.08519; on CPS
(Chen et al., CVPR 2021, arXiv:2106.01226) with CutMix.

    M, x_m   = three boxes; M x_1 + (1 - M) x_0                  x_0, x_1: two independent unlabeled batches
    z_k      = the same mixture of the logits of network k       no gradient
    P_k      = the n best classes of softmax z_k;  n = the smallest number below K_max with which positives and the
               next class together reach T, else K_max
    l(s, P)  = log(1 + sum_{c in P} e^(-s_c) * sum_{c not in P} e^(s_c))      s: logits of the other network on x_m
    L_fpl    = mean over pixels of g * l(f_a(x_m), P_b), and the same with a and b exchanged
    L        = CE(f_a(x_l), y) + CE(f_b(x_l), y) + lambda * L_fpl * [L_cps / L_fpl]          [.]: no gradient

The last factor gives each of the two terms the size that the cross-entropy to the best class (CPS) would have, so that
the weight of CPS can be kept. g is 1, or grows with the margin to the best class left out (`weight`).

As published, the networks label in training mode (`label_mode`).

Deviations: padded pixels teach nothing (`ignore_padding: false` is the published form).
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from halfmask.batch import Batch, Progress, Samples
from halfmask.errors import RecipeError
from halfmask.losses.cross_entropy import LabeledLoss, supervised_loss
from halfmask.losses.pseudo_labels import FuzzyWeight, fuzzy_loss, fuzzy_positives, fuzzy_weight, pseudo_label_loss
from halfmask.method import Method, ModelBuilder, StepOutput
from halfmask.models.coarse_logits import full
from halfmask.models.model import Model, eval_mode
from halfmask.models.statistics import pseudo_logits, pseudo_pass
from halfmask.task import Task
from halfmask.teaching.pseudo_label import agreement, pseudo_label, pseudo_logs
from halfmask.views.boxes import several_boxes
from halfmask.views.mixing import paste


class Fpl(Method):
    """Two networks teach each other with sets of classes.

    Args:
        unlabeled_weight: lambda, as for CPS.
        threshold: T, the probability that the positives and the next class reach together.
        most: K_max, the largest number of positive classes.
        weight: g, by the margin to the best class left out.
        boxes: rectangles of the mixture.
        label_mode: mode of the networks that label the mixture.
        ignore_padding: pixels of padding teach nothing.
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
        unlabeled_weight: Annotated[float, Field(ge=0)] = 1.0,
        threshold: Annotated[float, Field(ge=0, le=1)] = 0.9,
        most: Annotated[int, Field(ge=1)] = 3,
        weight: FuzzyWeight = "none",
        boxes: Annotated[int, Field(ge=1)] = 3,
        label_mode: Literal["train", "eval"] = "train",
        ignore_padding: bool = True,
        loss: LabeledLoss = "ce",
    ) -> None:
        super().__init__(task)
        # A pixel needs a class that is no positive: with two classes there is one positive, as in CPS.
        self.most = min(most, task.n_classes - 1)
        if self.most < 1:
            raise RecipeError(f"method fpl needs two classes or more, the data has {task.n_classes}. Use method cps.")
        self.net_a, self.net_b = build(), build()
        self.boxes: Callable[..., Tensor] = partial(several_boxes, boxes=boxes)
        self.labeled_loss = supervised_loss(loss, task.ignore_index)
        self.unlabeled_weight, self.threshold, self.weight = unlabeled_weight, threshold, weight
        self.ignore_padding, self.labels_in_eval = ignore_padding, label_mode == "eval"

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of one batch."""
        x_l, y_l = batch.labeled.image, batch.labeled.labels
        mixed, z_a, z_b, keep = self._mixed(batch.draw(0), batch.draw(1))

        (logits_la, logits_a), (logits_lb, logits_b) = [
            (net(x_l), pseudo_logits(net, mixed)) for net in (self.net_a, self.net_b)
        ]

        supervised = partial(self.labeled_loss, weight=batch.class_weights)
        loss_l = supervised(logits_la, y_l) + supervised(logits_lb, y_l)
        loss_u = self._fuzzy(full(logits_a), z_b, keep) + self._fuzzy(full(logits_b), z_a, keep)

        label, confidence = pseudo_label(z_a)
        logs = pseudo_logs(label, confidence, keep, keep, self.task.n_classes)
        logs["pseudo/agreement"] = agreement(logits_b, label, keep)
        loss = loss_l + self.unlabeled_weight * loss_u
        return StepOutput(loss, {"loss_sup": loss_l, "loss_unsup": loss_u, **logs})

    def predictors(self) -> dict[str, Model]:
        """Return both networks; the first one is shipped."""
        return {"net_a": self.net_a, "net_b": self.net_b}

    def _fuzzy(self, logits: Tensor, teacher: Tensor, keep: Tensor) -> Tensor:
        positive, mean, left_out = fuzzy_positives(teacher.float(), most=self.most, threshold=self.threshold)
        pixels = fuzzy_loss(logits.float(), positive) * fuzzy_weight(self.weight, mean, left_out)
        loss = pixels.masked_fill(~keep, 0.0).sum() / keep.sum().clamp_min(1)
        with torch.no_grad():  # the size that CPS would have
            plain = pseudo_label_loss(logits, pseudo_label(teacher)[0], keep, valid=keep, divisor="kept")
        return loss * (plain / loss.detach().clamp_min(1e-12))

    def _mixed(self, first: Samples, second: Samples) -> tuple[Tensor, ...]:
        """Return the mixed images, the mixed logits of both networks, and which pixels count."""
        logits = [self._logits(net, draw.image) for draw in (first, second) for net in (self.net_a, self.net_b)]
        box = self.boxes(first.valid.shape, device=first.image.device)
        own = (first.image, *logits[:2], self._counted(first.valid))
        return paste(box, *own, partner=(second.image, *logits[2:], self._counted(second.valid)))

    @torch.no_grad()
    def _logits(self, net: Model, image: Tensor) -> Tensor:
        with eval_mode(net) if self.labels_in_eval else pseudo_pass(net):
            return full(net(image))

    def _counted(self, valid: Tensor) -> Tensor:
        return valid if self.ignore_padding else torch.ones_like(valid)
