"""Rules that choose and weight pseudo-labels, against recorded values of the authors' code and plain loops."""

import pytest
import torch
from torch.testing import assert_close

from halfmask.losses.pseudo_labels import pseudo_label_loss
from halfmask.teaching.weighting import (
    GlobalThreshold,
    confident_share,
    conflict_weight,
    entropy,
    entropy_below,
    sampled_by_class,
)
from halfmask.testing import no_host_sync


def test_classes_that_are_learned_well_are_sampled_as_recorded(golden):
    data = golden("peers/ael")
    logits, label, confidence = data["student_logits"].requires_grad_(), data["pseudo"].long(), data["teacher_conf"]
    sampled = sampled_by_class(logits.argmax(1), data["class_conf"], data["draws"])
    known = label != 255
    keep, weight = known & (confidence >= 0.7), confidence.square() * sampled  # gamma is 2
    loss = pseudo_label_loss(logits, label, keep, valid=known, divisor="weight", weight=weight)
    assert_close(loss, data["loss"], rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert_close(gradient, data["grad"], rtol=1e-5, atol=1e-6)


def test_the_share_of_sampled_pixels_of_a_class_follows_its_confidence():
    confidence = torch.tensor([0.8, 0.2, 0.6])
    predicted = torch.randint(3, (2, 200, 200))
    kept = sampled_by_class(predicted, confidence, torch.rand(3, 200, 200))
    shares = [kept[predicted == number].float().mean().item() for number in range(3)]
    assert shares == pytest.approx([0.25, 1.0, 0.5], abs=0.02)


def test_the_global_threshold_moves_to_the_recorded_value(golden):
    data = golden("peers/corrmatch")
    confidence, label = data["logits"].softmax(1).max(1)
    rule = GlobalThreshold(0.85, momentum=0.999)
    moved = rule.update(label, confidence, torch.ones_like(label, dtype=torch.bool), 21)
    assert_close(moved, data["thresh"], rtol=1e-6, atol=0)
    assert torch.equal(rule.state_dict()["value"], moved)


def test_the_global_threshold_sees_valid_pixels_of_predicted_classes_only():
    label, confidence = torch.randint(4, (2, 9, 9)), torch.rand(2, 9, 9).clamp_min(0.3)
    label[label == 2] = 3  # class 2 is never predicted
    valid = torch.rand(2, 9, 9) < 0.5
    largest = [confidence[valid & (label == number)].max() for number in (0, 1, 3)]
    moved = GlobalThreshold(0.5, momentum=0.9).update(label, confidence, valid, 4)
    assert_close(moved, 0.45 + 0.1 * torch.stack(largest).mean())
    rule = GlobalThreshold(0.5, momentum=0.9)
    assert rule.update(label, confidence, torch.zeros_like(valid), 4) == 0.5


@pytest.mark.parametrize("number", [1, 2])
def test_conflicts_are_the_recorded_ones(golden, number):
    data = golden("peers/ccvc")
    logits = [data["logits1"], data["logits2"]]
    own, other = (logits[number - 1].argmax(1), logits[2 - number].argmax(1))
    for start, confidence in (("", logits[number - 1].amax(1)), ("prob_", logits[number - 1].softmax(1).amax(1))):
        weight = conflict_weight(confidence, own, other, threshold=0.9, weight=2.0)
        assert torch.equal(weight, 1.0 + data[f"{start}conflict_confident_{number}"])


def test_shares_keep_as_many_valid_pixels_as_they_say():
    logits, valid = torch.randn(2, 5, 40, 40), torch.rand(2, 40, 40) < 0.8
    h, confidence = entropy(logits), logits.softmax(1).amax(1)
    below, (sure, weight) = entropy_below(h, valid, 30.0), confident_share(confidence, valid, 30.0)
    for keep in (below, sure):
        assert not (keep & ~valid).any()
        assert keep.sum() == pytest.approx(0.3 * valid.sum().item(), abs=2)
    assert h[below].max() < h[valid & ~below].min()
    assert confidence[sure].min() > confidence[valid & ~sure].max()
    assert torch.equal(weight[sure], confidence[sure] + 1)
    assert (weight[valid & ~sure] == 1).all()


def test_no_rule_visits_the_host():
    logits, valid = torch.randn(2, 3, 8, 8), torch.rand(2, 8, 8) < 0.8
    confidence, label = logits.softmax(1).max(1)
    rule = GlobalThreshold()
    with no_host_sync():
        entropy_below(entropy(logits), valid, 80.0)
        confident_share(confidence, valid, 80.0)
        conflict_weight(confidence, label, label.flip(0), threshold=0.5, weight=2.0)
        sampled_by_class(label, torch.tensor([0.1, 0.5, 0.9]), torch.rand(3, 8, 8))
        rule.update(label, confidence, valid, 3)
