"""Classes of channels; the published form is also compared with recordings in tests/models/test_allspark_golden.py."""

import pytest
import torch

from halfmask.teaching.grouping import channel_classes
from halfmask.testing import no_host_sync
from tests.oracles import allspark as reference

VARIANTS = ["logits_cosine", "probs_cosine", "probs_dot", "none"]


def case() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 12, 15), 3 * torch.randn(2, 4, 24, 32)


@pytest.mark.parametrize("grouping", VARIANTS)
def test_each_variant_equals_the_loop_over_channels(grouping):
    tokens, logits = case()
    with no_host_sync():
        classes = channel_classes(tokens, logits, (3, 4), grouping)
    assert torch.equal(classes, reference.channel_classes(tokens, logits, (3, 4), grouping))


def test_the_variants_differ():
    tokens, logits = case()
    found = [channel_classes(tokens, logits, (3, 4), grouping) for grouping in VARIANTS]
    for first in range(4):
        for second in range(first):
            assert not torch.equal(found[first], found[second])


@pytest.mark.parametrize("grouping", VARIANTS[:3])
def test_the_length_of_a_channel_changes_no_class(grouping):
    tokens, logits = case()
    scaled = tokens * torch.linspace(0.1, 5, 15)
    assert torch.equal(
        channel_classes(tokens, logits, (3, 4), grouping), channel_classes(scaled, logits, (3, 4), grouping)
    )


def test_without_grouping_all_classes_get_the_same_number_of_channels():
    tokens, logits = torch.randn(2, 4, 10), torch.randn(2, 4, 8, 8)
    classes = channel_classes(tokens, logits, (2, 2), "none")
    assert classes.flatten().bincount().tolist() == [5, 5, 5, 5]
