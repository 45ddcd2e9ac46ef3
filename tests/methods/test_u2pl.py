"""U2PL: losses, masks and queues against the recorded ones."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from halfmask.batch import Progress
from halfmask.methods.u2pl import U2PL, Pixels, negative_masks
from halfmask.task import Task
from halfmask.teaching.queues import ClassQueues
from halfmask.teaching.weighting import entropy, masked_percentile
from halfmask.testing import tiny_batch, tiny_builder, tiny_task

TASK = Task("segmentation", tuple(f"class {number}" for number in range(21)))


def recorded(data: dict[str, Tensor]) -> Pixels:
    probability = torch.cat((data["con_prob_l"], data["con_prob_u"]))
    labels = torch.cat((data["con_label_l"], data["con_label_u"])).long()
    low, high = (data[f"con_{name}_mask"][:, 0] > 0 for name in ("low", "high"))
    return Pixels(data["con_rep"], data["con_rep_teacher"], probability, labels, low, high, 2).coarse()


def made(width: int = 16, **params) -> U2PL:
    return U2PL(TASK, tiny_builder(TASK), width=width, **params)


def test_the_percentile_of_the_entropy_drops_the_recorded_pixels(golden):
    data = golden("peers/u2pl")
    label = data["unsup_target"].long()
    known, h = label != 255, entropy(data["unsup_teacher_logits"])
    keep = known & (h < masked_percentile(h, known, 80.0))
    assert torch.equal(label.masked_fill(~keep, 255), data["unsup_target_after"].long())


def test_negatives_are_those_of_the_paper(golden):
    data = golden("peers/u2pl")
    found = negative_masks(recorded(data), 3, 20, 255)
    assert torch.equal(found, data["paper_negative_mask"].bool().movedim(1, -1).flatten(0, 2))


def test_the_contrast_of_the_published_code_is_the_recorded_one(golden):
    data = golden("peers/u2pl")
    data["con_rep"].requires_grad_()
    method = made(anchors=8, queue=30, negatives="published")
    method.negatives_each = 6
    method.queues = ClassQueues(21, 30, 16)
    method.queues.enqueue(data["con_bank_before"].flatten(0, 1), torch.arange(21).repeat_interleave(5))
    draws = iter([data[f"con_draw_{number:03d}"].long() for number in range(12)])

    def draw(anchor: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
        if not anchor.any():
            return torch.zeros(8, dtype=torch.int64), torch.zeros(48, dtype=torch.int64)
        return anchor.nonzero()[:, 0][next(draws)], filled.nonzero()[:, 0][next(draws)]

    method._draw = draw
    loss = method._contrast(recorded(data))
    assert_close(loss, data["con_loss"], rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(loss, data["con_rep"])
    assert_close(gradient, data["con_grad"], rtol=1e-5, atol=1e-6)

    sizes = data["con_bank_sizes_after"].tolist()
    assert method.queues.filled.sum(1).tolist() == sizes
    for number, expected in enumerate(data["con_bank_after"].split(sizes)):
        found = method.queues.slots[number][method.queues.filled[number]]
        assert torch.equal(found.sort(0).values, expected.sort(0).values)


def test_by_the_paper_queues_fill_faster(golden):
    data = golden("peers/u2pl")
    sizes = {}
    for rule in ("paper", "published"):
        method = made(queue=500, negatives=rule)
        method._contrast(recorded(data))
        sizes[rule] = int(method.queues.filled.sum())
    assert sizes["paper"] > 10 * sizes["published"]


@pytest.mark.parametrize("percent", [0.0, 20.0, 37.5, 80.0, 100.0])
def test_percentiles_are_those_of_numpy(percent):
    values = torch.randn(3, 40, dtype=torch.float64)
    mask = torch.rand(3, 40) < 0.7
    expected = torch.from_numpy(values[mask].numpy()).quantile(percent / 100)
    assert_close(masked_percentile(values, mask, percent), expected)
    assert masked_percentile(values, torch.zeros_like(mask), percent).isnan()


def test_the_first_epoch_is_supervised_and_the_teacher_then_starts_as_the_student():
    task = tiny_task()
    torch.manual_seed(0)
    method = U2PL(task, tiny_builder(task, norm=True), queue=20, width=4, anchors=5)
    batch = tiny_batch(task)
    early = method.step(batch, Progress(0, 20, 10))
    assert set(early.logs) == {"loss_sup"}
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(0.1)
    method.after_update(Progress(9, 20, 10))  # the last step of the first epoch
    theirs = method.student.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in method.teacher.model.state_dict().items())
    late = method.step(batch, Progress(10, 20, 10))
    assert {"loss_sup", "loss_unsup", "loss_contrast"} <= set(late.logs)
    late.loss.backward()
    assert all(parameter.grad is not None for parameter in method.student.parameters())
