"""Distribution alignment against the sentences of ReMixMatch, in one process and in two; switched on in its methods."""

import pytest
import torch

from halfmask.batch import Progress
from halfmask.errors import RecipeError
from halfmask.methods.fixmatch import FixMatch
from halfmask.methods.unimatch_v2 import UniMatchV2
from halfmask.teaching.alignment import DistributionAlignment
from halfmask.testing import check_method, check_two_processes, tiny_batch, tiny_builder, tiny_task
from tests.processes import in_two_processes

WINDOW, CLASSES = 3, 4


def by_hand(batches, labels, target):
    """Aligned probabilities of the last of several batches, by means over lists."""
    even = torch.full((CLASSES,), 1 / CLASSES)
    predicted = [even] * WINDOW + [logits.softmax(1).mean(0) for logits in batches]
    shares = [torch.tensor([float((y == k).sum()) for k in range(CLASSES)]) / (y >= 0).sum() for y in labels]
    labeled = [even] * WINDOW + shares
    p = even if target == "uniform" else sum(labeled[-WINDOW:]) / WINDOW
    q = batches[-1].softmax(1) * p / (sum(predicted[-WINDOW:]) / WINDOW)
    return q / q.sum(1, keepdim=True)


@pytest.mark.parametrize("target", ["uniform", "labeled"])
def test_predictions_are_scaled_by_the_ratio_of_the_running_means(target):
    torch.manual_seed(0)
    align = DistributionAlignment(CLASSES, target, window=WINDOW)
    batches = [2 * torch.randn(6, CLASSES) + torch.tensor([2.0, 0.0, 0.0, -1.0]) for _ in range(5)]
    labels = [torch.tensor([0, 1, 2, 3, 3, -1])[torch.randperm(6)[:4]] for _ in range(5)]
    for count in range(1, 6):
        found = align(batches[count - 1], labels[count - 1]).softmax(1)
        # 1e-6 is added to both means.
        torch.testing.assert_close(found, by_hand(batches[:count], labels[:count], target), rtol=1e-4, atol=1e-5)


def test_labels_that_are_all_unknown_and_classes_that_are_never_predicted_stay_finite():
    align = DistributionAlignment(3, "labeled", window=1)
    logits = torch.tensor([[0.0, -200.0, -200.0]])
    assert align(logits, torch.tensor([-1, -1])).isfinite().all()
    assert align.labeled.tolist() == [pytest.approx([1 / 3] * 3)]


class FixMatchOfLabels(FixMatch):
    tasks = frozenset({"classification"})


class UniMatchV2OfLabels(UniMatchV2):
    tasks = frozenset({"classification"})


@pytest.mark.parametrize(
    ("method", "params"),
    [
        (FixMatchOfLabels, {"distribution_alignment": "labeled", "teacher": "student"}),
        (UniMatchV2OfLabels, {"distribution_alignment": "uniform", "dropout_at": "classifier"}),
    ],
)
def test_methods_that_align_keep_the_contract(method, params):
    """Among others: no host synchronization, and a run resumed from its state goes on as if it had not stopped."""
    check_method(method, threshold=0.3, **params)


@pytest.mark.parametrize("method", [FixMatch, UniMatchV2])
def test_a_class_that_was_predicted_too_often_is_predicted_less(method):
    task = tiny_task("classification")
    torch.manual_seed(0)
    made = method(task, tiny_builder(task), distribution_alignment="uniform", threshold=0.0).train()
    with torch.no_grad():
        for model in made.predictors().values():
            model.classifier.bias[0] += 3  # everything looks like class 0
    batch = tiny_batch(task, draws=made.draws)
    share = made.step(batch, Progress(0, 8, 4)).logs["pseudo/share"]
    assert share[0] == 1  # so far the window is uniform
    predicted = made.teacher.model.eval()(batch.unlabeled.image).softmax(1).mean(0)
    torch.testing.assert_close(made.align.predicted[-1], predicted)
    made.align.predicted[:, 0], made.align.predicted[:, 1:] = 0.99, 0.01 / (task.n_classes - 1)
    share = made.step(batch, Progress(1, 8, 4)).logs["pseudo/share"]
    assert share[0] == 0


@pytest.mark.parametrize("method", [FixMatch, UniMatchV2])
@pytest.mark.parametrize("kind", ["segmentation", "change"])
def test_pixels_are_not_aligned_to_equal_shares(method, kind):
    task = tiny_task(kind)
    with pytest.raises(RecipeError, match=f"the task is {kind}.*distribution_alignment=labeled"):
        method(task, tiny_builder(task), distribution_alignment="uniform")


def test_pixels_are_aligned_as_so_many_images():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, CLASSES, 3, 5), torch.randint(-1, CLASSES, (2, 6, 4))
    rows = logits.movedim(1, -1).flatten(0, 2)
    found = DistributionAlignment(CLASSES, "labeled", window=WINDOW)(logits, labels).softmax(1)
    expected = by_hand([rows], [labels.flatten()[labels.flatten() >= 0]], "labeled")
    torch.testing.assert_close(found.movedim(1, -1).flatten(0, 2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("targets", ["hard", "soft"])
def test_segmentation_aligns_to_the_labels(targets):
    confidence = {"threshold": 0.3} if targets == "hard" else {}
    check_method(FixMatch, distribution_alignment="labeled", targets=targets, **confidence)


def _mean_over_processes(number: int) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, CLASSES), torch.tensor([0, 1, 3, 3])
    alone = by_hand([logits], [labels], "labeled")
    mine = slice(2 * number, 2 * number + 2)
    found = DistributionAlignment(CLASSES, "labeled", window=WINDOW)(logits[mine], labels[mine]).softmax(1)
    torch.testing.assert_close(found, alone[mine], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_align_to_the_mean_of_both():
    in_two_processes(_mean_over_processes)


@pytest.mark.slow
def test_methods_that_align_stay_one_method_in_two_processes():
    check_two_processes(
        (FixMatchOfLabels, {"distribution_alignment": "labeled"}),
        (UniMatchV2OfLabels, {"distribution_alignment": "uniform", "dropout_at": "classifier"}),
    )
