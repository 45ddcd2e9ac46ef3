"""Which sample is in which batch: order, pairing, passes, ranks, resume."""

import pytest

from halfmask.data.loading.sampler import StepSampler, steps_per_epoch
from halfmask.errors import DataError
from halfmask.recipe.sections import DataRecipe


def make(labeled: int = 7, unlabeled: int = 20, **kwargs) -> StepSampler:
    batch = {"labeled": kwargs.pop("batch_labeled", 4), "unlabeled": kwargs.pop("batch_unlabeled", 4)}
    switches = {key: kwargs.pop(key) for key in ("labeled_cut", "independent_shuffle", "drop_last") if key in kwargs}
    recipe = DataRecipe.model_validate({"batch": batch, **switches})
    return StepSampler(labeled, unlabeled, recipe, **({"seed": 3} | kwargs))


def indices(sampler: StepSampler, stream: int, start: int, stop: int) -> list[int]:
    return [key.position for step in range(start, stop) for key in sampler.keys(step).samples if key.stream == stream]


def numbers(sampler: StepSampler, stream: int, start: int, stop: int) -> list[int]:
    return [key.n for step in range(start, stop) for key in sampler.keys(step).samples if key.stream == stream]


def test_an_epoch_is_one_pass_over_the_unlabeled_list():
    sampler = make()
    assert sampler.steps_per_epoch == 5
    for epoch in range(3):
        assert sorted(indices(sampler, 1, 5 * epoch, 5 * epoch + 5)) == list(range(20))
    assert indices(sampler, 1, 0, 5) != indices(sampler, 1, 5, 10)


def test_the_labeled_list_runs_on_without_leaving_an_image_out():
    sampler = make()
    seen = indices(sampler, 0, 0, 7)  # 28 entries = 4 passes over 7 images
    for number in range(4):
        assert sorted(seen[7 * number : 7 * number + 7]) == list(range(7))


def test_every_sample_has_its_own_running_number():
    sampler = make(unlabeled=22)
    assert numbers(sampler, 0, 0, 20) == list(range(80))
    assert numbers(sampler, 1, 0, 20) == list(range(80))


def test_drop_last_leaves_out_the_tail_of_each_pass_and_another_one_each_time():
    sampler = make(unlabeled=22)
    assert sampler.steps_per_epoch == 5
    left_out = [set(range(22)) - set(indices(sampler, 1, 5 * epoch, 5 * epoch + 5)) for epoch in range(6)]
    assert all(len(images) == 2 for images in left_out)
    assert len(set.union(*left_out)) > 2


def test_without_drop_last_every_pass_ends_with_its_smaller_batch():
    sampler = make(labeled=10, unlabeled=22, drop_last=False)
    assert sampler.steps_per_epoch == 6
    counts = [len([key for key in sampler.keys(step).samples if key.stream == 1]) for step in range(12)]
    assert counts == [4, 4, 4, 4, 4, 2] * 2
    labeled = [len([key for key in sampler.keys(step).samples if key.stream == 0]) for step in range(6)]
    assert labeled == [4, 4, 2] * 2
    assert sorted(indices(sampler, 1, 6, 12)) == list(range(22))
    assert len(set(numbers(sampler, 1, 0, 60))) == 220
    assert sampler.smallest_batch() == 2


def test_labeled_cut_repeats_the_list_up_to_the_unlabeled_length():
    sampler = make(labeled=7, unlabeled=22, labeled_cut=True)
    counts = [0] * 7
    walk = sampler.walks[0]
    assert walk.length == 22
    for epoch in range(40):
        for index in indices(sampler, 0, 5 * epoch, 5 * epoch + 5):
            counts[index] += 1
    # 22 = 3 * 7 + 1: image 0 is in the list four times, the others three times.
    assert sum(counts) == 40 * 20
    assert counts[0] > 1.15 * sum(counts[1:]) / 6


def test_labeled_cut_drops_labeled_images_beyond_the_unlabeled_length():
    sampler = make(labeled=30, unlabeled=20, labeled_cut=True)
    assert set(indices(sampler, 0, 0, 50)) == set(range(20))


def test_paired_orders_keep_labeled_entry_i_with_unlabeled_entry_i():
    sampler = make(labeled=7, unlabeled=22, labeled_cut=True, independent_shuffle=False)
    for step in range(30):
        keys = sampler.keys(step).samples
        labeled, unlabeled = keys[:4], keys[4:]
        assert [key.position for key in labeled] == [key.position % 7 for key in unlabeled]
    assert indices(make(labeled=22, unlabeled=22), 0, 0, 5) != indices(make(labeled=22, unlabeled=22), 1, 0, 5)


def test_lists_of_different_length_are_shuffled_independently():
    paired, free = make(independent_shuffle=False), make(independent_shuffle=True)
    assert [paired.keys(step) for step in range(20)] == [free.keys(step) for step in range(20)]


def test_a_second_draw_is_another_order_or_the_same_images():
    other, same = make(draws=2), make(draws=2, draws_share_images=True)
    assert indices(other, 1, 0, 5) != indices(other, 2, 0, 5)
    assert sorted(indices(other, 2, 0, 5)) == list(range(20))
    assert indices(same, 1, 0, 20) == indices(same, 2, 0, 20)


def test_without_draws_an_epoch_is_one_pass_over_the_labeled_list():
    sampler = make(labeled=10, unlabeled=0, draws=0)
    assert sampler.steps_per_epoch == 2
    assert len(set(indices(sampler, 0, 0, 2))) == 8
    assert all(key.stream == 0 for key in sampler.keys(0).samples)


def test_a_list_shorter_than_a_batch_fills_it_from_the_next_pass():
    sampler = make(labeled=3, unlabeled=2, batch_labeled=4, batch_unlabeled=4)
    assert sampler.steps_per_epoch == 1
    assert sorted(indices(sampler, 1, 0, 1)) == [0, 0, 1, 1]
    assert len(set(numbers(sampler, 1, 0, 3))) == 12


@pytest.mark.parametrize("kwargs", [{}, {"draws": 2}, {"drop_last": False}, {"labeled_cut": True}])
def test_ranks_together_hold_the_batch_of_one_rank(kwargs):
    single = make(unlabeled=22, **kwargs)
    ranks = [make(unlabeled=22, rank=rank, world=2, **kwargs) for rank in range(2)]
    for step in range(13):
        for stream in range(len(single.walks)):
            dealt = [key for sampler in ranks for key in sampler.keys(step).samples if key.stream == stream]
            assert dealt == [key for key in single.keys(step).samples if key.stream == stream]


def test_iteration_from_a_later_start_continues_the_unbroken_sequence():
    unbroken = make(unlabeled=22)
    unbroken.start, unbroken.stop = 0, 17
    resumed = make(unlabeled=22)
    resumed.start, resumed.stop = 9, 17
    assert list(unbroken)[9:] == list(resumed)
    assert len(resumed) == 8
    assert list(resumed) == list(resumed)  # iterating changes nothing


def test_the_order_depends_on_the_seed():
    assert indices(make(seed=1), 1, 0, 5) != indices(make(seed=2), 1, 0, 5)


def test_steps_are_random_access():
    forward, backward = make(), make()
    assert [forward.keys(step) for step in range(12)] == [backward.keys(step) for step in reversed(range(12))][::-1]


def test_empty_lists_say_what_to_do():
    with pytest.raises(DataError, match="method=supervised"):
        make(unlabeled=0)
    with pytest.raises(DataError, match="at least one image with a mask"):
        make(labeled=0)


def test_a_last_batch_too_small_for_the_ranks_is_refused():
    with pytest.raises(DataError, match=r"data\.drop_last=true"):
        make(labeled=8, unlabeled=21, drop_last=False, world=2)


@pytest.mark.parametrize(("length", "batch", "drop", "steps"), [(10, 4, True, 2), (10, 4, False, 3), (3, 4, True, 1)])
def test_steps_per_epoch(length, batch, drop, steps):
    assert steps_per_epoch(length, batch, drop_last=drop) == steps
