"""Pseudo-labels against masks that were held out: how many would pass, how many of these are right.

    coverage(t)  = pixels with confidence >= t / pixels        precision(t) = right pixels among them / them

The labeler is the shipped predictor at its best, without augmentation and by the run's protocol; in training it sees
crops, so both numbers are near, not equal, to those of the training.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from halfmask.infer.bundle import load_bundle
from halfmask.infer.inference import class_map, probabilities, read_ahead
from halfmask.infer.runs import memory_cure
from halfmask.report.evidence import Images, cached_json, digest, load_method
from halfmask.report.records import Run

_EDGES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995)


def label_quality(run: Run, images: Images) -> dict[str, Any]:
    """Measure the shipped predictor's pseudo-labels on images with masks.

    Returns:
        `edges`: thresholds; `passed` and `right`: (K, len(edges)) pixels labeled with a class whose confidence is in
        the range that begins at the edge, and how many of them are right; `threshold`: the method's, or `None`.
    """
    bundle = load_bundle(run.path, images.device)
    threshold = threshold_of(run)
    edges = sorted({*_EDGES, *([] if threshold is None else [threshold])})
    key = digest(images.key, bundle.meta["sha256"], edges, images.part)

    def compute() -> dict[str, Any]:
        classes = bundle.task.n_classes
        passed = torch.zeros(classes, len(edges), dtype=torch.int64)
        right = torch.zeros_like(passed)
        bounds = torch.tensor(edges, device=images.device)
        for image, target in _shown(images, "pseudo-labels", bundle.model.mean.dtype):
            found = probabilities(bundle.model, image, images.protocol, bundle.crop)
            confidence, label = found.max(1)
            known = (target != bundle.task.ignore_index) & (target < classes)
            place = torch.bucketize(confidence.to(bounds.dtype), bounds, right=True) - 1
            passed += _pairs(classes, label, place, known, len(edges))
            right += _pairs(classes, label, place, known & (label == target), len(edges))
        return {"edges": edges, "threshold": threshold, "passed": passed.tolist(), "right": right.tolist()}

    return cached_json(run.path / "report" / "pseudo-labels.json", key, compute)


def held_out_agreement(run: Run, images: Images) -> dict[str, Any]:
    """Measure how often the networks of the last checkpoint agree on the images, all in all and class by class.

    Returns:
        `names`: the first two predictors; `same` and `labeled`: (K,) pixels that the first gives a class, and how
        many of them the second gives the same.

    Raises:
        CheckpointError: there is no checkpoint.
    """
    path = run.path / "checkpoints" / "last.ckpt"
    stamp = path.stat().st_mtime_ns if path.is_file() else 0
    key = digest(images.key, stamp, images.part)

    def compute() -> dict[str, Any]:
        method, _ = load_method(run, images.device)
        (first, one), (second, two) = list(method.predictors().items())[:2]
        crop = None if run.meta is None else run.meta.get("crop")
        same = torch.zeros(len(run.classes), 1, dtype=torch.int64)
        labeled = torch.zeros_like(same)
        for image, _ in _shown(images, "agreement", one.mean.dtype):
            a = class_map(one, image, images.protocol, crop).long()
            b = class_map(two, image, images.protocol, crop).long()
            place = torch.zeros_like(a)
            labeled += _pairs(len(same), a, place, torch.ones_like(a, dtype=torch.bool))
            same += _pairs(len(same), a, place, a == b)
        return {"names": [first, second], "same": same[:, 0].tolist(), "labeled": labeled[:, 0].tolist()}

    return cached_json(run.path / "report" / "agreement.json", key, compute)


def threshold_of(run: Run) -> float | None:
    """The confidence that a pseudo-label needs, where the method has one."""
    value = run.recipe["method"].get("threshold")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _shown(images: Images, what: str, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Return images (1, *T, C, H, W) in [0, 1] and targets (1, *S), one by one."""
    items = images.items
    with memory_cure(images.protocol):
        for number, (image, target) in enumerate(read_ahead(items.__getitem__, range(len(items)), images.workers), 1):
            yield image[None].to(images.device).to(dtype) / 255, target[None].to(images.device).long()
            images.tick(what, number, len(items))


def _pairs(
    classes: int,
    label: Integer[Tensor, "1 *S"],
    place: Integer[Tensor, "1 *S"],
    keep: Bool[Tensor, "1 *S"],
    places: int = 1,
) -> Integer[Tensor, "K E"]:
    """Count (label, place) pairs of the kept pixels, on the CPU."""
    bins = (label.long() * places + place)[keep]
    return torch.bincount(bins.cpu(), minlength=classes * places).view(classes, places)


def from_above(counts: list[list[int]]) -> Float[Tensor, "K E"]:
    """Sum over all ranges at and above each edge."""
    return torch.tensor(counts, dtype=torch.float64).flip(1).cumsum(1).flip(1)
