"""Compute the numbers of pseudo-labels: on held-out masks, between networks, and signs of a collapse in the curves.

    coverage(t)  = pixels with confidence >= t / pixels        precision(t) = right pixels among them / them

The labels are those of the shipped predictor at its best, without augmentation and by the run's protocol; in training
it sees crops, so both numbers are near, not equal, to those of the training.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from halfmask.infer.bundle import load_bundle, own_bundle
from halfmask.infer.inference import class_map, probabilities, read_ahead
from halfmask.infer.runs import memory_cure
from halfmask.report.charts import Chart, Series, line_chart, sparkline
from halfmask.report.evidence import Images, cached_json, digest, load_method
from halfmask.report.records import Points, Run
from halfmask.task import METRIC_NAMES
from halfmask.teaching.pseudo_label import confidence_range

_EDGES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995)
_CONFIDENCES = (0.5, 0.8, 0.95, 0.98)
_ONE_CLASS, _IN_A_ROW = 0.98, 5
_DROP = 0.10  # of the score below its best, at the end
_FORGOTTEN = 0.0005  # share of the pseudo-labels
_FIRST, _LAST = 0.25, 0.75  # parts of the run


def label_quality(run: Run, images: Images) -> dict[str, Any]:
    """Measure the shipped predictor's pseudo-labels on images with masks.

    Returns:
        `edges`: thresholds; `passed` and `right`: (K, len(edges)) pixels labeled with a class whose confidence is in
        the range that begins at the edge, and how many of them are right; `threshold`: the method's, or `None`.
    """
    bundle = load_bundle(own_bundle(run.path), images.device)
    threshold = threshold_of(run)
    edges = sorted({*_EDGES, *([] if threshold is None else [threshold])})
    key = digest(images.key, bundle.meta["sha256"], edges, images.part)

    def compute() -> dict[str, Any]:
        classes = bundle.task.n_classes
        passed = torch.zeros(classes, len(edges), dtype=torch.int64)
        right = torch.zeros_like(passed)
        bounds = torch.tensor(edges, device=images.device)
        for image, target in _one_by_one(images, "pseudo-labels", bundle.model.mean.dtype):
            found = probabilities(bundle.model, image, images.protocol, bundle.crop)
            confidence, label = found.max(1)
            known = (target != bundle.task.ignore_index) & (target < classes)
            place = torch.bucketize(confidence.to(bounds.dtype), bounds, right=True) - 1
            passed += _pairs(classes, label, place, known, len(edges))
            right += _pairs(classes, label, place, known & (label == target), len(edges))
        return {"edges": edges, "threshold": threshold, "passed": passed.tolist(), "right": right.tolist()}

    return cached_json(run.path / "report" / "pseudo-labels.json", key, compute)


def held_out_agreement(run: Run, images: Images) -> dict[str, Any]:
    """Measure how often the first two networks of the last checkpoint predict the same class.

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
        for image, _ in _one_by_one(images, "agreement", one.mean.dtype):
            a = class_map(one, image, images.protocol, crop).long()
            b = class_map(two, image, images.protocol, crop).long()
            place = torch.zeros_like(a)
            labeled += _pairs(len(same), a, place, torch.ones_like(a, dtype=torch.bool))
            same += _pairs(len(same), a, place, a == b)
        return {"names": [first, second], "same": same[:, 0].tolist(), "labeled": labeled[:, 0].tolist()}

    return cached_json(run.path / "report" / "agreement.json", key, compute)


def threshold_of(run: Run) -> float | None:
    """Return the confidence that a pseudo-label needs, if the method has such a parameter; soft targets need none."""
    method = run.recipe["method"]
    value = 0.0 if method.get("targets") == "soft" else method.get("threshold")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def confidence_chart(run: Run) -> Chart | None:
    """Compute the part of the pixels above some confidences over the training, from the recorded histogram."""
    names = dict.fromkeys(name for record in run.records for name in record)
    ranges = {name: inside for name in names if (inside := confidence_range(name))}
    edges = {float(inside.partition("-")[0]): dict(run.curve(name)) for name, inside in ranges.items()}
    steps = sorted({step for points in edges.values() for step in points})
    lines = []
    for number, wanted in enumerate(_CONFIDENCES):
        if wanted in edges:
            points = [(s, sum(of.get(s, 0.0) for edge, of in edges.items() if edge >= wanted)) for s in steps]
            lines.append(Series(f"at least {100 * wanted:.0f} %", points, number, number))
    return line_chart(lines, "Pixels by confidence of their pseudo-label")


def held_out(quality: dict[str, Any], unit: str) -> dict[str, Any]:
    """Compute coverage and precision of the pseudo-labels on held-out masks: at every threshold, and at the run's."""
    edges, threshold = quality["edges"], quality["threshold"]
    passed, right = (_from_above(quality[name]).sum(0).tolist() for name in ("passed", "right"))
    whole = max(passed[0], 1)
    points = [(edge, passed[i] / whole, right[i] / max(passed[i], 1)) for i, edge in enumerate(edges)]
    above = [point for point in points if point[0] >= 0.5]
    lines = [
        Series("precision: right among those that pass", [(x, y) for x, part, y in above if part], 1, 0),
        Series(f"coverage: {unit} that pass", [(x, part) for x, part, _ in above], 0, 1),
    ]
    mark = (threshold, f"threshold {threshold:g}") if threshold is not None and threshold >= 0.5 else None
    chart = line_chart(lines, "On held-out masks, by threshold", x_name="", x_percent=True, mark=mark)
    _, coverage, precision = points[edges.index(threshold) if threshold in edges else 0]
    return {"chart": chart, "threshold": threshold, "coverage": coverage, "precision": precision}


def by_class(run: Run, quality: dict[str, Any] | None, agreement: dict[str, Any] | None) -> dict[str, Any]:
    """List each class with its curves and its numbers on held-out masks, the most labeled first."""
    families = [
        ("share of pseudo-labels", run.family("pseudo/share"), 2),
        ("coverage", run.family("pseudo/coverage"), 0),
        ("confidence", run.family("pseudo/confidence"), 1),
    ]
    share = families[0][1]
    families = [family for family in families if not family[1].keys().isdisjoint(run.classes)]
    names = [name for name in run.classes if any(name in curves for _, curves, _ in families)]
    head = ["class", *(title for what, _, _ in families for title in (what, "last, %"))]
    if quality is not None:
        head += ["precision, held out, %", "coverage, held out, %"]
        head += ["networks agree, %"] if agreement is not None else []
    rows = []
    for name in sorted(names, key=lambda name: -_last(share.get(name, []))):
        curves = [(of.get(name, []), color) for _, of, color in families]
        shown = [(sparkline(points, name, color), _last(points)) for points, color in curves]
        rows.append((name, shown, _class_numbers(quality, agreement, run.classes.index(name))))
    return {"head": head, "rows": rows}


def _class_numbers(quality: dict[str, Any] | None, agreement: dict[str, Any] | None, k: int) -> list[float]:
    """Compute precision and coverage of one class at the run's threshold, and how often the networks agree on it."""
    if quality is None:
        return []
    edges, threshold = quality["edges"], quality["threshold"]
    at = edges.index(threshold) if threshold in edges else 0
    passed, right = (_from_above([quality[name][k]])[0].tolist() for name in ("passed", "right"))
    numbers = [_part(right[at], passed[at]), _part(passed[at], passed[0])]
    if agreement is not None:
        numbers.append(_part(agreement["same"][k], agreement["labeled"][k]))
    return numbers


def _part(some: int | float, whole: int | float) -> float:
    return some / whole if whole else math.nan


def _last(points: Points) -> float:
    return points[-1][1] if points else math.nan


def alarms(run: Run) -> list[str]:
    """List the signs of a collapse in the curves of a run, as sentences; names and keys stand in backticks."""
    return [*_one_class(run), *_no_labels(run), *_forgotten(run), *_falling(run)]


def not_finite(run: Run) -> list[str]:
    """Read the record that a run writes when it stops at a loss that is not finite; usually there is none."""
    return [
        f"The run ended at step {step}: its loss or gradient was not finite (H602). The weights are those from before. "
        "Train anew with a lower `optim.lr`, `optim.clip_norm=1` or `optim.warmup_steps`."
        for step, _ in run.curve("alarm/not_finite")
    ]


def _one_class(run: Run) -> list[str]:
    """Find one class with nearly all pseudo-labels, several records in a row: as the warning during training."""
    for name, points in run.family("pseudo/share").items():
        row = 0
        for step, share in points:
            row = row + 1 if share > _ONE_CLASS else 0
            if row == _IN_A_ROW:
                return [
                    f"Collapse to one class: at step {step} at the latest, more than {_ONE_CLASS:.0%} of the "
                    f"pseudo-labels were `{name}`. A lower `method.unlabeled_weight` may help, or, with hard labels, "
                    "a higher `method.threshold`."
                ]
    return []


def _no_labels(run: Run) -> list[str]:
    last = _late(run.curve("pseudo/coverage"))
    if last and max(value for _, value in last) == 0:
        return [
            "In the last quarter of the run no pseudo-label passed the threshold: the unlabeled images taught nothing. "
            "A lower `method.threshold`, a pretrained encoder or more masks may help."
        ]
    return []


def _forgotten(run: Run) -> list[str]:
    """Find classes that are pseudo-labeled in the beginning and vanish."""
    names = []
    for name, points in run.family("pseudo/share").items():
        early, late = _mean(points[: max(int(len(points) * _FIRST), 1)]), _mean(_late(points))
        if len(points) >= 8 and early > 20 * _FORGOTTEN and late < _FORGOTTEN:
            names.append(f"`{name}` (from {100 * early:.1f} % to {100 * late:.2f} %)")
    return [f"Forgotten by the pseudo-labels in the course of the run: {', '.join(names)}."] if names else []


def _falling(run: Run) -> list[str]:
    points = run.curve(f"val/{run.metric}")
    if len(points) < 3:
        return []
    step, best = max(points, key=lambda point: point[1])
    if best - points[-1][1] < _DROP:
        return []
    return [
        f"The validation {METRIC_NAMES[run.metric]} fell from {100 * best:.1f} % at step {step} to "
        f"{100 * points[-1][1]:.1f} % at the end. The shipped model is the best one, but the run should be looked at."
    ]


def _late(points: Points) -> Points:
    return points[int(len(points) * _LAST) :]


def _mean(points: Points) -> float:
    return sum(value for _, value in points) / max(len(points), 1)


def _one_by_one(images: Images, what: str, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (1, *T, C, H, W) in [0, 1] and targets (1, *S)."""
    items = images.items
    ahead = read_ahead(items.__getitem__, range(len(items)), images.wishes.workers)
    with memory_cure(images.protocol):
        for number, (image, target) in enumerate(ahead, 1):
            yield image[None].to(images.device).to(dtype) / 255, target[None].to(images.device).long()
            images.wishes.tick(what, number, len(items))


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


def _from_above(counts: list[list[int]]) -> Float[Tensor, "K E"]:
    """Sum over all ranges at and above each edge."""
    return torch.tensor(counts, dtype=torch.float64).flip(1).cumsum(1).flip(1)
