"""AllSpark: labeled features are rebuilt from the channels of unlabeled ones, so that labels cannot dominate training.

Wang et al., "AllSpark: Reborn Labeled Features from Unlabeled in Transformer for Semi-Supervised Semantic
Segmentation", CVPR 2024, arXiv:2403.01818.

    yhat  = argmax f(x_u)                              evaluation mode, the same weights, no gradient
    z     = norm(tokens of the encoder's last map of [x_l, x_u])
    class of channel c of z_u = argmax_k cos(map_k of f(x_u), channel c)          channel semantic grouping
    memory[class] <- channels of z_u, oldest out                                  semantic memory, K x C slots
    x_l attends to the channels in the memory, x_u to its own channels            models/bottlenecks/allspark.py
    L     = (CE(f(x_l), y) + lambda CE(f(x_u), yhat)) / 2,   lambda = 1

The unlabeled image is the same tensor in both passes: no weak/strong pair, no threshold, no teacher. Labeled and
unlabeled images share one training pass. Evaluation needs neither memory nor other images.

Deviations from the paper, all as in the published code:
  * grouping compares logits, not probabilities (`grouping: probs_dot` for the paper's);
  * before `warmup_epochs` the labeled images attend to the unlabeled images of their own batch;
  * all slots of the memory are keys, also those that still hold their initial noise (`mask_empty`);
  * the loss is the mean of the two terms, not their sum (`loss_scale: 1` for the sum);
  * the pseudo-label pass lets every image attend to the channels of the whole batch (`eval_keys`).
Deviations from the code: ranks share the memory (`memory_sync: rank0` for the published behavior, where only the first
rank's channels last); padded pixels teach nothing (`ignore_padding: false`).
Table 5: pseudo_label without a bottleneck; `keys: batch`; `grouping: none` (the paper does not say how channels are
then spread; here in turn); all of it.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from halfmask.batch import Batch, Progress, Samples
from halfmask.errors import ShapeError
from halfmask.losses.cross_entropy import LabeledLoss, masked_cross_entropy, supervised_loss
from halfmask.method import Method, ModelBuilder, StepOutput
from halfmask.models.bottlenecks.allspark import AllSpark as Bottleneck
from halfmask.models.model import eval_mode
from halfmask.task import Task
from halfmask.teaching.grouping import Grouping, channel_classes
from halfmask.teaching.memory import ClassMemory, MemorySync
from halfmask.teaching.pseudo_label import pseudo_label, pseudo_logs
from halfmask.views.strong import StrongAugment


class AllSpark(Method):
    """Cross-attention of labeled images to a memory of unlabeled channels.

    Args:
        keys: what labeled images attend to: the class `memory`, or the unlabeled images of the `batch`.
        warmup: part of the run in which labels alone teach, so that pseudo-labels begin with a network that knows
            something; they attend to unlabeled images all the same.
        warmup_epochs: passes over the unlabeled list before the memory is used.
        grouping: how channels find their class; `none` fills the classes in turn.
        mask_empty: leave slots that were never written out of the attention.
        memory_sync: what ranks share: all channels (`gather`), the memory of rank 0 (`rank0`), nothing (`local`).
        eval_keys: in the pseudo-label pass an image attends to its whole `batch` or to itself (`per_image`).
        threshold: confidence a pseudo-label needs to be used; 0 uses all. Raise it if one class takes over.
        unlabeled_weight: lambda; 0 leaves out what the unlabeled images teach.
        loss_scale: factor of the sum of both terms.
        labeled_color: color changes and blur on the labeled images.
        ignore_padding: leave the padded part of unlabeled crops out of the loss.
        loss: of the labeled images: `ce`, or `ohem`, cross-entropy of the hard pixels.
    """

    status = "implemented"
    supports = frozenset({"class_weights"})
    equal_batches = True

    def __init__(
        self,
        task: Task,
        build: ModelBuilder,
        *,
        keys: Literal["memory", "batch"] = "memory",
        warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        warmup_epochs: Annotated[float, Field(ge=0)] = 5.0,
        grouping: Grouping = "logits_cosine",
        mask_empty: bool = False,
        memory_sync: MemorySync = "gather",
        eval_keys: Literal["batch", "per_image"] = "batch",
        threshold: Annotated[float, Field(ge=0, le=1)] = 0.0,
        unlabeled_weight: Annotated[float, Field(ge=0)] = 1.0,
        loss_scale: Annotated[float, Field(gt=0)] = 0.5,
        labeled_color: bool = True,
        ignore_padding: bool = True,
        loss: LabeledLoss = "ce",
    ) -> None:
        super().__init__(task)
        self.student = build(bottleneck={"name": "allspark"})
        self.strong = StrongAugment(same_light=task.same_light)
        self.labeled_loss = supervised_loss(loss, task.ignore_index)
        self.side = -(-build.crop // self.student.encoder.strides[-1])
        self.memory: ClassMemory | None = None
        if keys == "memory":
            self.memory = ClassMemory(task.n_classes, self.bottleneck.width, self.side**2, memory_sync)
        self.warmup = warmup
        self.warmup_epochs, self.grouping, self.mask_empty = warmup_epochs, grouping, mask_empty
        self.eval_keys, self.threshold, self.loss_scale = eval_keys, threshold, loss_scale
        self.labeled_color, self.ignore_padding, self.unlabeled_weight = labeled_color, ignore_padding, unlabeled_weight

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of one batch."""
        x_l, y_l = batch.labeled.image, batch.labeled.labels
        x_u, valid = batch.draw(0).image, batch.draw(0).valid  # (B, *T, 3, H, W), (B, H, W)
        _check_halves(len(x_l), len(x_u))

        # Pseudo-labels; the logits also say which class a channel belongs to.
        with torch.no_grad(), eval_mode(self.student):
            logits_w = self._label(x_u)
        label, confidence = pseudo_label(logits_w)  # (B, H, W) each
        if not self.ignore_padding:
            valid = torch.ones_like(valid)
        keep = valid & (confidence >= self.threshold)

        # One training pass over both halves.
        if self.labeled_color:
            x_l = self.strong(x_l)
        features = self.student.encode(torch.cat((x_l, x_u)))
        tokens, residual = self.bottleneck.embed(features[-1])  # (2B, d, C), (2B, C, h, w)
        unlabeled = tokens[len(x_l) :]
        # The memory is written before it is read, also while it is not used yet: it holds this batch.
        self._remember(unlabeled, logits_w, batch.draw(0))
        keys, present = unlabeled.transpose(1, 2), None  # (B, C, d)
        if self.memory is not None and progress.epoch >= self.warmup_epochs:
            keys, present = self._recall(self.memory)  # (K, C, d), (K,)
        last = self.bottleneck.attend(tokens, residual, keys, labeled=len(x_l), present=present)
        embedding = self.student.decode([*features[:-1], last])
        logits_l, logits_u = self.student.classify(embedding, (x_l.shape[-2], x_l.shape[-1])).split(len(x_l))

        loss_l = self.labeled_loss(logits_l, y_l, weight=batch.class_weights)
        loss_u = masked_cross_entropy(logits_u, label, keep, denominator=valid)
        logs = pseudo_logs(label, confidence, keep, valid, self.task.n_classes)
        if self.memory is not None:
            logs["memory/filled"] = self.memory.filled.float().mean(1)  # (K,)
        weight = 0.0 if progress.fraction < self.warmup else self.unlabeled_weight
        loss = self.loss_scale * (loss_l + weight * loss_u)
        return StepOutput(loss, {"loss_sup": loss_l, "loss_unsup": loss_u, **logs})

    @property
    def bottleneck(self) -> Bottleneck:
        """Return the student's bottleneck."""
        assert isinstance(self.student.bottleneck, Bottleneck)
        return self.student.bottleneck

    def _label(self, image: Float[Tensor, "B *T C H W"]) -> Float[Tensor, "B K H W"]:
        if self.eval_keys == "per_image":
            return self.student(image)  # type: ignore[no-any-return]
        features = self.student.encode(image)
        tokens, residual = self.bottleneck.embed(features[-1])
        last = self.bottleneck.attend(tokens, residual, tokens.transpose(1, 2), labeled=len(image))
        embedding = self.student.decode([*features[:-1], last])
        return self.student.classify(embedding, (image.shape[-2], image.shape[-1]))  # type: ignore[no-any-return]

    @torch.no_grad()
    def _remember(self, tokens: Float[Tensor, "B d C"], logits: Float[Tensor, "B K H W"], samples: Samples) -> None:
        if self.memory is None:
            return
        if tokens.shape[1] != self.side**2:
            raise ShapeError(
                f"the class memory holds channels of {self.side} x {self.side} tokens, but a crop of "
                f"{samples.image.shape[-1]}x{samples.image.shape[-2]} gives {tokens.shape[1]}. Train on square crops "
                "of the side the method was built for (data.crop); evaluation takes images of any size."
            )
        classes = channel_classes(tokens, logits, (self.side, self.side), self.grouping)
        self.memory.enqueue(tokens.transpose(1, 2), classes, samples.index)

    def _recall(self, memory: ClassMemory) -> tuple[Tensor, Tensor | None]:
        """Return the channels of all classes, and the classes that take part (`None` = all)."""
        if not self.mask_empty:
            return memory.slots, None
        filled = memory.filled
        # Projections mix the slots of a class: an empty slot contributes zeros, a class without any is left out.
        return memory.slots * filled.unsqueeze(-1), filled.any(1)


def _check_halves(labeled: int, unlabeled: int) -> None:
    if labeled != unlabeled:
        raise ShapeError(
            f"AllSpark splits each batch into a labeled and an unlabeled half of equal size, but got {labeled} labeled "
            f"and {unlabeled} unlabeled images. Use equal data.batch.labeled and data.batch.unlabeled, and "
            "data.drop_last=true."
        )
