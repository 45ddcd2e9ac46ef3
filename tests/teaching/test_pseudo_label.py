"""Pseudo-labels and their statistics."""

import numpy as np
import pytest
import torch

from halfmask.teaching.pseudo_label import agreement, confidence_range, pseudo_label, pseudo_logs
from tests.oracles import pseudo as plain


@pytest.mark.parametrize("shape", [(2, 5, 6, 7), (8, 5), (2, 3, 4)])
def test_one_pass_equals_softmax_then_maximum(shape):
    logits = 4 * torch.randn(shape)
    label, confidence = pseudo_label(logits)
    expected_label, expected_confidence = plain.pseudo_label(logits)
    assert torch.equal(label, expected_label)
    torch.testing.assert_close(confidence, expected_confidence)


def test_confidence_is_exact_at_extreme_logits():
    logits = torch.tensor([[1e4, -1e4], [-1e4, -1e4], [0.0, 0.0]])
    label, confidence = pseudo_label(logits.T.contiguous())
    assert label.tolist() == [0, 2]
    assert confidence.tolist() == [1.0, 1.0]


def test_half_precision_logits_give_a_float32_confidence():
    logits = torch.tensor([[3.0, 0.0, 0.0]], dtype=torch.bfloat16)
    _, confidence = pseudo_label(logits)
    assert confidence.dtype == torch.float32
    torch.testing.assert_close(confidence, logits.float().softmax(1).amax(1))


def test_no_gradient_flows_into_pseudo_labels():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    label, confidence = pseudo_label(logits)
    assert not confidence.requires_grad
    assert label.dtype == torch.int64


@pytest.mark.parametrize("shape", [(3, 9, 8), (12,)])
def test_statistics_equal_the_count_class_by_class(shape):
    label, confidence = torch.randint(0, 4, shape), torch.rand(shape) ** 0.1
    valid, keep = torch.rand(shape) < 0.7, torch.rand(shape) < 0.5
    label[~valid] = 255  # whatever stands under invalid pixels does not matter
    logs = pseudo_logs(label, confidence, keep, valid, 6)
    expected = plain.pseudo_logs(label, confidence, keep, valid, 6)
    assert logs.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(logs[key], value, equal_nan=True, msg=key)
    assert logs["pseudo/share"].sum().item() == pytest.approx(1)
    assert logs["pseudo/share"][4:].tolist() == [0, 0]  # classes that never occur
    assert logs["pseudo/confidence_by_class"][4:].isnan().all()


def test_the_ranges_of_confidence_are_a_histogram_of_the_valid_pixels():
    confidence, valid = torch.rand(200) ** 0.1, torch.rand(200) < 0.7
    logs = pseudo_logs(torch.zeros(200, dtype=torch.long), confidence, valid, valid, 2)
    ranges = {inside: value.item() for name, value in logs.items() if (inside := confidence_range(name))}
    edges = np.array([0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0])
    expected = np.histogram(confidence[valid].numpy(), edges)[0] / int(valid.sum())
    assert list(ranges.values()) == pytest.approx(expected.tolist())
    # The ranges above a threshold add up to the coverage it gives.
    sure = sum(value for name, value in ranges.items() if float(name[:4]) >= 0.95)
    assert sure == pytest.approx((confidence[valid] >= 0.95).float().mean().item())


def test_a_confidence_at_an_edge_belongs_to_the_range_above_it():
    below = torch.nextafter(torch.tensor(0.5), torch.tensor(0.0)).item()
    confidence, everywhere = torch.tensor([0.5, 0.95, below]), torch.ones(3, dtype=torch.bool)
    logs = pseudo_logs(torch.zeros(3, dtype=torch.long), confidence, everywhere, everywhere, 2)
    found = {inside for name, value in logs.items() if (inside := confidence_range(name)) and value > 0}
    assert found == {"0.50-0.70", "0.95-0.98", "0.00-0.50"}


def test_statistics_of_an_all_padded_batch_are_zero():
    label, nothing = torch.zeros(2, 4, 4, dtype=torch.long), torch.zeros(2, 4, 4, dtype=torch.bool)
    logs = pseudo_logs(label, torch.ones(2, 4, 4), nothing, nothing, 3)
    assert logs.pop("pseudo/confidence_by_class").isnan().all()
    for value in logs.values():
        assert value.abs().sum().item() == 0
    assert agreement(torch.randn(2, 3, 4, 4), label, nothing).item() == 0


def test_agreement_counts_equal_classes_among_valid_pixels():
    logits = torch.eye(3)[[0, 1, 2, 0]].T.reshape(1, 3, 2, 2)  # classes 0 1 / 2 0
    label = torch.tensor([[[0, 2], [2, 1]]])
    valid = torch.tensor([[[True, True], [True, False]]])
    assert agreement(logits, label, valid).item() == pytest.approx(2 / 3)
