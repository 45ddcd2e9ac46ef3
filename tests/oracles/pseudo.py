"""Pseudo-labels by the full softmax, then its maximum; their statistics class by class."""

from itertools import pairwise

import torch
from torch import Tensor


def pseudo_label(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Most probable class and its probability, from (B, K, *S) logits."""
    logits = logits.detach()
    probability = (logits if logits.dtype == torch.float64 else logits.float()).softmax(1)
    return probability.argmax(1), probability.amax(1)


def pseudo_logs(label: Tensor, confidence: Tensor, keep: Tensor, valid: Tensor, classes: int) -> dict[str, Tensor]:
    """Coverage, share and confidence, one class or range at a time."""
    share, coverage, mean_confidence = [], [], []
    for index in range(classes):
        mine = valid & (label == index)
        share.append(float(mine.sum()) / max(int(valid.sum()), 1))
        coverage.append(float((mine & keep).sum()) / max(int(mine.sum()), 1))
        mean_confidence.append(float(confidence[mine].mean()))  # NaN for no pixel
    edges = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
    ranges = {}
    for low, high in pairwise(edges):
        inside = (confidence >= low) & ((confidence < high) | (high == 1.0)) & valid
        ranges[f"pseudo/confidence_range/{low:.2f}-{high:.2f}"] = torch.tensor(
            float(inside.sum()) / max(int(valid.sum()), 1)
        )
    return {
        "pseudo/coverage": torch.tensor(float((keep & valid).sum()) / max(int(valid.sum()), 1)),
        "pseudo/coverage_by_class": torch.tensor(coverage),
        "pseudo/share": torch.tensor(share),
        "pseudo/confidence_by_class": torch.tensor(mean_confidence),
        **ranges,
    }
