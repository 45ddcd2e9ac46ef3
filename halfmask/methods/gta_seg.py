"""GTA-Seg: pseudo-labels teach an assistant's features, never the student's predictions.

Jin et al., "Semi-Supervised Semantic Segmentation via Gentle Teaching Assistant", NeurIPS 2022, arXiv:2301.07340.

    y_u     = argmax f'(weak(x_u))                               f' = EMA teacher in evaluation mode, no gradient
    x_m     = CutMix of x_u with the next image of the batch: half the area, with probability `cutmix`; y_m likewise
    c       = max f'(x_m) of the teacher in training mode, 0 where it is at most the percentile 100 - percent
    L_u     = sum over kept pixels of (c + 1) CE(h(x_m), y_m) / sum over all pixels of (c + 1)       h = assistant
    1.  h   <- a step of its own optimizer on L_u alone
    2.  f   <- d_a f + (1 - d_a) h, all parameters but those of the prediction head                 (eq. 5)
    3.  f   <- a step on CE(f(x_l), y); x_m passes too, for the batch-norm statistics
    f'      = d f' + (1 - d) f                                    after both
    d_a, d  = min(1 - 1 / (step + 1), decay)                      parameters; statistics are each network's own

The first epoch is supervised; then assistant and teacher start as the student. Prediction head: the `classifier`, two
convolutions more than the last layer with the decoder of U2PL (`dialect: u2pl`).

The sum of weights runs over dropped pixels too (each adds 1), as in the published code.

Deviations: padded pixels teach nothing (`ignore_padding: false` is the published form). The auxiliary head is the
student's alone, as it learns from labels only: nothing is handed over to it.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from halfmask.batch import Batch, Progress
from halfmask.losses.cross_entropy import LabeledLoss, supervised_loss
from halfmask.losses.pseudo_labels import pseudo_label_loss
from halfmask.method import Method, ModelBuilder, Optim, ParamGroup, StepOutput, Update, groups_of
from halfmask.models.model import Model, eval_mode
from halfmask.models.projection import auxiliary_head, auxiliary_logits
from halfmask.task import Task
from halfmask.teaching.ema import ema_copy, lerp_
from halfmask.teaching.pseudo_label import agreement, pseudo_label, pseudo_logs
from halfmask.teaching.ramps import ema_ramp
from halfmask.teaching.weighting import confident_share
from halfmask.views.boxes import half_area_box
from halfmask.views.mixing import partners, paste


class GtaSeg(Method):
    """A student whose features follow an assistant that learns from pseudo-labels.

    Args:
        percent: share of the unlabeled pixels that teach, the most confident ones.
        unlabeled_weight: factor of the assistant's loss; 0: there is no assistant, mixed images only share the pass.
        assistant_decay: largest d_a.
        ema_decay: largest d.
        cutmix: probability of pasting a box of half the area.
        warmup_epochs: supervised epochs at the start.
        ignore_padding: pixels of padding teach nothing.
        aux_weight: factor of the labeled loss of a second head on the encoder's last map but one, which is not shipped;
            0.4 is published on Cityscapes.
        loss: of the labeled images: `ce`, or `ohem`, cross-entropy of the hard pixels.
    """

    status = "implemented"
    supports = frozenset({"class_weights"})
    partial_updates: ClassVar[bool] = True  # student and assistant take turns
    smallest_batch = 2

    def __init__(
        self,
        task: Task,
        build: ModelBuilder,
        *,
        percent: Annotated[float, Field(ge=0, le=100)] = 80.0,
        unlabeled_weight: Annotated[float, Field(ge=0)] = 1.0,
        assistant_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999,
        ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999,
        cutmix: Annotated[float, Field(ge=0, le=1)] = 0.5,
        warmup_epochs: Annotated[float, Field(ge=0)] = 1.0,
        ignore_padding: bool = True,
        aux_weight: Annotated[float, Field(ge=0)] = 0.0,
        loss: LabeledLoss = "ce",
    ) -> None:
        super().__init__(task)
        self.student, self.assistant = build(), build()
        self.assistant.load_state_dict(self.student.state_dict())
        self.teacher = ema_copy(self.student, buffers="own")
        inside = self.student.encoder.channels[-2:][0]  # of a single map, that one
        self.aux_weight, self.aux = aux_weight, auxiliary_head(inside, task.n_classes) if aux_weight > 0 else None
        self.boxes: Callable[..., Tensor] = partial(half_area_box, p=cutmix)
        self.labeled_loss = supervised_loss(loss, task.ignore_index)
        self.percent, self.unlabeled_weight, self.warmup_epochs = percent, unlabeled_weight, warmup_epochs
        self.assistant_decay, self.ema_decay, self.ignore_padding = assistant_decay, ema_decay, ignore_padding

    def updates(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield the assistant's update and, after its features went over, the student's."""
        x_l, y_l = batch.labeled.image, batch.labeled.labels
        if progress.epoch < self.warmup_epochs:
            loss_l = self._labeled(x_l, y_l, batch.class_weights)
            yield Update(StepOutput(loss_l, {"loss_sup": loss_l}), "main")
            return
        image, output = self._assist(batch, x_l)
        if self.unlabeled_weight > 0:  # else weight decay alone would move what is handed over
            yield Update(output, "assistant")
            self._hand_over(ema_ramp(progress.step, self.assistant_decay))
        loss_l = self._labeled(torch.cat((x_l, image)), y_l, batch.class_weights)
        yield Update(StepOutput(loss_l, {"loss_sup": loss_l}), "main")

    def after_update(self, progress: Progress) -> None:
        """Move the teacher; in the supervised epochs all three networks are the same, with their statistics."""
        if progress.epoch < self.warmup_epochs:
            self.assistant.load_state_dict(self.student.state_dict())
            self.teacher.model.load_state_dict(self.student.state_dict())
        else:
            self.teacher.update(self.student, ema_ramp(progress.step, self.ema_decay))

    def predictors(self) -> dict[str, Model]:
        """Return the teacher, then the student."""
        return {"teacher": self.teacher.model, "student": self.student}

    def parameter_groups(self) -> Mapping[str, list[ParamGroup] | Optim]:
        """Return an optimizer for the student and one for the assistant."""
        own = [self.student] if self.aux is None else [self.student, self.aux]
        return {"main": groups_of(*own), "assistant": groups_of(self.assistant)}

    def _labeled(self, images: Tensor, y_l: Tensor, weights: Tensor | None) -> Tensor:
        """Compute the student's loss of the labeled images, which come first; the others only share the pass."""
        maps, size = self.student.encode(images), (images.shape[-2], images.shape[-1])
        logits = self.student.classify(self.student.embed(maps), size)[: len(y_l)]
        loss: Tensor = self.labeled_loss(logits, y_l, weight=weights)
        if self.aux is None:
            return loss
        logits_aux = auxiliary_logits(self.aux, maps, len(y_l), size)
        return loss + self.aux_weight * self.labeled_loss(logits_aux, y_l, weight=weights)

    def _assist(self, batch: Batch, x_l: Tensor) -> tuple[Tensor, StepOutput]:
        """Return the mixed images, and the assistant's loss on them."""
        x_u = batch.draw(0).image  # (B, *T, 3, H, W)
        valid = batch.draw(0).valid if self.ignore_padding else torch.ones_like(batch.draw(0).valid)
        with torch.no_grad(), eval_mode(self.teacher):
            label, confidence = pseudo_label(self.teacher(x_u))  # (B, H, W) each
        own = (x_u, label, valid)
        box = self.boxes(valid.shape, device=x_u.device)
        x_m, y_m, v_m = paste(box, *own, partner=partners("next", *own))

        both = torch.cat((x_l, x_m))
        logits = self.assistant(both)[len(x_l) :]
        with torch.no_grad():
            _, sure = pseudo_label(self.teacher(both)[len(x_l) :])
        keep, weight = confident_share(sure, v_m, self.percent)
        weight = weight if not self.ignore_padding else weight * v_m  # padding counts in no sum
        loss_u = pseudo_label_loss(logits, y_m, keep, valid=v_m, divisor="weight", weight=weight)

        logs = pseudo_logs(label, confidence, keep, valid, self.task.n_classes)
        logs["pseudo/agreement"] = agreement(logits, y_m, v_m)
        return x_m, StepOutput(self.unlabeled_weight * loss_u, {"loss_unsup": loss_u, **logs})

    @torch.no_grad()
    def _hand_over(self, decay: float) -> None:
        """Move the student's parameters toward the assistant's, but for the prediction head."""
        pairs = [
            (mine, theirs)
            for (name, mine), theirs in zip(self.student.named_parameters(), self.assistant.parameters(), strict=True)
            if not name.startswith("classifier.")
        ]
        lerp_([mine for mine, _ in pairs], [theirs for _, theirs in pairs], 1 - decay)
