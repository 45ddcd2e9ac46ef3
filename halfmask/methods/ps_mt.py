"""PS-MT: two teachers, updated in turns, and a student made strict by feature noise that they choose.

Liu et al., "Perturbed and Strict Mean Teachers for Semi-supervised Semantic Segmentation", CVPR 2022,
arXiv:2111.12903.

    warm-up    the three networks learn from labels, each for itself: teachers on weak, the student on strong views
    k          = 1 in odd epochs, 2 in even ones: the core teacher, which follows the student (d f'_k + (1 - d) f)
    z          = (z_k + z'_j) / 2;  z'_j = logits of the other teacher, of its `top` largest classes; the rest from z_k
    x_m, z_m   = CutMix of strong(x_u) and of z with another image of the batch;  side sqrt(1 - l), l ~ Beta(4, 4)
    r          = adversarial noise at the decoder input of the student: the direction that changes the mean of the
                 teachers' decoders most, of length 2 (T-VAT)
    L_u        = mean over pixels with max softmax z_m >= tau of (max softmax z_m) CE(g(h(x_m) + r), argmax z_m)
    L          = CE(g(h(x_l) + r), y) + omega(t) L_u              omega: rises as a cosine over `ramp_epochs`

The mean of both teachers is shipped, then each teacher and the student are scored.

Where paper and code differ: a branch for negative learning is in the code, switched off. The code's direction of the
noise is a finite difference of 1e-6, which rounding dominates in single precision (`vat_direction: finite`); here it is
the exact one (`halfmask.views.vat`).

Deviations: scores are of the mean of probabilities instead of logits. Padded pixels teach nothing. The weight of the
noise is that of each decoder's `refine` and `classifier`; a decoder that does all in `fuse` leaves the logits to it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from halfmask.batch import Batch, Progress
from halfmask.losses.cross_entropy import LabeledLoss, supervised_loss
from halfmask.losses.pseudo_labels import pseudo_label_loss
from halfmask.method import Method, ModelBuilder, StepOutput
from halfmask.models.coarse_logits import full
from halfmask.models.ensemble import Ensemble
from halfmask.models.model import Logits, Model, Network
from halfmask.models.statistics import pseudo_pass
from halfmask.task import Task
from halfmask.teaching.ema import Teacher
from halfmask.teaching.pseudo_label import agreement, pseudo_label, pseudo_logs
from halfmask.views.boxes import beta_box
from halfmask.views.mixing import partners, paste
from halfmask.views.strong import StrongAugment
from halfmask.views.vat import Adversarial


class PsMt(Method):
    """Two mean teachers, confidence-weighted labels and adversarial features.

    Args:
        threshold: tau, the confidence a pixel needs to teach.
        unlabeled_weight: omega at its end; published: 0.06 with 92 labels of Pascal, 0.6 to 1.5 with more, 3 on
            Cityscapes.
        ramp_epochs: length of the rise of the weight.
        warmup_epochs: epochs in which all networks learn from labels alone.
        ema_decay: d.
        top: classes of the other teacher that count.
        noise: length of the adversarial noise.
        vat_direction: `exact`, or the published finite difference.
        loss: of the labeled images: `ce`, or `ohem`, cross-entropy of the hard pixels.
    """

    status = "implemented"
    supports = frozenset({"class_weights"})
    partial_updates: ClassVar[bool] = True  # the teachers get gradients in the first epochs only
    smallest_batch = 2

    def __init__(
        self,
        task: Task,
        build: ModelBuilder,
        *,
        threshold: Annotated[float, Field(ge=0, le=1)] = 0.6,
        unlabeled_weight: Annotated[float, Field(ge=0)] = 0.6,
        ramp_epochs: Annotated[float, Field(ge=0)] = 12.0,
        warmup_epochs: Annotated[float, Field(ge=0)] = 5.0,
        ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.996,
        top: Annotated[int, Field(ge=1)] = 7,
        noise: Annotated[float, Field(ge=0)] = 2.0,
        vat_direction: Literal["exact", "finite"] = "exact",
        loss: LabeledLoss = "ce",
    ) -> None:
        super().__init__(task)
        self.student = build()
        self.teacher_a, self.teacher_b = build(), build()
        # In a tuple, so that they are no modules. The optimizer takes what learns now.
        self._averages = (Teacher(self.teacher_a), Teacher(self.teacher_b))
        self._let_teachers_learn(True)
        self.strong = StrongAugment(same_light=task.same_light)
        self.boxes: Callable[..., Tensor] = partial(beta_box, beta=(4.0, 4.0))
        self.vat = Adversarial(eps=noise, direction=vat_direction, xi=1e-6)
        self.labeled_loss = supervised_loss(loss, task.ignore_index)
        self.threshold, self.ema_decay, self.top = threshold, ema_decay, top
        self.unlabeled_weight, self.ramp_epochs, self.warmup_epochs = unlabeled_weight, ramp_epochs, warmup_epochs

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of one batch."""
        x_l, y_l = batch.labeled.image, batch.labeled.labels
        loss_of = partial(self.labeled_loss, weight=batch.class_weights)
        warm = progress.epoch < self.warmup_epochs
        self._let_teachers_learn(warm)
        if warm:
            return self._warm_up(x_l, y_l, loss_of)
        x_u, valid = batch.draw(0).image, batch.draw(0).valid  # (B, *T, 3, H, W), (B, H, W)

        with torch.no_grad():
            core, other = self._in_turn(progress.epoch)
            z_core, z_other = full(core(x_u)), full(other(x_u))  # (B, K, H, W)
            z = (z_core + strict(z_core, z_other, self.top)) / 2
        label, confidence = pseudo_label(z)
        logs = pseudo_logs(label, confidence, valid & (confidence >= self.threshold), valid, self.task.n_classes)

        own = (self.strong(x_u), label, confidence, valid)
        box = self.boxes(valid.shape, device=x_u.device)
        x_m, y_m, c_m, v_m = paste(box, *own, partner=partners("permutation", *own))

        loss_l = loss_of(self._disturbed(self.strong(x_l)), y_l)
        with pseudo_pass(self.student):
            logits = self._disturbed(x_m)
        keep = v_m & (c_m >= self.threshold)
        loss_u = pseudo_label_loss(logits, y_m, keep, valid=v_m, divisor="kept", weight=c_m)
        weight = self.unlabeled_weight * self._rise(progress.epoch)

        logs["pseudo/agreement"] = agreement(logits, y_m, v_m)
        return StepOutput(loss_l + weight * loss_u, {"loss_sup": loss_l, "loss_unsup": loss_u, **logs})

    def after_update(self, progress: Progress) -> None:
        """Move the core teacher of the step that was just done."""
        if progress.epoch >= self.warmup_epochs:
            self._in_turn(progress.epoch)[0].update(self.student, self.ema_decay)

    def predictors(self) -> Mapping[str, Network]:
        """Return the mean of both teachers, each of them, then the student."""
        first, second = self._networks()
        return {"mean": Ensemble(first, second), "teacher_a": first, "teacher_b": second, "student": self.student}

    def train(self, mode: bool = True) -> "PsMt":
        """Keep the teachers in evaluation mode; the first epochs switch them over for a moment."""
        super().train(mode)
        self.teacher_a.eval()
        self.teacher_b.eval()
        return self

    def _in_turn(self, epoch: float) -> tuple[Teacher[Model], Teacher[Model]]:
        """Return the core teacher of an epoch, and the other one."""
        first, second = self._averages
        return (first, second) if int(epoch) % 2 == 1 else (second, first)

    def _networks(self) -> tuple[Model, Model]:
        return self.teacher_a, self.teacher_b

    def _let_teachers_learn(self, learn: bool) -> None:
        """Set whether the networks learn by themselves, as in the first epochs; frozen parts never do."""
        for net in self._networks():
            for own, parameter in zip(self.student.parameters(), net.parameters(), strict=True):
                parameter.requires_grad_(learn and own.requires_grad)

    def _warm_up(self, x_l: Tensor, y_l: Tensor, loss_of: Callable[..., Tensor]) -> StepOutput:
        loss_l = loss_of(self.student(self.strong(x_l)), y_l)
        loss = loss_l
        for net in self._networks():
            with _training(net):
                loss = loss + loss_of(net(x_l), y_l)
        return StepOutput(loss, {"loss_sup": loss_l})

    def _rise(self, epoch: float) -> float:
        done = min((epoch - self.warmup_epochs) / self.ramp_epochs, 1.0) if self.ramp_epochs else 1.0
        return (1 - math.cos(math.pi * done)) / 2

    def _disturbed(self, image: Tensor) -> Logits:
        """Return the student's logits with the adversarial noise at its decoder input."""
        net = self.student
        fused = _fused(net, image)
        noise = self.vat.sample(fused, self._decoders)
        return net.classify(net.decoder.refine(fused + noise), (image.shape[-2], image.shape[-1]))

    def _decoders(self, fused: Float[Tensor, "B E h w"]) -> Float[Tensor, "B h w K"]:
        """Return the mean of both teachers' logits at the classifier's resolution, classes last."""
        first, second = (net.classifier(net.decoder.refine(fused)) for net in self._networks())
        mean: Tensor = (first + second) / 2
        return mean.movedim(1, -1)


def strict(core: Float[Tensor, "B K *S"], other: Float[Tensor, "B K *S"], top: int) -> Float[Tensor, "B K *S"]:
    """Keep the `top` largest logits of each pixel of the other teacher; the rest come from the core teacher."""
    best = other.topk(min(top, other.shape[1]), dim=1).indices
    return torch.where(torch.zeros_like(other, dtype=torch.bool).scatter_(1, best, True), other, core)


def _fused(net: Model, image: Tensor) -> Tensor:
    maps = net.encode(image)
    if net.bottleneck is not None:
        maps = [*maps[:-1], net.bottleneck(maps[-1])]
    return net.decoder.fuse(maps)


@contextmanager
def _training(net: nn.Module) -> Iterator[None]:
    net.train()
    try:
        yield
    finally:
        net.eval()
