"""Score what labeling an image may bring: four criteria, each turned into ranks, and their weighted mean.

    uncertainty    mean over the pixels of H(p) / log K, or of 1 - (p_1 - p_2), averaged over the predictors
    disagreement   part of the pixels to which two predictors give different classes
    diversity      order of the greedy k-center: each next image is the one farthest from the labeled images and those
                   before it, in pooled features of the encoder (Sener and Savarese, Active Learning for Convolutional
                   Neural Networks: A Core-Set Approach, ICLR 2018, arXiv:1708.00489)
    rare           expected part of the image that shows rare classes: the sum of their probabilities

    score = sum of weight * rank / sum of weights,     rank 1 = most to gain, 0 = least; equal values share a rank

Ranks, because the criteria have no common unit: a weight of 2 lets a criterion count twice, whatever its scale.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

CRITERIA = ("uncertainty", "disagreement", "diversity", "rare")
Measure = Literal["entropy", "margin"]
_RARE_PART = 0.5  # of an even share of the labeled pixels
_BLOCK = 256  # labeled images that are compared at once
_MOST_PICKS = 5000  # of the greedy order; images after that rank by distance


class Weights(NamedTuple):
    """How much each criterion counts; 0 leaves it out."""

    uncertainty: float = 1.0
    disagreement: float = 1.0
    diversity: float = 1.0
    rare: float = 1.0


def uncertainty(shares: Float[Tensor, "K H W"], measure: Measure) -> float:
    """Return the mean uncertainty of one prediction, from 0 to 1.

    >>> uncertainty(torch.full((4, 1, 1), 0.25), "entropy"), uncertainty(torch.full((4, 1, 1), 0.25), "margin")
    (1.0, 1.0)
    """
    if measure == "margin":
        best = shares.topk(2, dim=0).values
        return float((1 - (best[0] - best[1])).mean())
    return float(-torch.xlogy(shares, shares).sum(0).mean() / math.log(len(shares)))


def disagreement(predictions: Sequence[Float[Tensor, "K H W"]]) -> float | None:
    """Return the part of the pixels on which predictors differ, averaged over pairs of them; `None` of a single one."""
    ids = [shares.max(0).indices for shares in predictions]
    pairs = [(ids[a] != ids[b]).double().mean() for a in range(len(ids)) for b in range(a)]
    return float(torch.stack(pairs).mean()) if pairs else None


def rare_classes(pixels: Float[np.ndarray, " K"]) -> list[int]:
    """Choose the classes with less than half of an even share of the pixels, or else the rarest one.

    >>> rare_classes(np.array([900.0, 80, 20])), rare_classes(np.array([50.0, 50]))
    ([1, 2], [0])
    """
    shares = pixels / max(pixels.sum(), 1e-12)
    found = np.flatnonzero(shares < _RARE_PART / len(shares))
    return found.tolist() if len(found) else [int(shares.argmin())]


def k_center(
    features: Float[np.ndarray, "M D"], known: Float[np.ndarray, "N D"]
) -> tuple[list[int], Float[np.ndarray, "_M"]]:
    """Order images by greedy k-center, beginning from the known (labeled) ones, of which there may be none.

    Returns:
        Positions, the farthest first, and for each image its distance when its turn came.
    """
    points = _unit(features)
    # Of unit vectors the distance is sqrt(2 - 2 cos), so the farthest image is the one least similar to all centers:
    # a matrix-vector product per pick, where distances would write a copy of all points.
    similar = np.full(len(points), -np.inf)
    for start in range(0, len(known), _BLOCK):
        similar = np.maximum(similar, (points @ _unit(known[start : start + _BLOCK]).T).max(axis=1))
    order: list[int] = []
    closeness, open_ = similar.copy(), np.ones(len(points), dtype=np.bool_)
    for number in range(min(len(points), _MOST_PICKS)):
        if number == 0 and not len(known):  # the image nearest to the middle of all begins
            middle = np.linalg.norm(points - points.mean(axis=0), axis=1)
            pick = int(middle.argmin())
        else:
            pick = int(similar.argmin())
        order.append(pick)
        closeness[pick], open_[pick] = similar[pick], False
        np.maximum(similar, points @ points[pick], out=similar)
        similar[pick] = np.inf  # and stays so: it has had its turn
    rest = np.flatnonzero(open_)
    closeness[rest] = similar[rest]
    distance = np.sqrt(np.clip(2 - 2 * closeness, 0, None))
    if order and not len(known):
        distance[order[0]] = middle.max() + 1 - middle.min()  # nothing is near it, so any number above the others
    return [*order, *rest[np.argsort(closeness[rest], kind="stable")].tolist()], distance


def ranks(values: Sequence[float]) -> Float[np.ndarray, "_M"]:
    """Turn values into ranks: the largest gets 1, the smallest 0, equal ones the mean of theirs.

    >>> ranks([0.3, 0.1, 0.3, 0.9]).tolist()
    [0.5, 0.0, 0.5, 1.0]
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return np.ones(len(array))
    _, group, count = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray(((last - count + last - 1) / 2)[group] / (len(array) - 1))


def combine(ranked: Mapping[str, Float[np.ndarray, "_M"]], weights: Weights) -> Float[np.ndarray, "_M"]:
    """Return the weighted mean of the ranks of the criteria there are."""
    used = {name: getattr(weights, name) for name in ranked if getattr(weights, name) > 0}
    total = sum(used.values())
    length = len(next(iter(ranked.values())))
    return np.asarray(sum((ranked[name] * (weight / total) for name, weight in used.items()), np.zeros(length)))


def _unit(features: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(features / np.maximum(length, 1e-12))
