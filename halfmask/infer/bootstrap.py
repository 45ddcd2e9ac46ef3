"""Compute how far a score can be trusted: bootstrap intervals over the images it was computed on.

B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13: draw N of the N images with
replacement, compute the score from the sum of their counts, repeat; the interval reaches from the 2.5th to the 97.5th
percentile. A difference of two models is drawn on the same images for both. The interval says what other images of the
same kind would change; not what another seed of training would.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from halfmask.infer.metrics import Absent
from halfmask.task import Kind

DRAWS = 2000
_LEVEL = 0.95
_AT_ONCE = 200
FEWEST = 2  # images that an interval needs


class Interval(NamedTuple):
    """A score and its 95 % interval; nan where there is no number."""

    value: float
    low: float = math.nan
    high: float = math.nan


class Scored(NamedTuple):
    """The main score and the score of each class."""

    main: Interval
    by_class: tuple[Interval, ...]


def scored(counts: Int[np.ndarray, "N K1 K"], kind: Kind, absent: Absent = "skip", seed: int = 0) -> Scored:
    """Compute scores with intervals.

    Args:
        counts: of each image, as `halfmask.infer.evaluate.count_each` gives them.
        kind: IoU of dense tasks (changed IoU of two-class change detection), accuracy of classification.
        absent: whether a class that occurs nowhere is left out of the mean, or counts 0.
        seed: of the draws.
    """
    return _with_intervals([counts], kind, absent, seed)


def difference(
    first: Int[np.ndarray, "N K1 K"], second: Int[np.ndarray, "N K1 K"], kind: Kind, absent: Absent = "skip",
    seed: int = 0,
) -> Scored:  # fmt: skip
    """Compute how much better the first model is than the second on the same images, with intervals.

    Counts are of the same images, in the same order; the rest is as in `scored`.
    """
    return _with_intervals([first, second], kind, absent, seed)


def _with_intervals(runs: Sequence[np.ndarray], kind: Kind, absent: Absent, seed: int) -> Scored:
    """Score one run, or the first minus the second."""
    parts = [_parts(counts, kind) for counts in runs]

    def score(sums: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        (main, classes), *others = (_scores(one, kind, absent) for one in sums)
        for other, other_classes in others:
            main, classes = np.asarray(main - other), classes - other_classes
        return main, classes

    main, classes = score(one.sum(0) for one in parts)
    if len(runs[0]) < FEWEST:
        return Scored(Interval(float(main)), tuple(Interval(float(value)) for value in classes))
    drawn = [score(_resampled(one, weights) for one in parts) for weights in _weights(len(runs[0]), seed)]
    mains, by_class = (np.concatenate(values) for values in zip(*drawn, strict=True))
    pairs = [_interval(float(value), by_class[:, k]) for k, value in enumerate(classes)]
    return Scored(_interval(float(main), mains), tuple(pairs))


class Draws(NamedTuple):
    """The main score of one run, and the same on each draw of the images."""

    value: float
    drawn: Float[np.ndarray, " D"]


def draws_of(counts: Int[np.ndarray, "N K1 K"], kind: Kind, absent: Absent = "skip", seed: int = 0) -> Draws:
    """Score a run on draws of the images; runs on the same images, with the same seed, are scored on the same draws."""
    parts = _parts(counts, kind)
    main = float(_scores(parts.sum(0), kind, absent)[0])
    drawn = [_scores(_resampled(parts, weights), kind, absent)[0] for weights in _weights(len(counts), seed)]
    return Draws(main, np.concatenate(drawn))


def mean_over_seeds(runs: Sequence[Draws], minus: Sequence[Draws] = (), seed: int = 0) -> Interval:
    """Average runs of several seeds, or their differences to others of the same seeds, with the interval.

    Images and seeds are both drawn with replacement, the same for a run and what it is compared with. Of a few seeds
    the spread is known poorly: then the interval is rather too narrow.

    >>> one, two = Draws(0.5, np.full(DRAWS, 0.5)), Draws(0.7, np.full(DRAWS, 0.7))
    >>> [round(bound, 2) for bound in mean_over_seeds([one, two], [one, one])]
    [0.1, 0.0, 0.2]

    Args:
        runs: of one setting, one per seed.
        minus: of the other setting, in the same order; none: the mean itself.
        seed: of the draws of the seeds.
    """
    values = np.array([run.value for run in runs]) - (np.array([run.value for run in minus]) if minus else 0.0)
    drawn = np.stack([run.drawn for run in runs]) - (np.stack([run.drawn for run in minus]) if minus else 0.0)
    rng = np.random.default_rng(seed)
    shares = rng.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), size=drawn.shape[1]) / len(runs)  # (D, S)
    return _interval(float(values.mean()), (shares.T * drawn).sum(0))


def image_scores(counts: Int[np.ndarray, "N K1 K"], kind: Kind) -> Float[np.ndarray, " N"]:
    """Score every image on its own: mean IoU of the classes that it shows or was said to show; 0 or 1 for a label."""
    parts = _parts(counts, kind)
    if kind == "classification":
        return np.asarray(parts[:, 0].sum(-1) / parts[:, 1].sum(-1).clip(1))
    with np.errstate(invalid="ignore"):
        iou = parts[:, 0] / parts[:, 1]
    shown = ~np.isnan(iou)
    return np.asarray(np.where(shown, iou, 0).sum(-1) / shown.sum(-1).clip(1))


def _parts(counts: Int[np.ndarray, "N K1 K"], kind: Kind) -> Float[np.ndarray, "N 2 K"]:
    """Return numerators and denominators: what is summed over images before it is divided."""
    hits = counts[:, :-1].diagonal(axis1=1, axis2=2)  # (N, K)
    target, predicted = counts[:, :-1].sum(2), counts.sum(1)
    below = target if kind == "classification" else target + predicted - hits
    return np.stack((hits, below), 1).astype(np.float64)


def _scores(
    sums: Float[np.ndarray, "*B 2 K"], kind: Kind, absent: Absent
) -> tuple[Float[np.ndarray, "*B"], Float[np.ndarray, "*B K"]]:
    with np.errstate(invalid="ignore", divide="ignore"):
        by_class = sums[..., 0, :] / sums[..., 1, :]
        if kind == "classification":
            return np.asarray(sums[..., 0, :].sum(-1) / sums[..., 1, :].sum(-1)), by_class
        if kind == "change" and by_class.shape[-1] == 2:
            return np.asarray(by_class[..., 1]), by_class
        shown = ~np.isnan(by_class)
        known = np.where(shown, by_class, 0).sum(-1)
        return np.asarray(known / (shown.sum(-1) if absent == "skip" else by_class.shape[-1])), by_class


def _weights(images: int, seed: int) -> list[Int[np.ndarray, "B N"]]:
    rng = np.random.default_rng(seed)
    even = np.full(images, 1 / images)
    return [rng.multinomial(images, even, size=_AT_ONCE) for _ in range(DRAWS // _AT_ONCE)]


def _resampled(parts: Float[np.ndarray, "N 2 K"], weights: Int[np.ndarray, "B N"]) -> Float[np.ndarray, "B 2 K"]:
    return np.asarray((weights.astype(np.float64) @ parts.reshape(len(parts), -1)).reshape(-1, *parts.shape[1:]))


def _interval(value: float, drawn: Float[np.ndarray, " B"]) -> Interval:
    """Return the interval of draws; none for a class that most draws do not show."""
    drawn = drawn[~np.isnan(drawn)]
    if math.isnan(value) or len(drawn) < DRAWS // 2:
        return Interval(value)
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(value, float(low), float(high))
