"""Intersection and union per class, counted class by class from the definition."""

import numpy as np
from jaxtyping import Int64, Integer


def areas(
    prediction: Integer[np.ndarray, "*shape"],
    target: Integer[np.ndarray, "*shape"],
    classes: int,
    ignore_index: int = 255,
) -> tuple[Int64[np.ndarray, " K"], Int64[np.ndarray, " K"], Int64[np.ndarray, " K"]]:
    """Count, for each class, the pixels in the intersection, in the union, and in the target.

    Pixels whose target is `ignore_index` are removed first. A target outside [0, K) that is not ignored belongs
    to no class, but its pixel still is in the union of the class that was predicted there.

    >>> areas(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 255]), classes=2)
    (array([1, 1]), array([2, 2]), array([1, 2]))
    """
    seen = target != ignore_index
    prediction, target = prediction[seen], target[seen]
    intersection = [np.sum((prediction == k) & (target == k)) for k in range(classes)]
    union = [np.sum((prediction == k) | (target == k)) for k in range(classes)]
    support = [np.sum(target == k) for k in range(classes)]
    return (
        np.asarray(intersection, dtype=np.int64),
        np.asarray(union, dtype=np.int64),
        np.asarray(support, dtype=np.int64),
    )


def areas_by_histogram(
    prediction: Integer[np.ndarray, "*shape"],
    target: Integer[np.ndarray, "*shape"],
    classes: int,
    ignore_index: int = 255,
) -> tuple[Int64[np.ndarray, " K"], Int64[np.ndarray, " K"], Int64[np.ndarray, " K"]]:
    """Count the same by three histograms, as evaluation code on the CPU commonly does.

    >>> areas_by_histogram(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 255]), classes=2)
    (array([1, 1]), array([2, 2]), array([1, 2]))
    """
    seen = target != ignore_index
    prediction, target = prediction[seen], target[seen]
    edges = np.arange(classes + 1)
    # The last bin of `numpy.histogram` includes its right edge, so a target of K is kept out beforehand.
    hits, predicted, support = (
        np.histogram(values[values < classes], edges)[0].astype(np.int64)
        for values in (prediction[prediction == target], prediction, target)
    )
    return hits, predicted + support - hits, support
