"""U2PL: unreliable pixels are no labels, but they say which classes they are not.

Wang et al., "Semi-Supervised Semantic Segmentation Using Unreliable Pseudo-Labels", CVPR 2022, arXiv:2203.03884.

    y_u     = argmax f'(weak(x_u))                               f' = EMA teacher in evaluation mode, no gradient
    x_m     = CutMix of x_u with the next image of the batch: half the area, with probability `cutmix`; y_m likewise
    H       = entropy of the teacher in training mode on x_m
    L_u     = CE(f(x_m), y_m) over pixels with H below the percentile q_e, times N / kept (eq. 4)
              q_e = 100 - (100 - percent) (1 - e/E)              e: epoch, E: all epochs
    A_c     = student vectors of reliable pixels (labeled; unlabeled with H <= percentile a_e) of class c with
              p'_c > 0.3;  z_c = mean teacher vector of the reliable pixels of class c;  a_e = 20 (1 - e/E)
    Q_c     = queue of teacher vectors that are surely not c (eq. 11, 12): unlabeled pixels with H >= percentile
              100 - a_e where c is ranked low_rank <= r < high_rank; labeled pixels of other classes with r < low_rank
    L_c     = mean over present classes c, over anchors a of A_c, of
              -log e^(cos(a, z_c) / t) / (e^(cos(a, z_c) / t) + sum_{n of Q_c} e^(cos(a, n) / t))
    L       = CE(f(x_l), y) + lambda_a CE(f_aux(x_l), y) + lambda_u L_u + lambda_c L_c
    f'      = d f' + (1 - d) f,  d = min(1 - 1 / (step + 1), ema_decay)      parameters; statistics are its own

The first epoch is supervised; then the teacher starts as the student. Vectors come from a head beside the classifier.

Where paper and code differ, the paper is followed:
  * The code takes negatives of class c only among pixels labeled c, so labeled ones are never taken and the queues fill
    far more slowly (`negatives: published`).
  * The code keeps anchors and prototypes of all classes in a list and reads it at i for the i-th class that is present,
    so that they meet the queue of another class wherever one is missing before (`negatives: published_indexing`).
  * The code's default of lambda_c is 1, the paper's 0.1.

Deviations: queues of all classes have one size (published: 30000, and 50000 for class 0); at 30000 they take 0.6 GB for
21 classes. Padded pixels teach nothing (`ignore_padding: false` is the published form).
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor

from halfmask.batch import Batch, Progress
from halfmask.losses.contrast import anchor_contrast
from halfmask.losses.cross_entropy import LabeledLoss, supervised_loss
from halfmask.losses.pseudo_labels import pseudo_label_loss
from halfmask.method import Method, ModelBuilder, StepOutput
from halfmask.models.coarse_logits import full
from halfmask.models.model import Logits, Model, eval_mode
from halfmask.models.projection import auxiliary_head, auxiliary_logits, representation_head
from halfmask.task import Task
from halfmask.teaching.ema import ema_copy
from halfmask.teaching.pseudo_label import agreement, pseudo_label, pseudo_logs
from halfmask.teaching.queues import ClassQueues
from halfmask.teaching.ramps import ema_ramp
from halfmask.teaching.weighting import drawn_true, entropy, entropy_below, masked_percentile
from halfmask.views.boxes import half_area_box
from halfmask.views.mixing import partners, paste


class U2PL(Method):
    """Mean teacher with entropy percentiles and contrast against unreliable pixels.

    Args:
        percent: share of the unlabeled pixels that teach in the first epoch; it rises to 100.
        unlabeled_weight: lambda_u.
        contrast_weight: lambda_c.
        aux_weight: factor of the labeled loss of a second head on the encoder's last map but one, which learns with the
            network and is not shipped; 0.4 is published on Cityscapes.
        negatives: which pixels enter the queues: by the rule of the `paper`, or of the `published` code;
            `published_indexing` pairs classes as that code does, too.
        queue: vectors remembered per class.
        anchors: pixels of each class that are compared, per step.
        width: of the vectors.
        ema_decay: largest d.
        cutmix: probability of pasting a box of half the area.
        warmup_epochs: supervised epochs at the start.
        ignore_padding: pixels of padding teach nothing.
        loss: of the labeled images: `ce`, or `ohem`, cross-entropy of the hard pixels.
    """

    status = "implemented"
    supports = frozenset({"class_weights"})
    partial_updates: ClassVar[bool] = True  # the head of vectors learns after the supervised epochs
    smallest_batch = 2
    low_rank, high_rank = 3, 20
    negatives_each, temperature, sure = 50, 0.5, 0.3

    def __init__(
        self,
        task: Task,
        build: ModelBuilder,
        *,
        percent: Annotated[float, Field(ge=0, le=100)] = 80.0,
        unlabeled_weight: Annotated[float, Field(ge=0)] = 1.0,
        contrast_weight: Annotated[float, Field(ge=0)] = 0.1,
        aux_weight: Annotated[float, Field(ge=0)] = 0.0,
        negatives: Literal["paper", "published", "published_indexing"] = "paper",
        queue: Annotated[int, Field(ge=1)] = 30_000,
        anchors: Annotated[int, Field(ge=1)] = 256,
        width: Annotated[int, Field(ge=1)] = 256,
        ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99,
        cutmix: Annotated[float, Field(ge=0, le=1)] = 0.5,
        warmup_epochs: Annotated[float, Field(ge=0)] = 1.0,
        ignore_padding: bool = True,
        loss: LabeledLoss = "ce",
    ) -> None:
        super().__init__(task)
        self.student = build()
        self.head = representation_head(self.student.decoder.embedding, width)
        inside = self.student.encoder.channels[-2:][0]  # of a single map, that one
        self.aux_weight, self.aux = aux_weight, auxiliary_head(inside, task.n_classes) if aux_weight > 0 else None
        self.teacher, self.teacher_head = ema_copy(self.student, buffers="own"), ema_copy(self.head, buffers="own")
        self.queues = ClassQueues(task.n_classes, queue, width)
        self.boxes: Callable[..., Tensor] = partial(half_area_box, p=cutmix)
        self.labeled_loss = supervised_loss(loss, task.ignore_index)
        self.percent, self.ema_decay, self.warmup_epochs = percent, ema_decay, warmup_epochs
        self.unlabeled_weight, self.contrast_weight = unlabeled_weight, contrast_weight
        self.anchors, self.negatives, self.ignore_padding = anchors, negatives, ignore_padding

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of one batch."""
        x_l, y_l = batch.labeled.image, batch.labeled.labels
        if progress.epoch < self.warmup_epochs:
            maps = self.student.encode(x_l)
            logits_l = self.student.classify(self.student.embed(maps), (x_l.shape[-2], x_l.shape[-1]))
            loss_l = self._labeled(logits_l, maps, y_l, batch.class_weights)
            return StepOutput(loss_l, {"loss_sup": loss_l})
        x_u = batch.draw(0).image  # (B, *T, 3, H, W)
        valid = batch.draw(0).valid if self.ignore_padding else torch.ones_like(batch.draw(0).valid)

        with torch.no_grad(), eval_mode(self.teacher):
            label, confidence = pseudo_label(self.teacher(x_u))  # (B, H, W) each
        own = (x_u, label, valid)
        box = self.boxes(valid.shape, device=x_u.device)
        x_m, y_m, v_m = paste(box, *own, partner=partners("next", *own))

        both, size = torch.cat((x_l, x_m)), (x_l.shape[-2], x_l.shape[-1])
        maps = self.student.encode(both)
        embedding = self.student.embed(maps)
        logits = self.student.classify(embedding, size)
        with torch.no_grad():
            embedding_t = self.teacher.model.embed(self.teacher.model.encode(both))
            coarse_t = self.teacher.model.classify(embedding_t, (embedding_t.shape[-2], embedding_t.shape[-1]))
            logits_t = full(self.teacher.model.classify(embedding_t, size))[len(x_l) :]
            h = entropy(logits_t)  # (B, H, W)

        late = 1 - progress.fraction
        keep = entropy_below(h, v_m, 100 - (100 - self.percent) * late)
        loss_l = self._labeled(logits[: len(x_l)], maps, y_l, batch.class_weights)
        loss_u = pseudo_label_loss(logits[len(x_l) :], y_m, keep, valid=v_m, divisor="scaled")

        low = v_m & (h <= masked_percentile(h, v_m, 20 * late))
        high = v_m & (h >= masked_percentile(h, v_m, 100 - 20 * late))
        with torch.no_grad():
            vectors_t = self.teacher_head(embedding_t)
        known = y_l != self.task.ignore_index
        labels = torch.cat((y_l, y_m.masked_fill(~v_m, self.task.ignore_index)))
        reliable, unreliable = torch.cat((known, low)), torch.cat((known, high))
        pixels = Pixels(
            self.head(embedding), vectors_t, full(coarse_t).softmax(1), labels, reliable, unreliable, len(x_l)
        )
        loss_c = self._contrast(pixels.coarse())

        logs = pseudo_logs(label, confidence, keep, valid, self.task.n_classes)
        logs["pseudo/agreement"] = agreement(logits[len(x_l) :], y_m, v_m)
        logs["memory/filled"] = self.queues.filled.float().mean(1)  # (K,)
        loss = loss_l + self.unlabeled_weight * loss_u + self.contrast_weight * loss_c
        return StepOutput(loss, {"loss_sup": loss_l, "loss_unsup": loss_u, "loss_contrast": loss_c, **logs})

    def after_update(self, progress: Progress) -> None:
        """Move the teacher; in the supervised epochs it is the student, with its batch-norm statistics."""
        if progress.epoch < self.warmup_epochs:
            self.teacher.model.load_state_dict(self.student.state_dict())
            self.teacher_head.model.load_state_dict(self.head.state_dict())
        else:
            decay = ema_ramp(progress.step, self.ema_decay)
            self.teacher.update(self.student, decay)
            self.teacher_head.update(self.head, decay)

    @classmethod
    def control_params(cls) -> dict[str, Any] | None:
        """Return parameters that leave out the contrast of memories too."""
        return {"unlabeled_weight": 0.0, "contrast_weight": 0.0}

    def predictors(self) -> dict[str, Model]:
        """Return the teacher, then the student."""
        return {"teacher": self.teacher.model, "student": self.student}

    def _labeled(self, logits: Logits, maps: list[Tensor], y_l: Tensor, weights: Tensor | None) -> Tensor:
        """Compute the loss of the labeled images, which come first in the maps; with that of the auxiliary head."""
        loss: Tensor = self.labeled_loss(logits, y_l, weight=weights)
        if self.aux is None:
            return loss
        logits_aux = auxiliary_logits(self.aux, maps, len(y_l), (y_l.shape[-2], y_l.shape[-1]))
        return loss + self.aux_weight * self.labeled_loss(logits_aux, y_l, weight=weights)

    def _contrast(self, pixels: "Pixels") -> Tensor:
        """Fill the queues, then compare the anchors of every class with its prototype and its queue.

        One class after the other: K is small, and each has a queue of its own to draw from.
        """
        candidates = negative_masks(pixels, self.low_rank, self.high_rank, self.task.ignore_index)  # (N, K)
        numbers = torch.arange(self.task.n_classes, device=pixels.labels.device)
        own = pixels.labels[:, None] == numbers
        if self.negatives != "paper":
            candidates = candidates & own
        sure = pixels.reliable[:, None] & own  # (N, K)
        anchor = sure & (pixels.probability > self.sure)
        present = sure.any(0)  # (K,)
        source = numbers if self.negatives != "published_indexing" else (present.cumsum(0) - 1).clamp_min(0)
        terms, counted = [], []
        for number in range(self.task.n_classes):
            self._remember(pixels.teacher, candidates[:, number], number)
            sure_c, anchor_c = (mask.index_select(1, source[number : number + 1])[:, 0] for mask in (sure, anchor))
            filled = self.queues.filled[number]
            prototype = (pixels.teacher * sure_c[:, None]).sum(0) / sure_c.sum().clamp_min(1)
            chosen, others = self._draw(anchor_c, filled)
            negatives = self.queues.slots[number].clone()[others].unflatten(0, (len(chosen), -1))
            terms.append(anchor_contrast(pixels.student[chosen], prototype, negatives, self.temperature))
            counted.append(present[number] & anchor_c.any() & filled.any())
        several = present.sum()
        total = torch.where(torch.stack(counted) & (several > 1), torch.stack(terms), 0.0).sum()
        return total / several.clamp_min(1)

    def _remember(self, vectors: Tensor, mask: Tensor, number: int) -> None:
        newest = mask.long().argsort(stable=True)[-self.queues.rings.shape[1] :]  # chosen pixels come last, in order
        classes = torch.where(mask[newest], number, self.task.n_classes)
        self.queues.enqueue(vectors[newest], classes)

    def _draw(self, anchor: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
        """Draw anchors among the pixels and negatives among the slots, with replacement."""
        return drawn_true(anchor, self.anchors), drawn_true(filled, self.anchors * self.negatives_each)


class Pixels(NamedTuple):
    """What the contrast knows of a batch: maps (B, ..., h, w), labeled images first, or rows of pixels.

    Args:
        student: vectors, with a graph.
        teacher: vectors.
        probability: of the teacher.
        labels: classes or the ignore index.
        reliable: pixels that make anchors and prototypes.
        unreliable: pixels that may be negatives.
        labeled: images with labels, or (N,) whether a pixel is in one.
    """

    student: Tensor
    teacher: Tensor
    probability: Tensor
    labels: Tensor
    reliable: Tensor
    unreliable: Tensor
    labeled: "int | Tensor"

    def coarse(self) -> "Pixels":
        """Return rows of pixels at the resolution of the vectors; labels and masks by the nearest pixel."""
        size = self.student.shape[-2:]

        def rows(x: Tensor) -> Tensor:
            if x.ndim == 4:
                return x.movedim(1, -1).flatten(0, 2)
            small = x if x.shape[-2:] == size else F.interpolate(x[:, None].float(), size=size, mode="nearest")[:, 0]
            return small.to(x.dtype).flatten()

        place = torch.arange(len(self.labels), device=self.labels.device)
        labeled = (place < self.labeled)[:, None, None].expand(-1, *size).flatten()
        vectors = (rows(self.student), rows(self.teacher), rows(self.probability))
        return Pixels(*vectors, rows(self.labels), rows(self.reliable), rows(self.unreliable), labeled)


def negative_masks(pixels: Pixels, low_rank: int, high_rank: int, ignore_index: int) -> Bool[Tensor, "N K"]:
    """Return the pixels that are surely not of each class (eq. 11, 12), given rows of pixels."""
    rank = pixels.probability.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    classes = torch.arange(rank.shape[1], device=rank.device)
    other = (pixels.labels[:, None] != classes) & (pixels.labels != ignore_index)[:, None] & (rank < low_rank)
    unlikely = (rank >= low_rank) & (rank < high_rank)
    labeled = torch.as_tensor(pixels.labeled)[:, None]
    return pixels.unreliable[:, None] & torch.where(labeled, other, unlikely)
