"""Labels spread by correlation against recorded values of CorrMatch, and against plain loops."""

import torch
import torch.nn.functional as F
from torch.testing import assert_close

from halfmask.teaching.propagation import correlation, grow, regions, spread_logits
from halfmask.testing import no_host_sync


def recorded_correlation(data):
    queries, keys = (F.conv2d(data["feat"], data[f"w{number}"], data[f"b{number}"]) for number in (1, 2))
    return correlation(queries, keys)


def test_spread_logits_are_the_recorded_ones(golden):
    data = golden("peers/corrmatch")
    found = spread_logits(data["logits"], recorded_correlation(data), (6, 6))
    assert_close(found, data["corr_logits"], rtol=1e-5, atol=1e-5)


def test_regions_are_the_recorded_ones(golden):
    data = golden("peers/corrmatch")
    found = regions(recorded_correlation(data), data["sample_index"], (6, 6), (24, 24))
    assert torch.equal(found, data["corr_binary"].bool())


def test_labels_grow_as_recorded(golden):
    data = golden("peers/corrmatch")
    confidence, label = data["prop_logits"].softmax(1).max(1)
    assert_close(confidence, data["conf"], rtol=1e-6, atol=0)
    assert torch.equal(label, data["pseudo_before"])
    valid = data["ignore"] != 255
    sure = valid & (confidence >= data["thresh"])
    assert torch.equal(sure, data["mask_before"])
    grown, surely = grow(label, sure, data["prop_corr_binary"].bool(), valid, data["thresh"], 21)
    assert torch.equal(grown, data["pseudo_after"])
    assert torch.equal(surely, data["mask_after"])


def test_the_gradient_of_spread_logits_reaches_both_maps_and_not_the_logits():
    queries, keys = (torch.randn(1, 3, 2, 2, requires_grad=True) for _ in range(2))
    logits, upstream = torch.randn(1, 3, 2, 2, requires_grad=True), torch.randn(1, 3, 2, 2)
    found = spread_logits(logits, correlation(queries, keys), (2, 2))
    given = torch.autograd.grad((found * upstream).sum(), (queries, keys), retain_graph=True)
    q, k, z = (x.flatten(2)[0] for x in (queries, keys, logits.detach()))
    plain = torch.zeros(3, 4)
    for i in range(4):
        strength = torch.stack([(q[:, i] * k[:, j]).sum() / 3**0.5 for j in range(4)]).exp()
        plain = plain + torch.stack([z[:, i] * strength[j] / strength.sum() for j in range(4)], dim=1)
    assert_close(found.flatten(2)[0], plain)
    expected = torch.autograd.grad((plain * upstream.flatten(2)[0]).sum(), (queries, keys))
    assert_close(given, expected)
    assert expected[0].abs().max() > 1e-3
    assert torch.autograd.grad(found.sum(), logits, allow_unused=True) == (None,)


def test_regions_grow_as_in_a_loop():
    torch.manual_seed(2)
    label, sure, valid = torch.randint(2, (3, 12, 12)), torch.rand(3, 12, 12) < 0.7, torch.rand(3, 12, 12) < 0.9
    inside = torch.rand(3, 60, 12, 12) < 0.04
    inside[:, 5] = False  # an empty region
    threshold = torch.tensor(0.55)
    labels, surely, changes = label.clone(), sure.clone(), 0
    for image in range(3):
        for region in inside[image] & valid[image]:
            chosen = label[image][region & sure[image]]
            if not len(chosen):
                continue
            votes = torch.bincount(chosen)
            if len(chosen) / region.sum() >= threshold and votes.max() / len(chosen) > threshold:
                labels[image][region], surely[image][region] = votes.argmax(), True
                changes += 1
    assert 20 < changes < 160
    found = grow(label, sure, inside, valid, threshold, 2)
    assert torch.equal(found[0], labels)
    assert torch.equal(found[1], surely)


def test_labels_spread_without_a_visit_to_the_host():
    related = correlation(torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4))
    label, everywhere = torch.randint(3, (2, 8, 8)), torch.ones(2, 8, 8, dtype=torch.bool)
    with no_host_sync():
        spread_logits(torch.randn(2, 3, 8, 8), related, (4, 4))
        inside = regions(related, torch.randint(16, (5,)), (4, 4), (8, 8))
        grow(label, everywhere, inside, everywhere, torch.tensor(0.5), 3)
