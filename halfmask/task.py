"""What is predicted: the kind of task, its classes and the ignored label."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["segmentation", "change", "classification"]

# Scores that checkpoints are chosen by, and how they are written in prose.
METRIC_NAMES = {"miou": "mIoU", "changed_iou": "changed IoU", "acc": "accuracy"}


@dataclass(frozen=True, slots=True)
class Task:
    """Data only; every method, model and metric receives it.

    Args:
        kind: dense prediction of one image, of an image pair, or one label per image.
        classes: names; position = training id.
        ignore_index: label value that enters no loss and no metric.
        foreground: for each class, whether it is object-like (things, not background or stuff). Guided
            perturbations need it; `None` means unknown.
        palette: display colors, one RGB triple per class; `None` lets the writer choose.
        same_light: both dates of a pair were taken by one camera in one light, so that a difference of their colors is
            a change; strong views then change the colors of both dates alike.
    """

    kind: Kind
    classes: tuple[str, ...]
    ignore_index: int = 255
    foreground: tuple[bool, ...] | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    same_light: bool = False

    @property
    def n_classes(self) -> int:
        """Return K, the number of classes."""
        return len(self.classes)

    @property
    def main_metric(self) -> str:
        """Name of the score that checkpoints are chosen by.

        >>> Task("change", ("unchanged", "changed")).main_metric, Task("classification", ("cat", "dog")).main_metric
        ('changed_iou', 'acc')
        """
        if self.kind == "classification":
            return "acc"
        return "changed_iou" if self.kind == "change" and self.n_classes == 2 else "miou"
