"""U2PL: losses, masks and queues against the recorded ones."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate
from torch.testing import assert_close

from halfmask.batch import Progress
from halfmask.methods.u2pl import U2PL, Pixels, negative_masks
from halfmask.task import Task
from halfmask.teaching.queues import ClassQueues
from halfmask.teaching.weighting import entropy, masked_percentile
from halfmask.testing import no_host_sync, tiny_batch, tiny_builder, tiny_task

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
    assert torch.equal(method.queues.written, 5 + data["con_new_keys_per_class"])
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


def test_anchors_of_the_published_indexing_meet_the_queue_of_another_class_where_one_is_missing():
    """Classes 0 and 2 of four are there: by the code the anchors of class 1, of which there are none, meet queue 2."""
    torch.manual_seed(0)
    rows = 60
    labels = torch.where(torch.arange(rows) % 2 == 0, 0, 2)
    student, teacher = torch.randn(rows, 4, requires_grad=True), torch.randn(rows, 4)
    probability = torch.full((rows, 21), 0.01)
    probability[torch.arange(rows), labels] = 0.8
    everywhere = torch.ones(rows, dtype=torch.bool)
    pixels = Pixels(student, teacher, probability, labels, everywhere, everywhere, everywhere)
    losses, queued = {}, {}
    for rule in ("published", "published_indexing"):
        method = made(width=4, queue=10, anchors=30, negatives=rule)
        method.queues.enqueue(torch.randn(210, 4, generator=torch.Generator().manual_seed(1)), torch.arange(210) % 21)
        seen = []
        method._draw = lambda anchor, filled, seen=seen: (
            seen.append(anchor) or torch.arange(60)[anchor if anchor.any() else slice(30)],
            torch.arange(1500) % 10,
        )
        losses[rule] = method._contrast(pixels)
        queued[rule] = seen
    assert torch.equal(queued["published"][2], labels == 2)
    assert not queued["published_indexing"][2].any()
    (gradient,) = torch.autograd.grad(losses["published_indexing"], student, retain_graph=True)
    assert not gradient[labels == 2].any()  # what belongs to class 2 is not compared with anything
    assert gradient[labels == 0].any()
    (gradient,) = torch.autograd.grad(losses["published"], student)
    assert gradient[labels == 2].any()


def test_the_auxiliary_head_adds_its_share_of_the_labeled_loss():
    task = tiny_task()
    torch.manual_seed(0)
    method = U2PL(task, tiny_builder(task), queue=20, width=4, anchors=5, aux_weight=0.4).double().eval()
    batch = tiny_batch(task)
    batch.labeled.image, batch.unlabeled.image = batch.labeled.image.double(), batch.unlabeled.image.double()
    x_l, y_l = batch.labeled.image, batch.labeled.labels
    inside = method.aux(method.student.encode(x_l)[-2])
    assert inside.shape[1] == task.n_classes
    aux = interpolate(inside, size=y_l.shape[1:], mode="bilinear", align_corners=True)
    expected = cross_entropy(method.student(x_l), y_l, ignore_index=255) + 0.4 * cross_entropy(
        aux, y_l, ignore_index=255
    )
    for step in (0, 10):  # in the supervised epochs and after them
        found = method.step(batch, Progress(step, 20, 10))
        assert_close(found.logs["loss_sup"], expected)
    found.loss.backward()
    assert all(parameter.grad is not None for parameter in method.aux.parameters())
    assert {id(one) for one in method.aux.parameters()} <= {
        id(one) for group in method.parameter_groups()["main"] for one in group.params
    }
    assert not any("aux" in name for name, _ in method.predictors()["teacher"].named_parameters())
    assert made().aux is None


def test_the_switches_do_not_visit_the_host():
    task = tiny_task()
    torch.manual_seed(0)
    switches = {"aux_weight": 0.4, "negatives": "published_indexing"}
    method = U2PL(task, tiny_builder(task), queue=20, width=4, anchors=5, **switches)
    with no_host_sync():
        loss = method.step(tiny_batch(task), Progress(10, 20, 10)).loss
    assert loss.isfinite()


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


def test_a_step_is_the_plain_one():
    """Percentiles by numpy; the contrast, which other tests compare, is replaced by a number."""
    task = tiny_task()
    torch.manual_seed(0)
    method = (
        U2PL(task, tiny_builder(task), width=4, percent=60.0, unlabeled_weight=0.7, contrast_weight=0.3, cutmix=0.0)
        .double()
        .eval()
    )
    batch = tiny_batch(task, size=24)
    batch.labeled.image, batch.unlabeled.image = batch.labeled.image.double(), batch.unlabeled.image.double()
    seen: list[Pixels] = []
    method._contrast = lambda pixels: seen.append(pixels) or torch.tensor(2.0, dtype=torch.float64)
    found = method.step(batch, Progress(5, 20, 2))  # three quarters of the way are left

    x_l, y_l, x_u, valid = batch.labeled.image, batch.labeled.labels, batch.unlabeled.image, batch.unlabeled.valid
    p = method.teacher(x_u).softmax(1).detach()
    h = -(p * p.log()).sum(1).numpy()
    inside = h[valid.numpy()]
    low, keep, high = (np.percentile(inside, at) for at in (20 * 0.75, 100 - 40 * 0.75, 100 - 20 * 0.75))
    kept = valid & torch.from_numpy(h < keep)
    pixels = cross_entropy(method.student(x_u), p.argmax(1), reduction="none")
    loss_l = cross_entropy(method.student(x_l), y_l, ignore_index=task.ignore_index)
    loss_u = pixels[kept].mean() * valid.numel() / kept.sum()
    assert_close(found.logs["loss_sup"], loss_l)
    # The entropy is in single precision: one of 17,000 pixels beside a percentile may be on its other side.
    assert_close(found.logs["loss_unsup"], loss_u, rtol=2e-4, atol=0)
    assert_close(found.loss, loss_l + 0.7 * found.logs["loss_unsup"] + 0.3 * 2.0)
    # At the resolution of the vectors: all labeled pixels and the surest unlabeled ones are reliable.
    (rows,), side = seen, int((len(seen[0].labels) / (len(x_l) + len(x_u))) ** 0.5)
    known, masks = y_l != task.ignore_index, map(torch.from_numpy, (h <= low, h >= high))
    sure, unsure = (torch.cat((known, valid & mask)) for mask in masks)
    for mask, expected in ((rows.reliable, sure), (rows.unreliable, unsure)):
        small = interpolate(expected[:, None].float(), size=(side, side))[:, 0].bool().flatten()
        assert (mask != small).sum() <= 1 < mask.sum()


def test_both_averages_follow_the_student_by_the_same_factor():
    task = tiny_task()
    torch.manual_seed(0)
    method = U2PL(task, tiny_builder(task), queue=20, width=4, ema_decay=0.9, warmup_epochs=0.0)
    pairs = [(method.student, method.teacher.model), (method.head, method.teacher_head.model)]
    before = [[p.clone() for p in average.parameters()] for _, average in pairs]
    with torch.no_grad():
        for net, _ in pairs:
            for parameter in net.parameters():
                parameter.add_(1.0)
    for step, decay in ((3, 0.75), (50, 0.9)):  # 1 - 1 / (step + 1), at most ema_decay
        method.after_update(Progress(step, 100, 10))
        for (net, average), old in zip(pairs, before, strict=True):
            now = list(average.parameters())
            assert_close(now, [decay * q + (1 - decay) * p for p, q in zip(net.parameters(), old, strict=True)])
        before = [[p.clone() for p in average.parameters()] for _, average in pairs]
