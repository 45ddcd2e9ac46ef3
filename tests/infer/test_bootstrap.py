"""Intervals against what is known without a bootstrap."""

import math

import numpy as np
import pytest
import torch

from halfmask.infer.bootstrap import difference, image_scores, scored
from halfmask.infer.metrics import ConfusionMatrix


def random_counts(images: int, classes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 50, (images, classes + 1, classes))


@pytest.mark.parametrize("absent", ["skip", "zero"])
@pytest.mark.parametrize("kind", ["segmentation", "change", "classification"])
def test_scores_are_those_of_the_summed_matrix(kind, absent):
    classes = 2 if kind == "change" else 4
    counts = random_counts(7, classes)
    if kind == "segmentation":
        counts[:, 3], counts[:, :, 3] = 0, 0  # a class that occurs nowhere
    matrix = ConfusionMatrix(classes)
    matrix.counts += torch.from_numpy(counts.sum(0))
    expected = matrix.scores(tuple("abcd")[:classes], absent, kind)
    found = scored(counts, kind, absent)
    assert found.main.value == pytest.approx(expected.main[1], abs=1e-12)
    by_class = expected.recall if kind == "classification" else expected.iou
    assert [one.value for one in found.by_class] == pytest.approx(by_class, abs=1e-12, nan_ok=True)
    assert found.main.low <= found.main.value <= found.main.high


def test_the_interval_of_an_accuracy_has_the_width_of_the_binomial():
    """Whole images, 300 of 400 right: standard deviation sqrt(p (1 - p) / n)."""
    counts = np.zeros((400, 3, 2), dtype=np.int64)
    counts[:300, 0, 0] = 1
    counts[300:, 0, 1] = 1
    found = scored(counts, "classification").main
    width = 2 * 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert found.value == 0.75
    assert found.high - found.low == pytest.approx(width, rel=0.1)
    assert (found.low + found.high) / 2 == pytest.approx(0.75, abs=0.01)


def test_a_difference_is_drawn_on_the_same_images():
    first, harder = random_counts(30, 3), random_counts(30, 3)
    same = difference(first, harder, "segmentation").main
    assert (same.value, same.low, same.high) == (0, 0, 0)
    better = first.copy()
    for k in range(3):
        better[:, k, k] += 5  # a little better on every image
    gain = difference(better, first, "segmentation").main
    alone = scored(first, "segmentation").main
    assert gain.low > 0
    assert gain.high - gain.low < (alone.high - alone.low) / 3  # the images' own difficulty cancels
    back = difference(first, better, "segmentation").main
    assert (back.value, back.low, back.high) == pytest.approx((-gain.value, -gain.high, -gain.low))


def test_one_image_has_no_interval_and_an_absent_class_no_number():
    counts = random_counts(1, 3)
    counts[:, 2], counts[:, :, 2] = 0, 0
    found = scored(counts, "segmentation")
    assert math.isnan(found.main.low)
    assert not math.isnan(found.main.value)
    assert math.isnan(found.by_class[2].value)
    rare = random_counts(40, 3)
    rare[1:, 2], rare[1:, :, 2] = 0, 0  # shown by one image of forty: four of ten draws lack it
    rare[:, 3] = 0
    assert not math.isnan(scored(rare, "segmentation").by_class[2].value)


def test_images_are_scored_by_the_classes_they_show():
    counts = np.zeros((3, 4, 3), dtype=np.int64)
    counts[0, 0, 0] = 10  # one class, all right
    counts[1, 0, 0], counts[1, 0, 1] = 5, 5  # half of it taken for another, which has IoU 0
    assert image_scores(counts, "segmentation").tolist() == [1.0, 0.25, 0.0]
    assert image_scores(counts, "classification").tolist() == [1.0, 0.5, 0.0]
