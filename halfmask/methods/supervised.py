"""Supervised baseline: labeled images only, weak augmentation.

    L = CE(f(x_l), y)                                 mean over labeled pixels

The number every semi-supervised method has to beat. It consumes no unlabeled images, so an epoch is one pass over
the labeled list: give it as many steps as the method it is compared with, not as many epochs.

`labeled_color` is the supervised baseline of Wang et al., AllSpark, CVPR 2024, arXiv:2403.01818, whose labeled images
get the color changes and the blur of strong views.
"""

from halfmask.batch import Batch, Progress
from halfmask.losses.cross_entropy import LabeledLoss, supervised_loss
from halfmask.method import Method, ModelBuilder, StepOutput
from halfmask.task import Task
from halfmask.views.strong import StrongAugment


class Supervised(Method):
    """Cross-entropy on the labeled images.

    Args:
        labeled_color: color changes and blur on the images.
        loss: `ce`, or `ohem`: cross-entropy of the hard pixels, as is usual on Cityscapes.
    """

    status = "implemented"
    supports = frozenset({"class_weights"})
    draws = 0
    tasks = frozenset({"segmentation", "change", "classification"})

    def __init__(
        self,
        task: Task,
        build: ModelBuilder,
        *,
        labeled_color: bool = False,
        loss: LabeledLoss = "ce",
    ) -> None:
        super().__init__(task)
        self.student = build()
        self.strong, self.labeled_color = StrongAugment(same_light=task.same_light), labeled_color
        self.labeled_loss = supervised_loss(loss, task.ignore_index)

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of one batch."""
        x_l = self.strong(batch.labeled.image) if self.labeled_color else batch.labeled.image
        loss = self.labeled_loss(self.student(x_l), batch.labeled.labels, weight=batch.class_weights)
        return StepOutput(loss, {"loss_sup": loss})
