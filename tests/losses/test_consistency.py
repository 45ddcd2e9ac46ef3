"""Distances on recorded logits (float32 recordings: 1e-6), and what masks and factors do to them."""

import json

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from halfmask.losses.consistency import Objective, consistency_loss, pairwise_loss, pixel_weight, weighted_terms
from halfmask.losses.cross_entropy import bootstrapped_cross_entropy, cross_entropy
from halfmask.teaching.ramps import ramp
from tests.oracles import cct as plain

CASES = {
    "mse": {"distance": "mse"},
    "mse_use_softmax": {"distance": "mse"},
    "kl": {"distance": "kl"},
    "js": {"distance": "js_official"},
    "mse_conf0.5": {"distance": "mse", "threshold": 0.5},
    "mse_conf0.7": {"distance": "mse", "threshold": 0.7},
    "kl_conf0.5": {"distance": "kl", "threshold": 0.5},
    "kl_conf0.7": {"distance": "kl", "threshold": 0.7},
}


def close(loss: Tensor, logits: Tensor, tensors: dict[str, Tensor], name: str) -> None:
    assert_close(loss.double().detach(), tensors[f"loss/{name}"], rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert_close(gradient, tensors[f"grad/{name}"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_distances_and_their_gradients_are_the_recorded_ones(golden, name):
    tensors = golden("cct/losses")
    logits = tensors["inputs_logits"].requires_grad_()
    close(consistency_loss(logits, tensors["targets_prob"], **CASES[name]), logits, tensors, name)


@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_nothing_confident_gives_0_with_a_gradient(golden, distance):
    tensors = golden("cct/losses")
    logits = tensors["inputs_logits"].requires_grad_()
    loss = consistency_loss(logits, tensors["targets_prob"], distance=distance, threshold=0.9999)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_a_target_exactly_as_confident_as_the_threshold_does_not_count(distance):
    target = torch.tensor([[[0.75, 0.5], [0.25, 0.5]]])  # (1, 2 classes, 2 pixels)
    loss = consistency_loss(torch.randn(1, 2, 2), target, distance=distance, threshold=0.75)
    assert loss.item() == 0
    below = consistency_loss(torch.randn(1, 2, 2), target, distance=distance, threshold=0.7499)
    assert below.item() > 0


def test_counts_of_confident_pixels(golden, shared):
    table = json.loads((shared / "golden" / "cct" / "losses.json").read_text())
    tensors = golden("cct/losses")
    assert_close(tensors["targets_logits"].softmax(1), tensors["targets_prob"], rtol=1e-6, atol=1e-7)
    confidence = tensors["targets_prob"].max(1).values
    for threshold in (0.5, 0.7):
        assert (confidence > threshold).sum().item() == table[f"n_confident_{threshold}"]


def test_supervised_losses_are_the_recorded_ones(golden, shared):
    tensors = golden("cct/losses")
    table = json.loads((shared / "golden" / "cct" / "losses.json").read_text())["abce"]
    logits, labels = tensors["inputs_logits"].requires_grad_(), tensors["labels"]
    close(cross_entropy(logits, labels), logits, tensors, "ce")
    close(cross_entropy(logits / 2, labels), logits, tensors, "ce_temp2")
    fixed = bootstrapped_cross_entropy(logits, labels, threshold=0.05, min_kept=7)
    close(fixed, logits, tensors, "abce_fixed_thresh0.05_minkept7")
    classes, length = table["num_classes"], 0.4 * table["epochs"] * table["iters_per_epoch"]
    for point in table["points"]:
        step = point["epoch"] * table["iters_per_epoch"] + point["iter"]
        threshold = 1 / classes + (0.9 - 1 / classes) * ramp("log", step, length)
        assert threshold == pytest.approx(point["threshold"], rel=1e-12)
        loss = bootstrapped_cross_entropy(logits, labels, threshold=threshold, min_kept=table["min_kept"])
        close(loss, logits, tensors, f"abce_e{point['epoch']}_i{point['iter']}")


def test_bootstrapping_leaves_out_learned_and_ignored_pixels():
    logits = torch.tensor([[[5.0, 0.0, -5.0, 0.0], [0.0, 0.0, 0.0, 9.0]]], requires_grad=True)
    loss = bootstrapped_cross_entropy(logits, torch.tensor([[0, 0, 0, 255]]), threshold=0.6)
    loss.backward()
    assert (logits.grad[0].abs().sum(0) > 0).tolist() == [False, True, True, False]
    nothing = bootstrapped_cross_entropy(logits, torch.full((1, 4), 255), threshold=0.6)
    assert nothing.item() == 0
    # All learned: the rank decides, and strictly below it lies one pixel.
    sure = torch.tensor([[[9.0, 8.0, 7.0], [0.0, 0.0, 0.0]]])
    kept = bootstrapped_cross_entropy(sure, torch.zeros(1, 3, dtype=torch.long), threshold=0.1)
    assert kept.item() == pytest.approx(torch.log1p(torch.exp(torch.tensor(-7.0))).item(), rel=1e-3)


def test_jensen_shannon_by_its_textbook_form():
    logits, target = (
        torch.randn(2, 4, 3, 3, dtype=torch.float64),
        torch.randn(2, 4, 3, 3, dtype=torch.float64).softmax(1),
    )

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.log()).sum(1)

    s = logits.softmax(1)
    expected = (entropy((s + target) / 2) - (entropy(s) + entropy(target)) / 2).mean() / 4
    assert_close(consistency_loss(logits, target, distance="js"), expected)
    swapped = consistency_loss(target.log(), s, distance="js")
    assert_close(swapped, expected)
    assert consistency_loss(target.log(), target, distance="js").abs() < 1e-12


@pytest.mark.parametrize("distance", ["mse", "kl", "js", "js_official"])
def test_hard_targets_and_saturated_logits_stay_finite(distance):
    logits = torch.tensor([[[200.0, -200.0], [0.0, 0.0]]], requires_grad=True)
    target = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    loss = consistency_loss(logits, target, distance=distance)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("distance", ["mse", "kl", "js", "js_official"])
def test_padding_is_as_if_it_were_not_there(distance):
    logits, target = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 6).softmax(1)
    valid = torch.ones(2, 4, 6, dtype=torch.bool)
    valid[..., 4:] = False
    for threshold in (None, 0.5):
        masked = consistency_loss(logits, target, valid, distance=distance, threshold=threshold)
        cut = consistency_loss(logits[..., :4], target[..., :4], distance=distance, threshold=threshold)
        assert_close(masked, cut)
    assert consistency_loss(logits, target, torch.zeros_like(valid), distance=distance).item() == 0


def test_mse_is_the_plain_one():
    logits, target = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 6).softmax(1)
    assert_close(consistency_loss(logits, target), plain.mse(logits, target))


def test_the_pairwise_term_is_the_recorded_one(golden, shared):
    tensors = golden("cct/losses")
    table = json.loads((shared / "golden" / "cct" / "losses.json").read_text())
    outputs, order = tensors["pairwise/outputs"].requires_grad_(), tensors["pairwise/perm"][:8]
    assert order.tolist() == table["pair_wise_selected"]
    loss = pairwise_loss(outputs[order].softmax(2))
    assert_close(loss.double().detach(), tensors["pairwise/loss"], rtol=1e-6, atol=0)
    loss.backward()
    assert_close(outputs.grad, tensors["pairwise/grads"], rtol=1e-4, atol=1e-8)


def test_the_pairwise_term_falls_apart_into_decoders(golden):
    tensors = golden("cct/losses")
    rows = tensors["pairwise/outputs"].movedim(2, -1).flatten(1, 3).requires_grad_()  # (10, R, K)
    paired = torch.zeros(10).index_fill_(0, tensors["pairwise/perm"][:8], 1 / 8)
    with torch.no_grad():
        mean = torch.einsum("g,grk->rk", paired, rows.softmax(-1))
    count = rows.shape[1]
    objective = Objective("mse", mean, torch.zeros(count), 0.0, pair_mean=mean)
    objective = objective._replace(pair_pixels=torch.full((count,), 1 / count), pair_weight=1.0)
    total, terms = weighted_terms(rows, objective, torch.full((10,), 0.1), paired)
    assert_close(terms.pair.double().detach(), tensors["pairwise/loss"], rtol=1e-6, atol=0)
    total.backward()
    assert_close(rows.grad, tensors["pairwise/grads"].movedim(2, -1).flatten(1, 3), rtol=1e-4, atol=1e-8)


def test_the_pairwise_term_reaches_the_gradient_unlike_in_the_published_code(golden, shared):
    table = json.loads((shared / "golden" / "cct" / "pairwise_has_no_effect.json").read_text())
    logged = table["logged_loss_unsup_with"] - table["logged_loss_unsup_without"]
    assert logged == pytest.approx(table["pair_wise"])
    assert table["all_step0_gradients_identical"]
    outputs = golden("cct/losses")["pairwise/outputs"].requires_grad_()
    pairwise_loss(outputs.softmax(2)).backward()
    assert outputs.grad.abs().max() > 0


def test_weights_of_pixels_sum_as_published():
    valid = torch.tensor([True, True, True, False])
    keep = torch.tensor([True, False, False, True])
    assert pixel_weight("mse", 5, valid).sum().item() == pytest.approx(1 / 5)
    assert pixel_weight("mse", 5, valid, keep).tolist() == pytest.approx([1 / 5, 0, 0, 0])
    assert pixel_weight("kl", 5, valid, keep).tolist() == pytest.approx([1 / 3, 0, 0, 0])
    assert torch.equal(pixel_weight("js", 5, valid, keep), pixel_weight("js", 5, valid))
