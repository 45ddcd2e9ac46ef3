"""Weights of classes: the formulas, their bound, and what they do to each labeled loss."""

import math

import pytest
import torch

from halfmask.losses.cross_entropy import bootstrapped_cross_entropy, class_weights, cross_entropy, ohem_cross_entropy


def test_inverse_weights_give_every_class_the_same_total():
    counts = [800, 150, 50]
    weights = class_weights(counts, "inverse")
    totals = [count * weight for count, weight in zip(counts, weights, strict=True)]
    assert totals == pytest.approx([totals[0]] * 3)
    assert sum(weights) / 3 == pytest.approx(1)


def test_effective_weights_are_the_published_formula_at_the_even_share():
    counts = [7000, 2000, 1000]
    beta = 1 - 3 / 10_000
    expected = [(1 - beta) / (1 - beta**count) for count in counts]
    weights = class_weights(counts, "effective")
    assert [weight / weights[0] for weight in weights] == pytest.approx([e / expected[0] for e in expected])
    # exp(-n K / N) where beta^n is meant: both limits of the effective number
    assert weights[2] / weights[0] == pytest.approx((1 - math.exp(-2.1)) / (1 - math.exp(-0.3)), rel=1e-3)


def test_effective_weights_leave_frequent_classes_alike_and_inverse_ones_do_not():
    counts = [600_000, 300_000, 300_000, 3_000]
    effective, inverse = (class_weights(counts, rule) for rule in ("effective", "inverse"))
    assert effective[1] / effective[0] < 1.4
    assert inverse[1] / inverse[0] == pytest.approx(2)
    assert effective[3] / effective[0] > 30


@pytest.mark.parametrize("rule", ["inverse", "effective"])
def test_a_handful_of_pixels_weighs_at_most_a_hundred_times_more_and_an_absent_class_nothing_special(rule):
    weights = class_weights([10_000_000, 2, 0], rule)
    assert weights[1] / weights[0] == pytest.approx(100)
    assert weights[2] == 1.0
    assert class_weights([0, 0], rule) == (1.0, 1.0)


def plain_weighted_mean(logits, target, weight, keep):
    """Pixel by pixel, in plain Python."""
    top, bottom = 0.0, 0.0
    for n, row in enumerate(logits.permute(0, 2, 1).reshape(-1, logits.shape[1]).tolist()):
        y = int(target.flatten()[n])
        if not keep.flatten()[n]:
            continue
        log_sum = math.log(sum(math.exp(value) for value in row))
        top += weight[y] * (log_sum - row[y])
        bottom += weight[y]
    return top / bottom


@pytest.fixture
def pixels():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 20, generator=generator, dtype=torch.float64) * 2
    target = torch.randint(0, 3, (2, 20), generator=generator)
    target[0, :4] = 255
    return logits, target


def test_weighted_losses_are_weighted_means_over_their_own_pixels(pixels):
    logits, target = pixels
    weights = (0.2, 0.8, 2.0)
    weight = torch.tensor(weights, dtype=torch.float64)
    known = target != 255
    found = cross_entropy(logits, target, weight=weight)
    assert found.item() == pytest.approx(plain_weighted_mean(logits, target, weights, known))
    assert cross_entropy(logits, target, weight=torch.ones(3, dtype=torch.float64)).item() == pytest.approx(
        cross_entropy(logits, target).item()
    )
    probability = logits.softmax(1).gather(1, target.where(known, 0).unsqueeze(1)).squeeze(1)
    hard = known & (probability <= 0.4)
    found = ohem_cross_entropy(logits, target, threshold=0.4, min_kept=1, weight=weight)
    assert found.item() == pytest.approx(plain_weighted_mean(logits, target, weights, hard))
    found = bootstrapped_cross_entropy(logits, target, threshold=0.4, weight=weight)
    assert found.item() == pytest.approx(plain_weighted_mean(logits, target, weights, known & (probability < 0.4)))


def test_ignored_pixels_do_not_matter_and_a_batch_of_them_gives_zero(pixels):
    logits, target = pixels
    weight = torch.tensor([0.2, 0.8, 2.0])
    changed = logits.clone()
    changed[0, :, :4] += 5
    assert torch.equal(cross_entropy(logits, target, weight=weight), cross_entropy(changed, target, weight=weight))
    loss = cross_entropy(logits.requires_grad_(), torch.full_like(target, 255), weight=weight)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
