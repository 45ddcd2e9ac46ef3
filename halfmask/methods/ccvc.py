"""CCVC: two networks that must use different features teach each other; where both are sure and disagree, more.

Wang et al., "Conflict-Based Cross-View Consistency for Semi-Supervised Semantic Segmentation", CVPR 2023,
arXiv:2303.01276.

    g_k     = decoder input of network k (low-level and pyramid features); network b maps its own by a 1x1 convolution
              with norm, ReLU and channel dropout before the fusion convolutions
    L_dis   = mean of 1/2 [(1 + cos(sg g_a, g_b)) + (1 + cos(g_a, sg g_b))]      over positions; of x_l and x_u
    y_k     = argmax f_k(x_u), no gradient
    v_k     = w_c where y_a != y_b and max p_k > gamma, else 1                    p = softmax f_k(x_u)
    L_con   = 1/2 sum_k sum over valid pixels of v_k CE(f_other(x_u), y_k) / number of valid pixels
    L       = w_ce (CE(f_a(x_l), y) + CE(f_b(x_l), y)) / 2 + w_con L_con + w_dis L_dis

With `augment`, labels come from evaluation mode, and L_con is the mean of two terms of the raw view and two of strong
views mixed by CutMix (partner: the image with the mirrored place in the batch).

Both networks are evaluated, and their mean, which is shipped.

Where paper and code differ: the code compares gamma with the largest raw logit; here it is a probability, as the paper
has it (`conflict_on: logits` is the published form).

Deviations: with another decoder than DeepLabV3+ the mapping acts on the encoder's last map. Padded pixels teach nothing
(`ignore_padding: false` is the published form).
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from halfmask.batch import Batch, Progress
from halfmask.errors import RecipeError
from halfmask.losses.cross_entropy import LabeledLoss, supervised_loss
from halfmask.losses.pseudo_labels import pseudo_label_loss
from halfmask.method import Method, ModelBuilder, StepOutput
from halfmask.models.coarse_logits import full
from halfmask.models.ensemble import Ensemble
from halfmask.models.model import Logits, Model, Network, eval_mode
from halfmask.models.statistics import pseudo_logits, pseudo_pass
from halfmask.task import Task
from halfmask.teaching.pseudo_label import agreement, pseudo_label, pseudo_logs
from halfmask.teaching.weighting import conflict_weight
from halfmask.views.mixing import box_mask, paste
from halfmask.views.strong import StrongAugment


class Ccvc(Method):
    """Co-training with a discrepancy of features and weights on confident conflicts.

    Args:
        threshold: gamma, the confidence that makes a disagreement count more; 0 counts all.
        labeled_weight: w_ce.
        consistency_weight: w_con.
        discrepancy_weight: w_dis.
        conflict_weight: w_c.
        conflict_on: compare gamma with probabilities, or with raw logits as the published code does.
        augment: learn from strong mixed views too.
        mapping_dropout: of channels in the mapping of the second network.
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
        threshold: Annotated[float, Field(ge=0)] = 0.9,
        labeled_weight: Annotated[float, Field(ge=0)] = 5.0,
        consistency_weight: Annotated[float, Field(ge=0)] = 2.0,
        discrepancy_weight: Annotated[float, Field(ge=0)] = 1.0,
        conflict_weight: Annotated[float, Field(ge=1)] = 2.0,
        conflict_on: Literal["probabilities", "logits"] = "probabilities",
        augment: bool = False,
        mapping_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        ignore_padding: bool = True,
        loss: LabeledLoss = "ce",
    ) -> None:
        super().__init__(task)
        self.net_a = build()
        if hasattr(self.net_a.decoder, "mapping"):
            self.net_b = build(decoder={"mapping": mapping_dropout})
        elif self.net_a.bottleneck is None:
            self.net_b = build(bottleneck={"name": "mapping", "dropout": mapping_dropout})
        else:
            raise RecipeError(
                "method ccvc maps features of one network before its decoder, where this network has a bottleneck. Use "
                "model.bottleneck=null, or model.decoder.name=deeplabv3plus, which has a place of its own for the map.",
                "H303",
            )
        self.strong = StrongAugment(same_light=task.same_light)
        self.boxes: Callable[..., Tensor] = partial(box_mask, p=1.0)
        self.labeled_loss = supervised_loss(loss, task.ignore_index)
        self.weights = (labeled_weight, consistency_weight, discrepancy_weight)
        self.threshold, self.conflict_weight, self.conflict_on = threshold, conflict_weight, conflict_on
        self.augment, self.ignore_padding = augment, ignore_padding
        self.smallest_batch = 2 if augment else 1

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of one batch."""
        x_l, y_l = batch.labeled.image, batch.labeled.labels
        x_u = batch.draw(0).image  # (B, *T, 3, H, W)
        valid = batch.draw(0).valid if self.ignore_padding else torch.ones_like(batch.draw(0).valid)

        labels = self._in_evaluation_mode(x_u) if self.augment else None
        passes = [(_features(net, x_l), _features(net, x_u, pseudo=True)) for net in (self.net_a, self.net_b)]
        ((logits_la, g_la), (logits_ua, g_ua)), ((logits_lb, g_lb), (logits_ub, g_ub)) = passes
        labels = labels or (full(logits_ua).detach(), full(logits_ub).detach())

        loss_l = sum_of_two(self.labeled_loss, (logits_la, logits_lb), y_l, batch.class_weights)
        loss_dis = (discrepancy(g_la, g_lb) + discrepancy(g_ua, g_ub)) / 2
        loss_u = self._consistency(logits_ua, logits_ub, *labels, valid)
        if self.augment:
            box = self.boxes(valid.shape, device=x_u.device)
            x_m, z_a, z_b, v_m = paste(box, self.strong(x_u), *labels, valid)
            mixed = pseudo_logits(self.net_a, x_m), pseudo_logits(self.net_b, x_m)
            loss_u = (loss_u + self._consistency(*mixed, z_a, z_b, v_m)) / 2

        label, confidence = pseudo_label(labels[0])
        logs = pseudo_logs(label, confidence, valid, valid, self.task.n_classes)
        logs["pseudo/agreement"] = agreement(logits_ub, label, valid)
        terms = {"loss_sup": loss_l, "loss_unsup": loss_u, "loss_discrepancy": loss_dis}
        loss = sum(weight * term for weight, term in zip(self.weights, terms.values(), strict=True))
        return StepOutput(loss, {**terms, **logs})  # type: ignore[arg-type]

    @classmethod
    def control_params(cls) -> dict[str, Any] | None:
        """Return parameters that leave out the consistency and the discrepancy, which takes unlabeled features too."""
        return {"consistency_weight": 0.0, "discrepancy_weight": 0.0}

    def predictors(self) -> Mapping[str, Network]:
        """Return the mean of both networks, then each alone."""
        return {"mean": Ensemble(self.net_a, self.net_b), "net_a": self.net_a, "net_b": self.net_b}

    def _consistency(self, logits_a: Logits, logits_b: Logits, z_a: Tensor, z_b: Tensor, valid: Tensor) -> Tensor:
        """Teach each network with the labels of the other; z are the labeling logits of both."""
        raw = self.conflict_on == "logits"
        y_a, y_b = z_a.argmax(1), z_b.argmax(1)  # (B, H, W) each
        losses = []
        for logits, z, label in ((logits_b, z_a, y_a), (logits_a, z_b, y_b)):
            confidence = z.amax(1) if raw else pseudo_label(z)[1]
            weight = conflict_weight(confidence, y_a, y_b, threshold=self.threshold, weight=self.conflict_weight)
            losses.append(pseudo_label_loss(logits, label, valid, valid=valid, divisor="valid", weight=weight))
        return (losses[0] + losses[1]) / 2

    @torch.no_grad()
    def _in_evaluation_mode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        with eval_mode(self.net_a), eval_mode(self.net_b):
            return full(self.net_a(image)), full(self.net_b(image))


def discrepancy(first: Float[Tensor, "B E h w"], second: Float[Tensor, "B E h w"]) -> Float[Tensor, ""]:
    """Compute L_dis: 0 for opposite features, 2 for equal ones; each side gets a gradient of its own (eq. 3)."""
    first, second = first.float(), second.float()
    one, other = F.cosine_similarity(first.detach(), second, dim=1), F.cosine_similarity(first, second.detach(), dim=1)
    return 1 + (one.mean() + other.mean()) / 2


def sum_of_two(
    loss: Callable[..., Tensor], logits: tuple[Logits, Logits], target: Int[Tensor, "B *S"], weight: object
) -> Float[Tensor, ""]:
    """Average the labeled loss of two networks."""
    return (loss(logits[0], target, weight=weight) + loss(logits[1], target, weight=weight)) / 2


def _features(net: Model, image: Tensor, *, pseudo: bool = False) -> tuple[Logits, Tensor]:
    """Return the logits, and the features that enter the fusion convolutions; `pseudo`: of unlabeled images."""
    with pseudo_pass(net) if pseudo else nullcontext():
        maps = net.encode(image)
        if net.bottleneck is not None:
            maps = [*maps[:-1], net.bottleneck(maps[-1])]
        fused = net.decoder.fuse(maps)
        return net.classify(net.decoder.refine(fused), (image.shape[-2], image.shape[-1])), fused
