"""The best class and its probability, against softmax, argmax and maximum."""

import pytest
import torch

from halfmask.models.coarse_logits import top_class
from tests.oracles.pseudo import pseudo_label as plain


@pytest.mark.parametrize("order", ["channels first", "channels last"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 21, 70, 70), (2, 90, 6, 5), (2, 300, 4, 5), (3, 4)])
def test_it_equals_the_plain_form(shape, order):
    logits = torch.randn(shape) * 5
    if order == "channels last":
        logits = logits.movedim(1, -1).contiguous().movedim(-1, 1)
    label, confidence = top_class(logits)
    expected_label, expected = plain(logits)
    assert torch.equal(label, expected_label)
    # exp and a sum of up to 300 positive terms in float32
    torch.testing.assert_close(confidence, expected, atol=2e-6, rtol=2e-6)


def test_of_equal_classes_the_first_wins():
    logits = torch.zeros(1, 4, 3, 3)
    logits[:, 1:3] = 2
    assert (top_class(logits)[0] == 1).all()


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_probabilities_are_never_half_precise(dtype, expected):
    assert top_class(torch.randn(1, 3, 4, 4).to(dtype))[1].dtype == expected


def test_labels_stay_classes_where_logits_are_nan():
    label, confidence = top_class(torch.full((1, 5, 2, 2), float("nan")))
    assert ((label >= 0) & (label < 5)).all()
    assert confidence.isnan().all()
