"""CutMix-Seg, CPS and FPL: recorded losses, and whole steps against plain ones written from the papers."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from halfmask.batch import Batch, Progress
from halfmask.method import Method, StepOutput
from halfmask.methods.cps import Cps, cross_loss
from halfmask.methods.cutmix_seg import CutMixSeg
from halfmask.methods.fpl import Fpl
from halfmask.testing import tiny_batch, tiny_builder, tiny_task

TASK = tiny_task()
START = Progress(0, 10, 5)


def batch_of(draws: int = 2) -> Batch:
    batch = tiny_batch(TASK, draws=draws)
    batch.unlabeled.valid[0, :3] = False
    batch.labeled.target[1, :, :2] = 255
    return batch


def made(cls: type[Method], **params: Any) -> Method:
    torch.manual_seed(3)
    method = cls(TASK, tiny_builder(TASK), **params).double()
    if hasattr(method, "strong"):
        method.strong = torch.nn.Identity()
    return method


def double(batch: Batch) -> Batch:
    for samples in (batch.labeled, batch.unlabeled, batch.partner):
        if samples is not None:
            samples.image = samples.image.double()
    return batch


def box_of(batch: Batch) -> Tensor:
    box = torch.zeros_like(batch.unlabeled.valid)
    box[:, 2:9, 4:11] = True
    return box


def supervised(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target, ignore_index=255)


def mixed(box: Tensor, own: Tensor, other: Tensor) -> Tensor:
    inside = box[:, None] if own.dim() == 4 else box
    return own * ~inside + other * inside


def test_labels_of_the_other_network_give_the_recorded_loss_of_cps(golden):
    data = golden("peers/cps")
    first, second = data["logits1"].requires_grad_(), data["logits2"].requires_grad_()
    keep = torch.ones(first.shape[0], *first.shape[2:], dtype=torch.bool)
    loss = cross_loss(first, second.argmax(1), keep) + cross_loss(second, first.argmax(1), keep)
    assert_close(loss, data["cps_loss"], rtol=1e-5, atol=0)
    gradients = torch.autograd.grad(loss, (first, second))
    assert_close(gradients, (data["grad1"], data["grad2"]), rtol=1e-5, atol=1e-6)


def check_step(found: StepOutput, loss_l: Tensor, loss_u: Tensor, weight: float) -> None:
    assert_close(found.logs["loss_sup"], loss_l)
    assert_close(found.logs["loss_unsup"], loss_u)
    assert_close(found.loss, loss_l + weight * loss_u)


@pytest.mark.parametrize("per_pixel", [False, True])
def test_a_step_of_cutmix_seg_is_the_plain_one(per_pixel):
    batch = double(batch_of())
    method = made(CutMixSeg, threshold=0.4, unlabeled_weight=3.0, per_pixel=per_pixel).eval()
    box = box_of(batch)
    method.boxes = lambda shape, device: box
    found = method.step(batch, START)

    net, x_0, x_1 = method.student, batch.unlabeled, batch.partner
    target = mixed(box, net(x_0.image), net(x_1.image)).softmax(1).detach()  # the teacher starts as the student
    valid = mixed(box, x_0.valid, x_1.valid)
    confident = (target.amax(1) >= 0.4).double()
    assert 0 < confident.mean() < 1
    squares = ((net(mixed(box, x_0.image, x_1.image)).softmax(1) - target) ** 2).sum(1) * valid
    loss_u = (squares * (confident if per_pixel else confident.mean())).mean()
    check_step(found, supervised(net(batch.labeled.image), batch.labeled.target), loss_u, 3.0)


@pytest.mark.parametrize("ignore_padding", [False, True])
def test_a_mixed_step_of_cps_is_the_plain_one(ignore_padding):
    batch = double(batch_of())
    method = made(Cps, unlabeled_weight=1.5, ignore_padding=ignore_padding).eval()
    box = box_of(batch)
    method.boxes = lambda shape, device: box
    found = method.step(batch, START)

    x_0, x_1 = batch.unlabeled, batch.partner
    image, valid = mixed(box, x_0.image, x_1.image), mixed(box, x_0.valid, x_1.valid)
    nets = (method.net_a, method.net_b)
    labels = [mixed(box, net(x_0.image), net(x_1.image)).argmax(1) for net in nets]
    assert (labels[0] != labels[1]).any()
    hide = (lambda label: label.masked_fill(~valid, 255)) if ignore_padding else (lambda label: label)
    loss_u = sum(supervised(net(image), hide(label)) for net, label in zip(nets, reversed(labels), strict=True))
    loss_l = sum(supervised(net(batch.labeled.image), batch.labeled.target) for net in nets)
    check_step(found, loss_l, loss_u, 1.5)


def test_a_plain_step_of_cps_teaches_on_labeled_images_too():
    batch = double(batch_of(draws=1))
    method = made(Cps, unlabeled_weight=1.5, cutmix=False, ignore_padding=False).eval()
    found = method.step(batch, START)

    image = torch.cat((batch.labeled.image, batch.unlabeled.image))
    nets = (method.net_a, method.net_b)
    labels = [net(image).argmax(1) for net in nets]
    loss_u = sum(supervised(net(image), label) for net, label in zip(nets, reversed(labels), strict=True))
    loss_l = sum(supervised(net(batch.labeled.image), batch.labeled.target) for net in nets)
    check_step(found, loss_l, loss_u, 1.5)


def test_the_mean_of_both_networks_is_shipped_where_asked_for():
    assert list(made(Cps).predictors()) == ["net_a", "net_b"]
    assert list(made(Cps, ensemble=True).predictors()) == ["mean", "net_a", "net_b"]


def test_networks_of_cps_differ_and_get_gradients_of_their_own():
    method = made(Cps)
    pairs = list(zip(method.net_a.classifier.parameters(), method.net_b.classifier.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in pairs)
    method.step(double(batch_of()), START).loss.backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_labels_come_in_training_mode_as_published_or_in_evaluation_mode():
    """A pass in training mode moves the batch statistics."""
    moved = {}
    for mode in ("train", "eval"):
        method = made(Cps, label_mode=mode).train()
        norm = next(part for part in method.net_a.modules() if isinstance(part, torch.nn.BatchNorm2d))
        before = int(norm.num_batches_tracked)
        method.step(double(batch_of()), START)
        moved[mode] = int(norm.num_batches_tracked) - before
    assert moved == {"train": 4, "eval": 2}


def test_a_step_of_fpl_has_the_size_of_cps_and_the_direction_of_its_own_loss():
    batch = double(batch_of())
    method = made(Fpl, threshold=0.6, most=2, ignore_padding=False, unlabeled_weight=2.0).eval()
    box = box_of(batch)
    method.boxes = lambda shape, device: box
    found = method.step(batch, START)

    x_0, x_1 = batch.unlabeled, batch.partner
    image = mixed(box, x_0.image, x_1.image)
    nets = (method.net_a, method.net_b)
    targets = [mixed(box, net(x_0.image), net(x_1.image)).detach() for net in nets]
    plain = sum(supervised(net(image), z.argmax(1)) for net, z in zip(nets, reversed(targets), strict=True))
    loss_l = sum(supervised(net(batch.labeled.image), batch.labeled.target) for net in nets)
    check_step(found, loss_l, plain, 2.0)

    gradients = torch.autograd.grad(found.loss, [net.classifier.weight for net in nets])
    total = loss_l
    for net, z in zip(nets, reversed(targets), strict=True):
        logits = net(image)
        own = pixelwise(logits, z, threshold=0.6, most=2).mean()
        total = total + 2.0 * own * (supervised(logits, z.argmax(1)) / own).detach()
    assert_close(gradients, torch.autograd.grad(total, [net.classifier.weight for net in nets]))


def pixelwise(logits: Tensor, teacher: Tensor, threshold: float, most: int) -> Tensor:
    """The loss of FPL, one pixel after the other."""
    losses = []
    for s, z in zip(logits.movedim(1, -1).reshape(-1, 3), teacher.movedim(1, -1).reshape(-1, 3), strict=True):
        p, order = z.softmax(0).sort(descending=True)
        count = next((n for n in range(1, most) if p[: n + 1].sum() >= threshold), most)
        positive = order[:count]
        others = order[count:]
        losses.append(torch.log(1 + torch.exp(-s[positive]).sum() * torch.exp(s[others]).sum()))
    return torch.stack(losses)


def test_fpl_with_two_classes_has_one_positive():
    from halfmask.errors import RecipeError
    from halfmask.task import Task

    two = Task("segmentation", ("ground", "leaf"))
    assert Fpl(two, tiny_builder(two)).most == 1
    one = Task("segmentation", ("ground",))
    with pytest.raises(RecipeError, match="Use method cps"):
        Fpl(one, tiny_builder(two))
