"""Confusion matrix and scores against recorded counts, torchmetrics and counting by hand."""

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchmetrics
from rich.console import Console
from torch import Tensor

from halfmask.infer.metrics import ConfusionMatrix, Scores, _spread_histogram
from tests.oracles.confusion import areas

Golden = Callable[[str], dict[str, Tensor]]


def names(classes: int) -> tuple[str, ...]:
    return tuple(f"class{k}" for k in range(classes))


def scores_of(prediction: Tensor, target: Tensor, classes: int, absent: str = "skip") -> Scores:
    matrix = ConfusionMatrix(classes)
    matrix.update(prediction, target)
    return matrix.scores(names(classes), absent)  # type: ignore[arg-type]


def random_maps(classes: int, high: int | None = None, shape: tuple[int, ...] = (3, 20, 31)) -> tuple[Tensor, Tensor]:
    return torch.randint(0, classes, shape), torch.randint(0, high or classes, shape)


def test_recorded_areas_and_mean_of_the_allspark_evaluation(golden: Golden) -> None:
    tensors = golden("allspark/evaluation")
    prediction, target = tensors["confusion/prediction"], tensors["confusion/target"]
    scores = scores_of(prediction, target, 6, "zero")
    # the published code adds 1e-10 to the union and gives percent
    expected = (tensors["confusion/iou_per_class"] / 100).tolist()
    assert [0 if math.isnan(value) else value for value in scores.iou] == pytest.approx(expected, abs=1e-11)
    assert scores.miou == pytest.approx(tensors["confusion/miou"].item() / 100, abs=1e-11)
    assert list(scores.support) == tensors["confusion/target_area"].tolist()
    intersection, union, support = areas(prediction.numpy(), target.numpy(), 6)
    assert intersection.tolist() == tensors["confusion/intersection"].tolist()
    assert union.tolist() == tensors["confusion/union"].tolist()
    assert support.tolist() == tensors["confusion/target_area"].tolist()


def test_counts_agree_with_counting_class_by_class() -> None:
    prediction, target = random_maps(5, high=8)
    target[0, :4] = 255
    target[1, 0] = -3
    intersection, union, support = areas(prediction.numpy(), target.numpy(), 5)
    scores = scores_of(prediction, target, 5)
    assert scores.iou == pytest.approx((intersection / union).tolist(), abs=1e-15)
    assert scores.dice == pytest.approx((2 * intersection / (intersection + union)).tolist(), abs=1e-15)
    assert list(scores.support) == support.tolist()


def test_scores_agree_with_torchmetrics() -> None:
    prediction, target = random_maps(4)
    target[0, :5] = 255
    scores = scores_of(prediction, target, 4)
    shared = {"num_classes": 4, "ignore_index": 255}

    def oracle(metric: type[torchmetrics.Metric], average: str | None) -> Tensor:
        return metric(average=average, **shared)(prediction, target)

    tm = torchmetrics.classification
    for found, metric in [
        (scores.iou, tm.MulticlassJaccardIndex),
        (scores.dice, tm.MulticlassF1Score),
        (scores.precision, tm.MulticlassPrecision),
        (scores.recall, tm.MulticlassRecall),
    ]:
        assert found == pytest.approx(oracle(metric, None).tolist(), abs=1e-6)
    assert scores.miou == pytest.approx(oracle(tm.MulticlassJaccardIndex, "macro").item(), abs=1e-6)
    assert scores.accuracy == pytest.approx(oracle(tm.MulticlassAccuracy, "micro").item(), abs=1e-6)
    assert scores.class_accuracy == pytest.approx(oracle(tm.MulticlassAccuracy, "macro").item(), abs=1e-6)


def test_an_absent_class_is_nan_and_enters_the_mean_as_the_protocol_says() -> None:
    prediction, target = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    skip, zero = scores_of(prediction, target, 3), scores_of(prediction, target, 3, "zero")
    assert skip.iou[:2] == zero.iou[:2] == pytest.approx((1 / 2, 2 / 3))
    assert math.isnan(skip.iou[2])
    assert skip.miou == pytest.approx(7 / 12)
    assert zero.miou == pytest.approx(7 / 18)
    assert "iou/class2" not in skip.to_dict()


def test_a_class_only_predicted_counts_as_zero_in_both_conventions() -> None:
    prediction, target = torch.tensor([0, 1]), torch.tensor([0, 0])
    assert scores_of(prediction, target, 2).iou == (0.5, 0.0)
    assert scores_of(prediction, target, 2).miou == 0.25


def test_ignored_pixels_change_nothing() -> None:
    prediction, target = random_maps(3)
    target[:, ::2] = 255
    before = scores_of(prediction, target, 3)
    prediction[:, ::2] = (prediction[:, ::2] + 1) % 3
    assert scores_of(prediction, target, 3) == before


def test_another_ignore_index_is_honored() -> None:
    matrix = ConfusionMatrix(2, ignore_index=-1)
    matrix.update(torch.tensor([0, 1, 1]), torch.tensor([0, -1, 255]))
    assert matrix.counts.tolist() == [[1, 0], [0, 0], [0, 1]]


def test_merged_parts_equal_the_whole() -> None:
    prediction, target = random_maps(3)
    whole, left, right = ConfusionMatrix(3), ConfusionMatrix(3), ConfusionMatrix(3)
    whole.update(prediction, target)
    left.update(prediction[:1], target[:1])
    right.update(prediction[1:], target[1:])
    left.merge(right)
    assert torch.equal(left.counts, whole.counts)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_small_integer_types_do_not_overflow(dtype: torch.dtype) -> None:
    prediction, target = random_maps(200)
    matrix, expected = ConfusionMatrix(200), ConfusionMatrix(200)
    matrix.update(prediction.to(dtype), target.to(dtype))
    expected.update(prediction, target)
    assert torch.equal(matrix.counts, expected.counts)


def test_the_accelerator_histogram_equals_bincount() -> None:
    bins = torch.randint(0, 7, (1000,))
    assert torch.equal(_spread_histogram(bins, 9), torch.bincount(bins, minlength=9))


def test_names_of_files_are_fractions_with_the_part_in_front() -> None:
    values = scores_of(torch.tensor([0, 1]), torch.tensor([0, 1]), 2).to_dict("val")
    assert {"val/miou", "val/iou/class0", "val/dice", "val/acc"} <= values.keys()
    assert values["val/miou"] == 1.0


def test_the_table_names_classes_that_were_predicted_and_occur_in_no_mask() -> None:
    told = []
    for prediction in ([0, 1, 1, 2], [0, 1, 1, 1]):
        stream = io.StringIO()
        scores_of(torch.tensor(prediction), torch.tensor([0, 0, 1, 1]), 3).print_table(Console(file=stream, width=100))
        told.append("predicted, though no mask has them" in stream.getvalue())
    assert told == [True, False]


def test_the_table_shows_percent_and_na() -> None:
    stream = io.StringIO()
    scores_of(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]), 3).print_table(Console(file=stream), title="val")
    text = stream.getvalue()
    assert "66.67" in text
    assert "n/a" in text
    assert "absent classes: skip" in text


def test_reference_of_nothing_is_zero() -> None:
    intersection, union, support = areas(np.array([0]), np.array([255]), 2)
    assert intersection.tolist() == union.tolist() == support.tolist() == [0, 0]


def test_change_is_scored_by_its_changed_class() -> None:
    matrix = ConfusionMatrix(2)
    # 3 hits, 1 missed, 2 false alarms, 4 rightly unchanged, 1 unknown.
    matrix.update(torch.tensor([1, 1, 1, 0, 1, 1, 0, 0, 0, 0, 1]), torch.tensor([1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 255]))
    scores = matrix.scores(("unchanged", "changed"), kind="change")
    found = scores.to_dict("test")
    assert found["test/changed_iou"] == pytest.approx(3 / 6)
    assert found["test/f1"] == pytest.approx(6 / 9)
    assert found["test/acc"] == pytest.approx(7 / 10)
    assert scores.main == ("changed_iou", pytest.approx(0.5))


def test_without_any_change_the_choice_of_checkpoints_gets_0_not_nan() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(torch.zeros(4).long(), torch.zeros(4).long())
    scores = matrix.scores(("unchanged", "changed"), kind="change")
    assert scores.main == ("changed_iou", 0.0)
    assert "changed_iou" not in scores.to_dict()


def test_labels_are_scored_by_accuracy_and_accuracy_per_class() -> None:
    matrix = ConfusionMatrix(3, ignore_index=-1)
    matrix.update(torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 2, -1]))
    scores = matrix.scores(("cat", "dog", "owl"), kind="classification")
    found = scores.to_dict()
    assert found["acc"] == pytest.approx(3 / 4)
    assert {name: found[f"acc/{name}"] for name in scores.classes} == {"cat": 1, "dog": 0.5, "owl": 1}
    assert found["class_acc"] == pytest.approx(2.5 / 3)
    assert found["f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert "miou" not in found
    console = Console(file=io.StringIO(), width=100)
    scores.print_table(console)
    assert "accuracy 75.00" in console.file.getvalue()
    assert "pixel" not in console.file.getvalue()


@pytest.mark.parametrize(("classes", "kind", "name"), [(3, "change", "miou"), (2, "segmentation", "miou")])
def test_other_tasks_are_chosen_by_mean_iou(classes: int, kind: str, name: str) -> None:
    scores = ConfusionMatrix(classes).scores(tuple("abc"[:classes]), kind=kind)
    assert scores.main[0] == name
    assert "changed_iou" not in scores.to_dict()
