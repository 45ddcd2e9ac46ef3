"""Statistics of classes against recorded values of AEL and MKD, and by their properties."""

import torch
from torch.testing import assert_close

from halfmask.teaching.class_statistics import ClassConfidence, ClassCovariance, draw_classes
from halfmask.testing import no_host_sync


def test_the_confidence_of_a_batch_is_the_recorded_one(golden):
    data = golden("peers/ael")
    found = ClassConfidence(21, momentum=0.0).update(data["student_logits"], data["gt"])
    assert_close(found, data["batch_class_conf"], rtol=1e-5, atol=1e-7)


def test_the_rates_of_mixing_are_the_recorded_ones(golden):
    data = golden("peers/ael")
    bank = ClassConfidence(21)
    bank.value.copy_(data["class_conf"])
    assert_close(bank.rates("boxes"), data["cutmix_class_prob"], rtol=1e-5, atol=0)
    assert_close(bank.rates("copies"), data["copy_paste_class_prob"], rtol=1e-5, atol=0)


def test_the_confidence_runs_on_and_ignores_what_is_no_class():
    bank, logits = ClassConfidence(3, momentum=0.9), torch.randn(2, 3, 5, 5)
    label = torch.randint(2, (2, 5, 5))  # class 2 never occurs
    label[0, 0], label[1, 0] = 255, -1
    probability = logits.softmax(1)
    batch = torch.stack([probability[:, k][label == k].mean() for k in range(2)] + [torch.tensor(0.0)])
    assert_close(bank.update(logits, label), 0.1 * batch)
    assert_close(bank.update(logits, label), (0.9 * 0.1 + 0.1) * batch)
    assert torch.equal(bank.state_dict()["value"], bank.value)


def test_classes_are_drawn_by_their_rates_and_never_twice():
    rates = torch.tensor([0.6, 0.3, 0.1, 0.0])
    assert_close(draw_classes(rates, 20_000).float().mean(0), rates, rtol=0, atol=0.02)
    pairs = draw_classes(rates, 20_000, count=2)
    assert (pairs.sum(1) == 2).all()
    # Without replacement: class 0 is first, or second after class 1 or 2.
    first = 0.6 + 0.3 * 0.6 / 0.7 + 0.1 * 0.6 / 0.9
    assert abs(pairs[:, 0].float().mean().item() - first) < 0.02


def test_mean_and_variance_of_classes_and_the_augmented_logits_are_the_recorded_ones(golden):
    data = golden("peers/mkd")
    bank = ClassCovariance(21, 8)
    for batch in range(2):
        label = data[f"label{batch}"].long()
        bank.update(data[f"feat{batch}"], label.masked_fill(label == 255, 21))
    assert torch.equal(bank.count, data["count"])
    assert_close(bank.mean, data["mean"], rtol=1e-5, atol=1e-6)
    assert_close(bank.variance, data["variance"], rtol=1e-5, atol=1e-6)
    weight, known = data["w"][:, :, 0, 0], data["label0"] != 255
    logits = data["feat0"] @ weight.T + data["b"]
    assert_close(logits, data["logits"], rtol=1e-5, atol=1e-6)
    found = bank.augmented(logits, data["label0"].long().masked_fill(~known, 21), weight, 0.75)
    assert_close(found[known], data["augmented_logits"][known], rtol=1e-5, atol=1e-6)
    assert torch.equal(found[~known], logits[~known])


def test_batches_add_up_to_the_statistics_of_all_vectors():
    vectors, classes = torch.randn(300, 4), torch.randint(4, (300,))  # class 3 is left out
    bank = ClassCovariance(3, 4)
    for part in torch.arange(300).split(70):
        bank.update(vectors[part], classes[part])
    for number in range(3):
        own = vectors[classes == number]
        assert bank.count[number] == len(own)
        assert_close(bank.mean[number], own.mean(0), rtol=1e-5, atol=1e-6)
        assert_close(bank.variance[number], own.var(0, unbiased=False), rtol=1e-5, atol=1e-6)


def test_statistics_of_classes_do_not_visit_the_host():
    bank, covariance, logits = ClassConfidence(3), ClassCovariance(3, 4), torch.randn(2, 3, 6, 6)
    label = torch.randint(3, (2, 6, 6))
    with no_host_sync():
        bank.update(logits, label)
        draw_classes(bank.rates("copies"), 2, count=2)
        covariance.update(torch.randn(9, 4), torch.arange(9) % 4)
        covariance.augmented(torch.randn(9, 3), torch.arange(9) % 4, torch.randn(3, 4), 0.5)
