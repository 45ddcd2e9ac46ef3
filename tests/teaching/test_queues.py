"""Queues per class against a plain loop, and the choice of few vectors per class."""

import torch

from halfmask.teaching.queues import ClassQueues, few_per_class


def test_queues_hold_the_newest_vectors_of_each_class():
    queues = ClassQueues(3, 4, 2)
    kept = [[] for _ in range(3)]
    for _ in range(20):
        vectors, classes = torch.randn(7, 2), torch.randint(4, (7,))
        queues.enqueue(vectors, classes)
        for vector, number in zip(vectors, classes.tolist(), strict=True):
            if number < 3:
                kept[number].append(vector)
        for number, found in enumerate(kept):
            newest = {tuple(vector.tolist()) for vector in found[-4:]}
            inside = queues.slots[number][queues.filled[number]]
            assert {tuple(vector.tolist()) for vector in inside} == newest


def test_queues_are_the_recorded_ones(golden):
    data = golden("peers/pixcon")
    queues = ClassQueues(6, 10, 8)
    for step in range(2):
        queues.enqueue(data[f"anchor{step}"], data[f"anchor_label{step}"].long())
    assert queues.filled.sum(1).tolist() == torch.bincount(data["bank_label"].long()).tolist()
    for number in range(6):
        found = queues.slots[number][queues.filled[number]]
        expected = data["bank_feat"][data["bank_label"] == number]
        assert torch.equal(found.sort(0).values, expected.sort(0).values)


def test_few_per_class_are_random_and_not_more_than_asked_for():
    classes = torch.tensor([0] * 50 + [1] * 3 + [2] * 10)
    drawn = set()
    for _ in range(30):
        index, chosen = few_per_class(classes, most=4, total=20, count=2)
        assert torch.equal(classes[index[chosen < 2]], chosen[chosen < 2])
        assert [int((chosen == number).sum()) for number in range(2)] == [4, 3]
        assert len(index) == 20
        drawn |= set(index[chosen == 0].tolist())
    assert len(drawn) > 40


def test_the_total_cuts_all_classes_alike():
    classes = torch.arange(10).repeat(30)
    counts = torch.zeros(11)
    for _ in range(60):
        _, chosen = few_per_class(classes, most=20, total=50, count=10)
        counts += torch.bincount(chosen, minlength=11)
    assert counts[10] == 0
    assert (counts[:10] / 60 - 5).abs().max() < 1.5
