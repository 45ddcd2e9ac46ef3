"""Class-balanced labeled crops: exact draws, balance on a skewed set, and independence of workers, ranks, restarts."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from halfmask.data.contract import count_classes
from halfmask.data.datasets.folder import Folder
from halfmask.data.loading.loader import HostBatch, Source, TrainLoader, train_loader
from halfmask.data.loading.sampler import ClassBalance, StepSampler
from halfmask.data.splits.split import Split
from halfmask.errors import DataError
from halfmask.recipe.sections import DataRecipe
from halfmask.views.weak import Geometry, cut_target, point_of


@pytest.fixture(scope="module")
def skewed(tmp_path_factory) -> Folder:
    """Twenty masks of ground; one of them has six pixels of class 1, two others a corner of class 2."""
    root = tmp_path_factory.mktemp("skewed")
    for name in ("images", "masks"):
        (root / name).mkdir()
    (root / "classes.txt").write_text("ground\ncrack\npool\n")
    for number in range(20):
        mask = np.zeros((100, 140), np.uint8)
        if number == 4:
            mask[50:52, 60:63] = 1
        if number in {7, 9}:
            mask[:20, :20] = 2
        mask[-1, :3] = 255
        Image.fromarray(mask).save(root / "masks" / f"{number:02d}.png")
        Image.fromarray(np.stack([mask * 80] * 3, 2)).save(root / "images" / f"{number:02d}.png")
    return Folder(root)


def made(dataset: Folder, balance: str = "classes", **options) -> TrainLoader:
    ids = tuple(dataset.ids("train"))
    recipe = {"crop": 32, "scale": (1, 1), "batch": {"labeled": 6, "unlabeled": 2}, "workers": 0}
    recipe |= options.pop("recipe", {})
    drawn = ClassBalance(count_classes(dataset, ids[:18]), seed=5) if balance == "classes" else None
    split, section = Split(ids[:18], ids[18:], ()), DataRecipe.model_validate(recipe)
    return train_loader(Source(section, dataset, None, split, drawn), seed=5, **options)


def batches(loader: TrainLoader, start: int, stop: int) -> list[HostBatch]:
    loader.steps.start, loader.steps.stop = start, stop
    return list(loader)


def assert_equal(first: list[HostBatch], second: list[HostBatch]) -> None:
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one.streams, other.streams, strict=True):
            assert torch.equal(a.image, b.image)
            assert torch.equal(a.index, b.index)
            assert a.target is None or torch.equal(a.target, b.target)


def test_counts_are_the_pixels_of_each_mask(skewed):
    counts = count_classes(skewed, skewed.ids("train"))
    assert counts.shape == (20, 3)
    assert counts[4].tolist() == [100 * 140 - 3 - 6, 6, 0]
    assert counts[7].tolist() == [100 * 140 - 3 - 400, 0, 400]
    assert counts.sum(0).tolist() == [20 * (100 * 140 - 3) - 6 - 800, 6, 800]


def test_every_class_is_drawn_equally_often_and_each_of_its_images():
    counts = np.zeros((50, 4), np.int64)
    counts[:, 0] = 1000
    counts[3, 1] = 2
    counts[10:20, 3] = 7  # class 2 does not occur
    balance = ClassBalance(counts, seed=1)
    drawn = [balance.draw(n) for n in range(6000)]
    classes = Counter(shows for _, shows in drawn)
    assert set(classes) == {0, 1, 3}
    assert all(abs(times - 2000) < 5 * np.sqrt(6000 * 2 / 9) for times in classes.values())  # five deviations
    assert {position for position, shows in drawn if shows == 1} == {3}
    assert {position for position, shows in drawn if shows == 3} == set(range(10, 20))
    assert {position for position, shows in drawn if shows == 0} == set(range(50))


def test_a_draw_depends_on_seed_and_number_alone():
    counts = np.ones((5, 3), np.int64)
    forward = [ClassBalance(counts, seed=1).draw(n) for n in range(30)]
    again = ClassBalance(counts, seed=1)
    assert [again.draw(n) for n in reversed(range(30))] == forward[::-1]
    assert [ClassBalance(counts, seed=2).draw(n) for n in range(30)] != forward


def test_crops_of_a_rare_class_become_as_frequent_as_the_class_is_drawn(skewed):
    def share_showing(balance: str, value: int) -> float:
        targets = torch.cat([batch.streams[0].target for batch in batches(made(skewed, balance), 0, 30)])
        return float((targets == value).flatten(1).any(1).float().mean())

    assert share_showing("none", 1) < 0.05  # one image of 18, and few of its crops
    assert share_showing("classes", 1) > 0.3  # a third, up to chance
    assert share_showing("classes", 2) > 0.3


def test_at_its_own_scale_every_drawn_crop_shows_the_class(skewed):
    loader = made(skewed)
    keys = [key for step in range(10) for key in loader.steps.keys(step).samples if key.stream == 0]
    targets = torch.cat([batch.streams[0].target for batch in batches(loader, 0, 10)])
    assert len(keys) == len(targets) == 60
    assert all((target == key.shows).any() for key, target in zip(keys, targets, strict=True))
    assert {key.shows for key in loader.steps.keys(0).samples if key.stream == 1} == {None}


def test_a_drawn_point_lies_in_the_window_at_any_scale_and_place():
    rng = np.random.default_rng(0)
    target = np.zeros((60, 90), np.uint8)
    target[[0, 59, 0, 59, 30], [0, 0, 89, 89, 45]] = 1
    for _ in range(300):
        crop = int(rng.integers(16, 128))
        point = point_of(target, 1, rng)
        window = Geometry(crop, scale=(0.3, 2.0), flip=0.5).sample(rng, 90, 60, point)
        for axis in range(2):
            place = point[axis] * window.size[axis]
            assert window.corner[axis] <= place < window.corner[axis] + window.extent[axis]
            assert 0 <= window.corner[axis] <= max(window.size[axis] - crop, 0)
    assert point_of(target, 2, rng) is None
    whole = Geometry(16, scale=(1, 1), flip=0).sample(rng, 90, 60, (0.5 / 90, 0.5 / 60))
    assert cut_target(target, whole, 16)[0, 0] == 1


def test_without_balance_the_draws_of_geometry_are_as_ever():
    windows = [Geometry(32).sample(np.random.default_rng([0, 0, n]), 140, 100) for n in range(3)]
    # Recorded before crops could be laid around a class: earlier runs must resume to the same pixels.
    assert windows == [
        ((249, 178), (138, 75), (32, 32), True),
        ((257, 184), (101, 3), (32, 32), False),
        ((116, 83), (52, 18), (32, 32), False),
    ]


def test_batches_do_not_depend_on_workers_ranks_or_restarts(skewed):
    whole = batches(made(skewed), 0, 6)
    assert_equal(whole, batches(made(skewed, recipe={"workers": 2}), 0, 6))
    assert_equal(whole[4:], batches(made(skewed), 4, 6))
    halves = [batches(made(skewed, rank=rank, world=2), 0, 6) for rank in range(2)]
    for step, batch in enumerate(whole):
        for stream, samples in enumerate(batch.streams):
            assert torch.equal(samples.image, torch.cat([half[step].streams[stream].image for half in halves]))


def test_masks_without_a_class_are_refused(skewed):
    with pytest.raises(DataError, match="no labeled mask shows any class"):
        ClassBalance(np.zeros((3, 2), np.int64), seed=0)


def test_the_unlabeled_stream_is_walked_as_ever(skewed: Folder, tmp_path: Path):
    section = DataRecipe.model_validate({"batch": {"labeled": 2, "unlabeled": 3}})
    plain = StepSampler(4, 9, section, seed=1)
    balanced = StepSampler(4, 9, section, seed=1, balance=ClassBalance(np.ones((4, 2), np.int64), seed=1))
    for step in range(5):
        one, other = ([key for key in s.keys(step).samples if key.stream] for s in (plain, balanced))
        assert one == other


def test_classes_are_drawn_in_proportion_to_weights_and_equally_again_without(skewed: Folder) -> None:
    balance = ClassBalance(count_classes(skewed, tuple(skewed.ids("train"))), seed=3)
    equal = [balance.draw(n) for n in range(300)]
    balance.weigh((1.0, 0.0, 3.0))
    shown = Counter(shows for _, shows in map(balance.draw, range(2000)))
    assert set(shown) == {0, 2}
    assert shown[2] / 2000 == pytest.approx(0.75, abs=0.04)
    assert [balance.draw(n) for n in range(50)] == [balance.draw(n) for n in range(50)]
    balance.weigh(None)
    assert [balance.draw(n) for n in range(300)] == equal


@pytest.mark.parametrize("weights", [(0.0, 0.0, 0.0), (1.0, -1.0, 1.0), (float("nan"), 1.0, 1.0)])
def test_weights_that_are_no_chances_are_refused(skewed: Folder, weights: tuple[float, ...]) -> None:
    balance = ClassBalance(count_classes(skewed, tuple(skewed.ids("train"))), seed=3)
    with pytest.raises(DataError, match="class_weights_for_sampling"):
        balance.weigh(weights)
