"""Losses of unlabeled pixels against recorded values and gradients of the authors' code."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from halfmask.losses.pseudo_labels import (
    fuzzy_loss,
    fuzzy_positives,
    fuzzy_weight,
    probability_distance,
    pseudo_label_loss,
)
from halfmask.models.coarse_logits import CoarseLogits


def check(loss, logits, expected, gradient):
    assert_close(loss, expected, rtol=1e-5, atol=0)
    (found,) = torch.autograd.grad(loss, logits)
    assert_close(found, gradient, rtol=1e-5, atol=1e-6)


def test_the_divisor_scaled_is_that_of_u2pl(golden):
    data = golden("peers/u2pl")
    logits = data["unsup_student_logits"].requires_grad_()
    label = data["unsup_target_after"].long()
    keep = label != 255
    loss = pseudo_label_loss(logits, label, keep, valid=data["unsup_target"] != 255, divisor="scaled")
    check(loss, logits, data["unsup_loss"], data["unsup_grad"])


def test_the_divisor_all_is_that_of_augseg(golden):
    data = golden("peers/augseg")
    logits = data["student_logits"].requires_grad_()
    label = data["mixed_label"].long()
    known = label != 255
    keep = (data["mixed_conf"] >= 0.95) & known
    assert_close(keep.float().mean(), data["high_ratio"])
    loss = pseudo_label_loss(logits, label, keep, valid=known, divisor="all")
    check(loss, logits, data["loss"], data["grad"])


def test_the_divisor_kept_with_weights_is_that_of_ps_mt(golden):
    data = golden("peers/ps_mt")
    logits = data["semi_student_logits"].requires_grad_()
    confidence, label = data["semi_teacher_logits"].softmax(1).max(1)
    keep = confidence >= 0.6
    loss = pseudo_label_loss(logits, label, keep, valid=torch.ones_like(keep), divisor="kept", weight=confidence)
    check(loss, logits, data["semi_loss"], data["semi_grad"])


def test_the_divisor_valid_with_weights_is_that_of_ccvc(golden):
    data = golden("peers/ccvc")
    valid = data["ignore_mask"] != 255
    first, second = data["logits1"].requires_grad_(), data["logits2"].requires_grad_()
    losses = [
        pseudo_label_loss(student, teacher.argmax(1), valid, valid=valid, weight=1.0 + data[f"conflict_confident_{k}"])
        for k, student, teacher in ((1, second, first), (2, first, second))
    ]
    assert_close(losses[0], data["loss_con1"], rtol=1e-5, atol=0)
    assert_close(losses[1], data["loss_con2"], rtol=1e-5, atol=0)
    gradients = torch.autograd.grad(sum(losses) / 2, (first, second))
    assert_close(gradients, (data["grad1"], data["grad2"]), rtol=1e-5, atol=1e-6)


def test_squared_distances_are_those_of_cutmix_seg(golden):
    data = golden("peers/cutmix_seg")
    inside = data["mix_mask"]
    target = (data["teacher_logits0"] * (1 - inside) + data["teacher_logits1"] * inside).softmax(1)
    valid = (data["valid0"] * (1 - inside) + data["valid1"] * inside)[:, 0]
    confident = (target.amax(1) >= 0.97).float()
    assert_close(confident.mean(), data["conf_rate"])
    for number, weight in enumerate((confident.mean(), confident)):
        logits = data["student_logits"].clone().requires_grad_()
        loss = probability_distance(logits, target, valid * weight)
        check(loss, logits, data[f"loss_per_pixel_{number}"], data[f"grad_per_pixel_{number}"])


@pytest.mark.parametrize("kind", ["none", "linear", "convex", "concave"])
def test_fuzzy_losses_are_those_of_fpl(golden, kind):
    data = golden("peers/fpl")
    logits = data["student_logits"].requires_grad_()
    positive, mean, left_out = fuzzy_positives(data["teacher_logits"], most=3, threshold=0.9)
    weight = fuzzy_weight(kind, mean, left_out)
    assert_close(weight, data[f"{kind}_weight_map"].to(weight.dtype), rtol=1e-5, atol=1e-6)
    pixels = fuzzy_loss(logits, positive)
    assert_close(pixels, data[f"{kind}_loss_map"], rtol=1e-5, atol=1e-6)
    check((pixels * weight).mean(), logits, data[f"{kind}_loss"], data[f"{kind}_grad"])


def test_a_single_positive_gives_the_cross_entropy():
    logits = torch.randn(2, 5, 7, dtype=torch.float64)
    label = torch.randint(5, (2, 7))
    positive = F.one_hot(label, 5).movedim(-1, 1).bool()
    assert_close(fuzzy_loss(logits, positive), F.cross_entropy(logits, label, reduction="none"))


def test_positives_grow_until_they_reach_the_threshold():
    probability = torch.tensor([[0.85, 0.1, 0.03, 0.02], [0.5, 0.3, 0.15, 0.05], [0.28, 0.26, 0.24, 0.22]])
    positive, mean, left_out = fuzzy_positives(probability.log(), most=3, threshold=0.9)
    assert positive.sum(1).tolist() == [1, 2, 3]
    assert_close(mean, torch.tensor([0.475, 0.95 / 3, 0.25]))
    assert_close(left_out, torch.tensor([0.1, 0.15, 0.22]))


@pytest.mark.parametrize("divisor", ["valid", "all", "kept", "scaled", "weight"])
@pytest.mark.parametrize("weighted", [False, True])
def test_nothing_kept_is_a_loss_of_zero_with_a_zero_gradient(divisor, weighted):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    label, none = torch.zeros(2, 4, 4, dtype=torch.int64), torch.zeros(2, 4, 4, dtype=torch.bool)
    weight = torch.rand(2, 4, 4) if weighted else None
    loss = pseudo_label_loss(logits, label, none, valid=none, divisor=divisor, weight=weight)
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("divisor", ["valid", "all", "kept", "scaled", "weight"])
def test_coarse_logits_give_the_same_losses(divisor):
    coarse = CoarseLogits(torch.randn(2, 3, 4, 4, dtype=torch.float64), (13, 11), align_corners=True)
    label = torch.randint(3, (2, 13, 11))
    keep, weight = torch.rand(2, 13, 11) < 0.5, torch.rand(2, 13, 11, dtype=torch.float64)
    valid = torch.ones_like(keep)
    for given in (None, weight):
        found = pseudo_label_loss(coarse, label, keep, valid=valid, divisor=divisor, weight=given)
        whole = pseudo_label_loss(coarse.upsampled(), label, keep, valid=valid, divisor=divisor, weight=given)
        assert_close(found, whole)
