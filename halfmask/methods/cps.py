"""CPS: two networks of one architecture teach each other with hard labels.

Chen et al., "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision", CVPR 2021, arXiv:2106.01226.

    y_a, y_b = argmax f_a(x), argmax f_b(x)                      hard labels, no gradient, all pixels

with CutMix (the published numbers; Section 4.3):
    M        = three boxes;  x_m = M x_1 + (1 - M) x_0           x_0, x_1: two independent unlabeled batches
    y_k      = the same mixture of the labels of x_0 and x_1
    L_cps    = CE(f_a(x_m), y_b) + CE(f_b(x_m), y_a)             unlabeled images only

plain (`cutmix: false`):
    L_cps    = CE(f_a(x), y_b) + CE(f_b(x), y_a)                 x: labeled and unlabeled images together

    L        = CE(f_a(x_l), y) + CE(f_b(x_l), y) + lambda L_cps

The networks differ in their random heads only. The first one is evaluated and shipped, as published; `ensemble` adds
the mean of both and ships it.

As published, the labels of the mixed form come from passes in training mode, whose batches move the batch-norm
statistics (`label_mode: eval` labels in evaluation mode). One optimizer holds both networks: without clipping by the
norm, this is what two of one kind compute.

Deviations: padded pixels teach nothing (`ignore_padding: false` is the published form); the published networks have
a leaky ReLU in the pyramid and dilations of 2, 4, 8 in the last stage, ours are those of `model`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from halfmask.batch import Batch, Progress, Samples
from halfmask.losses.cross_entropy import LabeledLoss, supervised_loss
from halfmask.losses.pseudo_labels import pseudo_label_loss
from halfmask.method import Method, ModelBuilder, StepOutput
from halfmask.models.ensemble import Ensemble
from halfmask.models.model import Logits, Model, Network, eval_mode
from halfmask.models.statistics import pseudo_logits, pseudo_pass
from halfmask.task import Task
from halfmask.teaching.pseudo_label import agreement, pseudo_label, pseudo_logs
from halfmask.views.boxes import several_boxes
from halfmask.views.mixing import paste


class Cps(Method):
    """Cross pseudo supervision of two networks, with CutMix or plain.

    Args:
        unlabeled_weight: lambda; the published value grows with the data set: 1.5 or 1 (with CutMix) on Pascal, 6 or 5
            on Cityscapes.
        cutmix: mix two unlabeled images; otherwise the networks teach each other on the images as they are.
        boxes: rectangles of the mixture.
        label_mode: mode of the networks that label the mixture.
        ensemble: evaluate the mean of both networks too, and ship it.
        ignore_padding: pixels of padding teach nothing.
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
        cutmix: bool = True,
        boxes: Annotated[int, Field(ge=1)] = 3,
        label_mode: Literal["train", "eval"] = "train",
        ensemble: bool = False,
        ignore_padding: bool = True,
        loss: LabeledLoss = "ce",
    ) -> None:
        super().__init__(task)
        self.net_a, self.net_b = build(), build()
        self.boxes: Callable[..., Tensor] = partial(several_boxes, boxes=boxes)
        self.labeled_loss = supervised_loss(loss, task.ignore_index)
        self.unlabeled_weight, self.cutmix, self.ignore_padding = unlabeled_weight, cutmix, ignore_padding
        self.draws = 2 if cutmix else 1
        self.labels_in_eval, self.ensemble = label_mode == "eval", ensemble

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of one batch."""
        x_l, y_l = batch.labeled.image, batch.labeled.labels
        if self.cutmix:
            mixed, label_a, label_b, confidence, keep = self._mixed(batch.draw(0), batch.draw(1))
            logits = [(net(x_l), pseudo_logits(net, mixed)) for net in (self.net_a, self.net_b)]
            (logits_la, logits_a), (logits_lb, logits_b) = logits
        else:
            both = torch.cat((x_l, batch.draw(0).image))
            logits_a, logits_b = self.net_a(both), self.net_b(both)
            logits_la, logits_lb = logits_a[: len(x_l)], logits_b[: len(x_l)]
            (label_a, confidence), (label_b, _) = pseudo_label(logits_a), pseudo_label(logits_b)
            keep = self._counted(torch.cat((batch.labeled.valid, batch.draw(0).valid)))

        supervised = partial(self.labeled_loss, weight=batch.class_weights)
        loss_l = supervised(logits_la, y_l) + supervised(logits_lb, y_l)
        loss_u = cross_loss(logits_a, label_b, keep) + cross_loss(logits_b, label_a, keep)

        logs = pseudo_logs(label_a, confidence, keep, keep, self.task.n_classes)
        logs["pseudo/agreement"] = agreement(logits_b, label_a, keep)
        loss = loss_l + self.unlabeled_weight * loss_u
        return StepOutput(loss, {"loss_sup": loss_l, "loss_unsup": loss_u, **logs})

    def predictors(self) -> Mapping[str, Network]:
        """Return both networks; the first one is shipped, or their mean (`ensemble`)."""
        mean = {"mean": Ensemble(self.net_a, self.net_b)} if self.ensemble else {}
        return {**mean, "net_a": self.net_a, "net_b": self.net_b}

    def _mixed(self, first: Samples, second: Samples) -> tuple[Tensor, ...]:
        """Return the mixed images, the labels of both networks, the confidence of the first, and which pixels count."""
        labels = [self._labeled(net, draw.image) for draw in (first, second) for net in (self.net_a, self.net_b)]
        (a_0, conf_0), (b_0, _), (a_1, conf_1), (b_1, _) = labels
        box = self.boxes(first.valid.shape, device=first.image.device)
        own = (first.image, a_0, b_0, conf_0, self._counted(first.valid))
        return paste(box, *own, partner=(second.image, a_1, b_1, conf_1, self._counted(second.valid)))

    @torch.no_grad()
    def _labeled(self, net: Model, image: Tensor) -> tuple[Tensor, Tensor]:
        with eval_mode(net) if self.labels_in_eval else pseudo_pass(net):
            return pseudo_label(net(image))

    def _counted(self, valid: Tensor) -> Tensor:
        return valid if self.ignore_padding else torch.ones_like(valid)


def cross_loss(logits: Logits, label: Int[Tensor, "B H W"], keep: Bool[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Average the cross-entropy of one network to the labels of the other over the pixels that count."""
    return pseudo_label_loss(logits, label, keep, valid=keep, divisor="kept")
