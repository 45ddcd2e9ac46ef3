"""Confusion matrix on the device, and every score that follows from it.

Rows are targets, columns are predictions. Row K counts targets outside [0, K) that are not ignored: such a pixel
belongs to no class, yet it is in the union of the class predicted there (as the published evaluation of AllSpark,
Wang et al. 2024, and UniMatch, Yang et al. 2023, counts it).

    I_k = M[k, k]    T_k = sum_j M[k, j] (j < K)    P_k = sum_i M[i, k] (i <= K)    U_k = T_k + P_k - I_k
    IoU_k = I_k / U_k    Dice_k = 2 I_k / (I_k + U_k)    precision_k = I_k / P_k    recall_k = I_k / T_k

Of change detection, class 1 ("changed") counts: changed IoU = IoU_1, F1 = Dice_1, overall accuracy = sum_k I_k / sum_k
T_k. Of classification, images take the place of pixels: accuracy = sum_k I_k / sum_k T_k, and recall_k is the accuracy
of class k.

A score without a denominator is nan, never 0; how the mean treats such classes is the protocol's choice.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Integer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from halfmask.task import Kind, Task

Absent = Literal["skip", "zero"]

# Counters per bin on an accelerator: most pixels of an image share a few bins, and atomic additions to one
# address wait for one another.
_SPREAD = 64


class ConfusionMatrix:
    """Counts of (target, prediction) pairs, on the device where the predictions are.

    Args:
        classes: K.
        ignore_index: target value that is left out altogether.
        device: where to count.

    >>> matrix = ConfusionMatrix(2)
    >>> matrix.update(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 255]))
    >>> matrix.scores(("road", "car")).iou
    (0.5, 0.5)
    """

    def __init__(self, classes: int, ignore_index: int = 255, device: torch.device | str = "cpu") -> None:
        self.classes, self.ignore_index = classes, ignore_index
        self.counts = torch.zeros(classes + 1, classes, dtype=torch.int64, device=device)  # (K + 1, K)

    def update(self, prediction: Integer[Tensor, "*S"], target: Integer[Tensor, "*S"]) -> None:
        """Add pixels, without any host synchronization.

        Args:
            prediction: class ids in [0, K), any integer type.
            target: class ids; `ignore_index` where unknown.
        """
        k = self.classes
        target = target.long()
        # Ignored pixels go to one more bin that is dropped; strange values, negative ones too, to row K.
        row = torch.where((target < 0) | (target > k), k, target)
        bins = torch.where(target == self.ignore_index, (k + 1) * k, row * k + prediction.long()).flatten()
        self.counts += _histogram(bins, (k + 1) * k + 1)[:-1].view(k + 1, k)

    def merge(self, other: "ConfusionMatrix") -> None:
        """Add the counts of another matrix, for example of another part of the images."""
        self.counts += other.counts.to(self.counts.device)

    def all_reduce(self) -> None:
        """Sum over all processes; does nothing outside of distributed runs."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.counts)

    def scores(self, classes: tuple[str, ...], absent: Absent = "skip", kind: Kind = "segmentation") -> "Scores":
        """Read the counts and compute every score in float64.

        Args:
            classes: K names.
            absent: whether a class that occurs neither in targets nor in predictions is left out of the mean
                IoU (`skip`), or counts as 0 in it (`zero`, as in most published code).
            kind: of the task; decides which scores are reported, and which one selects checkpoints.
        """
        counts = self.counts.cpu().double()
        hits = counts[:-1].diagonal()
        target, predicted = counts[:-1].sum(1), counts.sum(0)  # predicted: with pixels of row K
        union = target + predicted - hits
        iou = hits / union  # 0 / 0 = nan: absent
        recall = hits / target
        seen = counts[:-1].sum()
        return Scores(
            classes=classes,
            iou=tuple(iou.tolist()),
            dice=tuple((2 * hits / (hits + union)).tolist()),
            precision=tuple((hits / predicted).tolist()),
            recall=tuple(recall.tolist()),
            support=tuple(int(value) for value in self.counts[:-1].sum(1).tolist()),
            miou=_mean(iou, absent),
            mean_dice=_mean(2 * hits / (hits + union), absent),
            accuracy=(hits.sum() / seen).item(),
            class_accuracy=_mean(recall, "skip"),
            absent=absent,
            kind=kind,
        )


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one evaluation: fractions in [0, 1]; nan where a class gives no number.

    Args:
        classes: names, in order of the per-class tuples.
        iou: intersection over union per class; nan when the class is absent.
        dice: F1 per class.
        precision: share of the predicted pixels that are right.
        recall: share of the target's pixels that were found.
        support: pixels per class in the targets.
        miou: mean IoU by the convention of `absent`.
        mean_dice: mean Dice by the same convention.
        accuracy: share of right pixels among those whose target is a class.
        class_accuracy: mean recall over the classes that occur in the targets.
        absent: `skip` or `zero`.
        kind: of the task.
    """

    classes: tuple[str, ...]
    iou: tuple[float, ...]
    dice: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    support: tuple[int, ...]
    miou: float
    mean_dice: float
    accuracy: float
    class_accuracy: float
    absent: Absent
    kind: Kind = "segmentation"

    @property
    def main(self) -> tuple[str, float]:
        """Name and value of the score that checkpoints are chosen by (`Task.main_metric`); 0 if undefined."""
        name = Task(self.kind, self.classes).main_metric
        value = {"miou": self.miou, "acc": self.accuracy, "changed_iou": self.iou[-1]}[name]
        return name, 0.0 if math.isnan(value) else value

    def to_dict(self, part: str = "") -> dict[str, float]:
        """Return flat metric names and fractions: `miou`, `iou/<class>`, `dice`, `acc`, ...

        Change detection with two classes adds `changed_iou` and `f1`; classification has `acc`, `acc/<class>`,
        `class_acc`, `f1` (mean over the classes), `f1/<class>` and `precision/<class>`, and no IoU.

        Args:
            part: put in front of every name: `val` gives `val/miou`.

        Classes that gave no number are left out: JSON has no nan.
        """
        named = {"acc": self.accuracy, "class_acc": self.class_accuracy}
        if self.kind == "classification":
            named |= {"f1": self.mean_dice}
            per_class = {"acc": self.recall, "f1": self.dice, "precision": self.precision}
        else:
            named = {"miou": self.miou, "dice": self.mean_dice, **named}
            per_class = {"iou": self.iou, "dice": self.dice, "precision": self.precision, "recall": self.recall}
        if self.main[0] == "changed_iou":
            named = {"changed_iou": self.iou[1], "f1": self.dice[1], **named}
        for metric, values in per_class.items():
            named |= {f"{metric}/{name}": value for name, value in zip(self.classes, values, strict=True)}
        prefix = f"{part}/" if part else ""
        return {f"{prefix}{name}": value for name, value in named.items() if not math.isnan(value)}

    def print_table(self, console: Console | None = None, title: str = "") -> None:
        """Print one line per class, in percent, to stdout or `console`; "n/a" where a class gives no number."""
        console = console or Console()
        if self.kind == "classification":
            self._print_labels(console, title)
            return
        table = Table("class", title=title or None)
        for column in ("IoU", "Dice", "precision", "recall", "pixels"):
            table.add_column(column, justify="right")
        rows = zip(self.classes, self.iou, self.dice, self.precision, self.recall, self.support, strict=True)
        for name, *values, support in rows:
            table.add_row(escape(name), *map(_percent, values), f"{support:,}")
        table.add_section()
        table.add_row("mean", _percent(self.miou), _percent(self.mean_dice), "", _percent(self.class_accuracy), "")
        console.print(table)
        if self.main[0] == "changed_iou":
            text = f"changed IoU {_percent(self.iou[1])}   F1 {_percent(self.dice[1])}   "
            console.print(f"{text}overall accuracy {_percent(self.accuracy)}", highlight=False)
            return
        console.print(f"pixel accuracy {_percent(self.accuracy)}   absent classes: {self.absent}", highlight=False)
        rows = zip(self.classes, self.iou, self.support, strict=True)
        if invented := [name for name, iou, support in rows if iou == 0 and support == 0 and self.absent == "skip"]:
            told = f"predicted, though no mask has them: {', '.join(invented)}; each counts as 0 in the mean"
            console.print(told, highlight=False, markup=False)

    def _print_labels(self, console: Console, title: str) -> None:
        table = Table("class", title=title or None)
        for column in ("accuracy", "precision", "F1", "images"):
            table.add_column(column, justify="right")
        rows = zip(self.classes, self.recall, self.precision, self.dice, self.support, strict=True)
        for name, *values, support in rows:
            table.add_row(escape(name), *map(_percent, values), f"{support:,}")
        table.add_section()
        table.add_row("mean", _percent(self.class_accuracy), "", _percent(self.mean_dice), f"{sum(self.support):,}")
        console.print(table)
        console.print(f"accuracy {_percent(self.accuracy)}", highlight=False)


def _histogram(bins: Integer[Tensor, " N"], size: int) -> Integer[Tensor, " _size"]:
    """Count each value of [0, size)."""
    # bincount reads the largest value back to the host on accelerators.
    return torch.bincount(bins, minlength=size) if bins.device.type == "cpu" else _spread_histogram(bins, size)


def _spread_histogram(bins: Integer[Tensor, " N"], size: int) -> Integer[Tensor, " _size"]:
    lane = torch.arange(bins.numel(), device=bins.device) % _SPREAD
    lanes = torch.zeros(size * _SPREAD, dtype=torch.int64, device=bins.device)
    lanes.scatter_add_(0, bins * _SPREAD + lane, torch.ones_like(bins))
    return lanes.view(size, _SPREAD).sum(1)


def _mean(values: Tensor, absent: Absent) -> float:
    return (values.nan_to_num(0.0).mean() if absent == "zero" else values.nanmean()).item()


def _percent(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{100 * value:.2f}"
