"""Pseudo-labels by the full softmax, then its maximum; their statistics class by class."""

import torch
from torch import Tensor


def pseudo_label(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Most probable class and its probability, from (B, K, *S) logits."""
    logits = logits.detach()
    probability = (logits if logits.dtype == torch.float64 else logits.float()).softmax(1)
    return probability.argmax(1), probability.amax(1)


def pseudo_logs(label: Tensor, keep: Tensor, valid: Tensor, classes: int) -> dict[str, Tensor]:
    """Coverage and share, one class at a time."""
    share, coverage = [], []
    for index in range(classes):
        mine = valid & (label == index)
        share.append(float(mine.sum()) / max(int(valid.sum()), 1))
        coverage.append(float((mine & keep).sum()) / max(int(mine.sum()), 1))
    return {
        "pseudo/coverage": torch.tensor(float((keep & valid).sum()) / max(int(valid.sum()), 1)),
        "pseudo/coverage_by_class": torch.tensor(coverage),
        "pseudo/share": torch.tensor(share),
    }
