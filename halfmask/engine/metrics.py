"""Confusion matrix on the device, and every score that follows from it.

Rows are targets, columns are predictions. Row K counts targets outside [0, K) that are not ignored: such a pixel
belongs to no class, yet it is in the union of the class predicted there (as the published evaluation of AllSpark,
Wang et al. 2024, and UniMatch, Yang et al. 2023, counts it).

    I_k = M[k, k]    T_k = sum_j M[k, j] (j < K)    P_k = sum_i M[i, k] (i <= K)    U_k = T_k + P_k - I_k
    IoU_k = I_k / U_k    Dice_k = 2 I_k / (I_k + U_k)    precision_k = I_k / P_k    recall_k = I_k / T_k

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

    def scores(self, classes: tuple[str, ...], absent: Absent = "skip") -> "Scores":
        """Read the counts and compute every score in float64.

        Args:
            classes: K names.
            absent: whether a class that occurs neither in targets nor in predictions is left out of the mean
                IoU (`skip`), or counts as 0 in it (`zero`, as in most published code).
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

    def to_dict(self, part: str = "") -> dict[str, float]:
        """Give flat metric names and fractions: `miou`, `iou/<class>`, `dice`, `acc`, ...

        Args:
            part: put in front of every name: `val` gives `val/miou`.

        Classes that gave no number are left out: JSON has no nan.
        """
        named = {"miou": self.miou, "dice": self.mean_dice, "acc": self.accuracy, "class_acc": self.class_accuracy}
        per_class = {"iou": self.iou, "dice": self.dice, "precision": self.precision, "recall": self.recall}
        for metric, values in per_class.items():
            named |= {f"{metric}/{name}": value for name, value in zip(self.classes, values, strict=True)}
        prefix = f"{part}/" if part else ""
        return {f"{prefix}{name}": value for name, value in named.items() if not math.isnan(value)}

    def print_table(self, console: Console | None = None, title: str = "") -> None:
        """Print one line per class, in percent, to stdout or `console`; "n/a" where a class gives no number."""
        table = Table("class", title=title or None)
        for column in ("IoU", "Dice", "precision", "recall", "pixels"):
            table.add_column(column, justify="right")
        rows = zip(self.classes, self.iou, self.dice, self.precision, self.recall, self.support, strict=True)
        for name, *values, support in rows:
            table.add_row(escape(name), *map(_percent, values), f"{support:,}")
        table.add_section()
        table.add_row("mean", _percent(self.miou), _percent(self.mean_dice), "", _percent(self.class_accuracy), "")
        console = console or Console()
        console.print(table)
        console.print(f"pixel accuracy {_percent(self.accuracy)}   absent classes: {self.absent}", highlight=False)


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
