"""ST and ST++: train, label, train anew with strong augmentation; images with stable labels first.

Yang et al., "ST++: Make Self-training Work Better for Semi-supervised Semantic Segmentation", CVPR 2022,
arXiv:2106.05095.

    teacher    f on labeled images, weak augmentation
    labels     argmax over classes of sum_s softmax f(x_u scaled by s and mirrored)             5 scales, with mirror
    student    a fresh network on labeled images and strong(x_u), one cross-entropy over both

ST++ (`select: true`) lets the images in one after the other:
    r(u)       = mean over the earlier checkpoints k of mIoU(labels of k, labels of the last)   at E/3, 2E/3 and E
    reliable   a fresh network on labeled images and the half of the unlabeled images with the largest r
    all        labels of the other half by that network; a fresh network on all of them

mIoU of an image is taken over the classes that occur in either label map. Labels come from the network at its best
validation, those of the first half are not made anew.

Strong augmentation: color jitter, gray, blur, and cutout with probability 0.5: a box of noise whose labels are unknown.

Deviations: a batch holds as many labeled images as pseudo-labeled ones, instead of drawing both from one list in which
labeled images are repeated. Lists of fewer than 200 labeled images are not doubled for the first stage: give it more
epochs (`teacher_epochs`). An image whose probabilities would take more than 1 GiB (classes * pixels * 4 bytes at the
largest scale) is labeled in overlapping tiles instead of whole.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from jaxtyping import Float, Integer
from pydantic import Field
from torch import Tensor

from halfmask.batch import Batch, Progress
from halfmask.errors import DataError
from halfmask.losses.cross_entropy import cross_entropy
from halfmask.method import Artifacts, Method, ModelBuilder, Stage, StageContext, StepOutput
from halfmask.models.model import Network
from halfmask.task import Task
from halfmask.views.mixing import box_mask
from halfmask.views.strong import StrongAugment

if TYPE_CHECKING:
    from halfmask.recipe.read import Recipe

SCALES = (0.5, 0.75, 1.0, 1.5, 2.0)


class StPlusPlus(Method):
    """Self-training in stages, the most reliable images first.

    Args:
        select: learn from the reliable half first (ST++); otherwise all images at once (ST).
        reliable: share of the unlabeled images that come first.
        scales: of the images that are labeled.
        flip: label mirrored images too.
        cutout: probability of a box of noise.
        teacher_epochs: passes over the labeled images of the first stage; `null`: the recipe's `run`.
    """

    status = "implemented"
    supports = frozenset({"class_weights"})
    weak_labels: ClassVar[frozenset[str]] = frozenset({"masks"})
    tasks: ClassVar[frozenset[str]] = frozenset({"segmentation", "change"})

    def __init__(
        self,
        task: Task,
        build: ModelBuilder,
        *,
        select: bool = True,
        reliable: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        scales: Annotated[Sequence[Annotated[float, Field(gt=0)]], Field(min_length=1)] = SCALES,
        flip: bool = True,
        cutout: Annotated[float, Field(ge=0, le=1)] = 0.5,
        teacher_epochs: Annotated[int, Field(ge=1)] | None = None,
    ) -> None:
        super().__init__(task)
        self.student = build()
        self.strong = StrongAugment(same_light=task.same_light)
        self.boxes: Callable[..., Tensor] = partial(box_mask, p=cutout)
        self.labeled_loss = partial(cross_entropy, ignore_index=task.ignore_index)

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of one batch of a stage with pseudo-masks."""
        x_l, y_l = batch.labeled.image, batch.labeled.labels
        weak = batch.draw(0)
        unknown = torch.full(weak.valid.shape, self.task.ignore_index, device=x_l.device)
        # Without pseudo-masks (a loop that calls the step by itself) only labels teach.
        x_u, y_u = self._cut_out(self.strong(weak.image), unknown if weak.target is None else weak.target)

        logits = self.student(torch.cat((x_l, x_u)))
        loss = self.labeled_loss(logits, torch.cat((y_l, y_u)), weight=batch.class_weights)  # one mean over all pixels
        with torch.no_grad():
            logits_l, logits_u = logits.split((len(x_l), len(x_u)))
            loss_l = self.labeled_loss(logits_l, y_l, weight=batch.class_weights)
            loss_u = self.labeled_loss(logits_u, y_u, weight=batch.class_weights)
        known = (y_u != self.task.ignore_index).float().mean()
        return StepOutput(loss, {"loss_sup": loss_l, "loss_unsup": loss_u, "pseudo/coverage": known})

    @classmethod
    def plan(cls, recipe: "Recipe") -> list[Stage]:
        """Return the stages: teacher and student (ST), or teacher, reliable, all (ST++)."""
        given = recipe.method.params
        label = partial(_label, scales=given.get("scales", SCALES), flip=given.get("flip", True))
        teacher: dict[str, Any] = {"method": {"name": "supervised"}, "data.weak": None, "expected": None}
        if given.get("teacher_epochs") is not None:
            teacher |= {"run.epochs": given["teacher_epochs"], "run.steps": None}
        if not given.get("select", True):
            return [
                Stage("teacher", teacher, after=partial(_label_all, label=label)),
                Stage("student", partial(_with_masks, recipe=recipe)),
            ]
        choose = partial(_choose, label=label, share=given.get("reliable", 0.5))
        return [
            Stage("teacher", teacher, keep_checkpoints=3, after=choose),
            Stage("reliable", partial(_with_reliable, recipe=recipe), after=partial(_label_rest, label=label)),
            Stage("all", partial(_with_all, recipe=recipe)),
        ]

    def _cut_out(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Replace a box by noise; its pixels teach nothing."""
        box = self.boxes(label.shape, device=image.device)
        inside = box.reshape(len(box), *[1] * (image.ndim - box.ndim), *box.shape[1:])
        return torch.where(inside, torch.rand_like(image), image), label.masked_fill(box, self.task.ignore_index)


Label = Callable[[StageContext, Network, Float[Tensor, "*T C H W"]], Integer[Tensor, "H W"]]


def _label(
    stage: StageContext, net: Network, image: Float[Tensor, "*T C H W"], *, scales: Sequence[float], flip: bool
) -> Integer[Tensor, "H W"]:
    """Label an image by the mean of the probabilities over scales and mirrored copies."""
    return stage.class_map(net, image, scales=scales, flip=flip, mode="whole")


def stability(labels: Sequence[Integer[Tensor, "H W"]], classes: int) -> float:
    """Average the mIoU of earlier label maps with the last one; classes that occur in neither do not count."""
    last = labels[-1].long()
    scores = []
    for earlier in labels[:-1]:
        pairs = torch.bincount((last * classes + earlier).flatten(), minlength=classes**2).view(classes, classes)
        union = pairs.sum(0) + pairs.sum(1) - pairs.diagonal()
        scores.append((pairs.diagonal()[union > 0] / union[union > 0]).mean())
    return float(torch.stack(scores).mean())


def _choose(stage: StageContext, *, label: Label, share: float) -> dict[str, Path]:
    """Rank the unlabeled images by the stability of their labels, and label the most stable ones."""
    ids, classes = list(stage.split.unlabeled), stage.dataset.task.n_classes
    if len(ids) < 2:
        raise DataError(
            "method st_plus_plus ranks the unlabeled images, and there is one. Use method.select=false.", "H210"
        )
    nets = [stage.load(path).predictors() for path in stage.checkpoints()]
    if len(nets) < 2:
        raise DataError(
            "method st_plus_plus compares checkpoints of its first stage (kept-N.ckpt), and there are not two: it was "
            "too short, or files were removed. Use more steps (run.steps, method.teacher_epochs) or "
            "method.select=false, and start anew with --overwrite.",
            "H210",
        )
    by_stability = {}
    for id in ids:
        image = stage.image(id)
        maps = [label(stage, next(iter(each.values())), image) for each in nets]
        by_stability[id] = stability(maps, classes)
    order = sorted(ids, key=lambda id: (-by_stability[id], id))
    count = min(max(round(len(order) * share), 1), len(order) - 1)
    best = stage.predictor()
    return {
        "reliable": stage.write_list("reliable", order[:count]),
        "rest": stage.write_list("rest", order[count:]),
        "masks": stage.write_masks("masks", order[:count], lambda id, image: label(stage, best, image)),
    }


def _label_all(stage: StageContext, *, label: Label) -> dict[str, Path]:
    best = stage.predictor()
    return {"masks": stage.write_masks("masks", stage.split.unlabeled, lambda id, image: label(stage, best, image))}


def _label_rest(stage: StageContext, *, label: Label) -> dict[str, Path]:
    rest = stage.artifacts["rest"].read_text(encoding="utf-8").splitlines()
    best = stage.predictor()
    return {"rest_masks": stage.write_masks("masks", rest, lambda id, image: label(stage, best, image))}


def _fresh(recipe: "Recipe", stage: int) -> dict[str, Any]:
    return {"run.seed": recipe.run.seed + stage}  # other first weights than the stage before


def _with_masks(made: Artifacts, *, recipe: "Recipe") -> dict[str, Any]:
    return {**_fresh(recipe, 1), "data.weak.masks": made["masks"]}


def _with_reliable(made: Artifacts, *, recipe: "Recipe") -> dict[str, Any]:
    return {**_fresh(recipe, 1), "data.unlabeled": made["reliable"], "data.weak.masks": made["masks"]}


def _with_all(made: Artifacts, *, recipe: "Recipe") -> dict[str, Any]:
    return {**_fresh(recipe, 2), "data.weak.masks": [str(made["masks"]), str(made["rest_masks"])]}
