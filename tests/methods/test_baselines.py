"""What distinguishes the methods, on tiny networks: terms, weights, views, and who labels whom."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from halfmask.batch import Progress
from halfmask.methods.fixmatch import FixMatch
from halfmask.methods.mean_teacher import MeanTeacher
from halfmask.methods.pseudo_label import PseudoLabel
from halfmask.methods.supervised import Supervised
from halfmask.plugins import names, resolve
from halfmask.testing import tiny_batch, tiny_builder, tiny_task
from tests.oracles import losses as plain

TASK = tiny_task()
START = Progress(0, 100, 10)


class Identity(nn.Module):
    """A strong view that changes nothing."""

    def forward(self, image: Tensor) -> Tensor:
        return image


def make(cls, norm=True, **params):
    torch.manual_seed(3)
    method = cls(TASK, tiny_builder(TASK, norm=norm), **params).train()
    method.strong = Identity()
    return method


def test_supervised_is_the_cross_entropy_and_draws_nothing_unlabeled():
    method, batch = make(Supervised), tiny_batch(TASK, draws=0)
    loss = method.step(batch, START).loss
    assert method.draws == 0
    assert_close(loss, plain.cross_entropy(method.student(batch.labeled.image), batch.labeled.labels))


@pytest.mark.parametrize("labeled_color", [False, True])
def test_supervised_changes_colors_only_where_wanted(labeled_color):
    method, batch = make(Supervised, labeled_color=labeled_color), tiny_batch(TASK, draws=0)
    method.strong.forward = lambda image: 0.5 * image
    image = batch.labeled.image * (0.5 if labeled_color else 1.0)
    assert_close(method.step(batch, START).loss, plain.cross_entropy(method.student(image), batch.labeled.labels))


@pytest.mark.parametrize("weight", [0.0, 1.0, 4.0])
def test_fixmatch_weighs_its_terms_without_changing_the_total_weight(weight):
    output = make(FixMatch, threshold=0.0, unlabeled_weight=weight).step(tiny_batch(TASK), START)
    logs = output.logs
    assert_close(output.loss, (logs["loss_sup"] + weight * logs["loss_unsup"]) / (1 + weight))
    assert logs["loss_unsup"] > 0
    assert logs["pseudo/coverage"] == 1


def test_fixmatch_learns_nothing_from_labels_below_the_threshold():
    logs = make(FixMatch, threshold=1.0).step(tiny_batch(TASK), START).logs
    assert logs["loss_unsup"] == 0
    assert logs["pseudo/coverage"] == 0


@pytest.mark.parametrize("teacher", ["ema", "student"])
def test_fixmatch_learns_from_a_label_whose_confidence_is_exactly_the_threshold(teacher):
    method = make(FixMatch, norm=False, threshold=0.5, cutmix=0.0, teacher=teacher)
    for model in method.predictors().values():
        with torch.no_grad():
            model.classifier.weight.zero_()
            model.classifier.bias.copy_(torch.tensor([0.0, 0.0, -1e4]))  # probabilities 1/2, 1/2, 0, without rounding
    batch = tiny_batch(TASK)
    logs = method.step(batch, START).logs
    assert logs["pseudo/coverage"] == 1
    assert_close(logs["loss_unsup"], torch.tensor(2.0).log())
    # The next number above it is a threshold that no pixel reaches.
    method.threshold = float(np.nextafter(np.float32(0.5), np.float32(1)))
    logs = method.step(batch, START).logs
    assert logs["pseudo/coverage"] == 0
    assert logs["loss_unsup"] == 0


@pytest.mark.parametrize("teacher", ["ema", "student"])
def test_fixmatch_equals_its_equations(teacher):
    # Without batch norm it does not matter which images share a pass.
    method = make(FixMatch, norm=False, threshold=0.38, cutmix=0.0, teacher=teacher)
    batch = tiny_batch(TASK)
    x_l, x_u, valid = batch.labeled.image, batch.unlabeled.image, batch.unlabeled.valid
    loss, logs = method.step(batch, START)

    confidence, label = method.student(x_u).detach().softmax(1).max(1)
    keep = (confidence >= 0.38) & valid
    assert 0 < keep.sum() < valid.sum()
    loss_l = plain.cross_entropy(method.student(x_l), batch.labeled.labels)
    loss_u = plain.masked_cross_entropy(method.student(x_u), label, keep, valid)
    assert_close(loss, (loss_l + loss_u) / 2)
    assert_close(logs["pseudo/agreement"], torch.tensor(1.0))


def test_fixmatch_pastes_label_confidence_and_validity_with_the_pixels():
    method = make(FixMatch, norm=False, threshold=0.38)
    batch = tiny_batch(TASK)
    box = torch.zeros(2, 32, 32, dtype=torch.bool)
    box[0, 4:20, 8:30] = True
    method.boxes = lambda shape, device: box
    loss_u = method.step(batch, START).logs["loss_unsup"]

    x, valid = batch.unlabeled.image.clone(), batch.unlabeled.valid.clone()
    x[0, :, 4:20, 8:30], valid[0, 4:20, 8:30] = x[1, :, 4:20, 8:30], valid[1, 4:20, 8:30]
    confidence, label = method.student(batch.unlabeled.image).detach().softmax(1).max(1)
    for own in (confidence, label):
        own[0, 4:20, 8:30] = own[1, 4:20, 8:30].clone()
    keep = (confidence >= 0.38) & valid
    assert_close(loss_u, plain.masked_cross_entropy(method.student(x), label, keep, valid))


def test_a_threshold_beside_soft_targets_is_said_to_do_nothing():
    with pytest.warns(UserWarning, match="no effect with method.targets=soft"):
        method = make(FixMatch, norm=False, targets="soft", threshold=1.0)
    batch = tiny_batch(method.task, draws=method.draws)
    assert method.step(batch, Progress(8, 10, 2)).logs["pseudo/coverage"] == 1


@pytest.mark.parametrize("partner", ["flip", "shuffle"])
@pytest.mark.parametrize("teacher", ["ema", "student"])
def test_fixmatch_with_soft_targets_learns_the_distribution_of_every_valid_pixel(teacher, partner):
    method = make(FixMatch, norm=False, targets="soft", teacher=teacher, cutmix_partner=partner)
    batch = tiny_batch(TASK, draws=2)
    box = torch.zeros(2, 32, 32, dtype=torch.bool)
    box[0, 4:20, 8:30] = True
    method.boxes = lambda shape, device: box
    loss, logs = method.step(batch, START)

    own, other = batch.draw(0), batch.draw(1)
    second = (own.image.flip(0), own.valid.flip(0)) if partner == "flip" else (other.image, other.valid)
    x, valid = torch.where(box[:, None], second[0], own.image), torch.where(box, second[1], own.valid)
    q = torch.where(box[:, None], method.student(second[0]), method.student(own.image)).detach().softmax(1)
    pixel = torch.nn.functional.cross_entropy(method.student(x), q, reduction="none")
    loss_u = pixel[valid].mean()
    assert_close(logs["loss_unsup"], loss_u)
    assert_close(loss, (logs["loss_sup"] + loss_u) / 2)
    loss.backward()
    assert all(
        p.grad is None for net in method.predictors().values() if net is not method.student for p in net.parameters()
    )


def test_fixmatch_with_another_draw_pastes_from_it():
    method = make(FixMatch, norm=False, threshold=0.0, cutmix_partner="shuffle")
    batch = tiny_batch(TASK, draws=2)
    method.boxes = lambda shape, device: torch.ones(shape, dtype=torch.bool)  # the partner everywhere
    loss_u = method.step(batch, START).logs["loss_unsup"]
    logits = method.student(batch.partner.image)
    valid = batch.partner.valid
    assert_close(loss_u, plain.masked_cross_entropy(logits, logits.argmax(1), valid, valid))


def test_fixmatch_ships_the_teacher_which_starts_as_the_student_after_one_step():
    method = make(FixMatch)
    assert list(method.predictors()) == ["teacher", "student"]
    with torch.no_grad():
        method.student.classifier.weight.add_(1)
    method.after_update(START)
    assert torch.equal(method.teacher.model.classifier.weight, method.student.classifier.weight)
    with torch.no_grad():
        method.student.classifier.weight.add_(1)
    method.after_update(Progress(1, 100, 10))  # decay 1/2
    assert_close(method.teacher.model.classifier.weight + 0.5, method.student.classifier.weight)
    assert list(make(FixMatch, teacher="student").predictors()) == ["student"]


def test_fixmatch_warns_where_cutmix_has_no_partner():
    with pytest.warns(UserWarning, match="one image per process"):
        make(FixMatch).step(tiny_batch(TASK, size=1), START)


def test_weak_images_move_no_statistics_of_a_student_with_a_teacher():
    method, batch = make(FixMatch), tiny_batch(TASK)
    changed = tiny_batch(TASK)
    changed.unlabeled.image = torch.rand_like(changed.unlabeled.image)
    strong = batch.unlabeled.image
    method.strong.forward = lambda image: strong
    statistics = []
    for each in (batch, changed):
        fresh = make(FixMatch)
        fresh.strong.forward = lambda image: strong
        fresh.boxes = lambda shape, device: torch.zeros(shape, dtype=torch.bool)
        fresh.step(each, START)
        statistics.append(fresh.student.encoder.stages[0][1].running_mean.clone())
    assert torch.equal(*statistics)


def test_mean_teacher_equals_its_equations_and_ramps_up():
    method = make(MeanTeacher, norm=False, unlabeled_weight=8.0, ramp_up=0.5)
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    batch = tiny_batch(TASK)
    valid = batch.unlabeled.valid
    student = method.student(batch.unlabeled.image).softmax(1)
    teacher = method.teacher(batch.unlabeled.image).softmax(1)
    consistency = (student - teacher).square().sum(1)[valid].mean()
    loss_l = plain.cross_entropy(method.student(batch.labeled.image), batch.labeled.labels)
    assert consistency > 0
    for step, ramp in ((0, 2.718281828**-5), (25, 2.718281828**-1.25), (50, 1.0), (99, 1.0)):
        assert_close(method.step(batch, Progress(step, 100, 10)).loss, loss_l + 8 * ramp * consistency)


def test_mean_teacher_is_satisfied_where_student_and_teacher_agree():
    logs = make(MeanTeacher, norm=False).step(tiny_batch(TASK), START).logs
    assert logs["loss_unsup"] < 1e-12
    assert logs["pseudo/agreement"] == 1


@pytest.mark.parametrize("ignore_padding", [True, False])
def test_pseudo_label_equals_its_equations(ignore_padding):
    method = make(PseudoLabel, ignore_padding=ignore_padding, labeled_color=False)
    batch = tiny_batch(TASK)
    x_l, x_u = batch.labeled.image, batch.unlabeled.image
    method.student.eval()
    label = method.student(x_u).argmax(1)
    method.student.train()
    logits_l, logits_u = method.student(torch.cat((x_l, x_u))).chunk(2)  # one pass: shared batch statistics
    valid = batch.unlabeled.valid if ignore_padding else torch.ones_like(batch.unlabeled.valid)
    expected = plain.cross_entropy(logits_l, batch.labeled.labels)
    expected = (expected + plain.masked_cross_entropy(logits_u, label, valid, valid)) / 2
    twin = make(PseudoLabel, ignore_padding=ignore_padding, labeled_color=False)
    assert_close(twin.step(batch, START).loss, expected)


def test_pseudo_label_colors_the_labeled_images_only_on_request():
    batch = tiny_batch(TASK)
    seen: list[Tensor] = []
    for labeled_color in (True, False):
        method = make(PseudoLabel, labeled_color=labeled_color)
        method.strong.forward = lambda image: seen.append(image) or image
        method.step(batch, START)
    assert [id(image) for image in seen] == [id(batch.labeled.image)]


@pytest.mark.parametrize("name", names("methods"))
def test_the_supervised_loss_falls(name):
    torch.manual_seed(0)
    method = resolve("methods", name)(TASK, tiny_builder(TASK)).train()
    optimizers = {
        key: torch.optim.Adam([p for group in groups for p in group.params], lr=0.02)
        for key, groups in method.parameter_groups().items()
    }
    share = method.draws_share_images
    batches = [tiny_batch(TASK, draws=method.draws, share_images=share, seed=seed) for seed in range(2)]
    losses = []
    for step in range(30):
        progress = Progress(step, 30, 2)
        for update in method.updates(batches[step % 2], progress):
            optimizers[update.group].zero_grad()
            update.output.loss.backward()
            optimizers[update.group].step()
            for term in {"loss_sup", "loss_tags"} & update.output.logs.keys():
                losses.append(float(update.output.logs[term].detach()))
        method.after_update(progress)
    assert sum(losses[-2:]) < 0.7 * sum(losses[:2])
