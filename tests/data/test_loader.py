"""Loading: what reaches a method, independence of workers and ranks, errors, the cache."""

import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from halfmask.data.contract import Dataset
from halfmask.data.loading.loader import HostBatch, Source, TrainLoader, to_batch, train_loader, worker_count
from halfmask.data.splits.split import Split
from halfmask.errors import DataError, MissingExtraError
from halfmask.recipe.sections import DataRecipe
from halfmask.task import Task


class Squares(Dataset):
    """Images on disk whose first band is ten times their mask; the other bands are patterns without repetition."""

    def __init__(self, root: Path, dates: int = 0) -> None:
        super().__init__(root)
        self.task = Task("change" if dates else "segmentation", ("a", "b", "c"))
        self.dates, self.bands = dates, 3 * max(1, dates)

    def ids(self, part: str) -> list[str]:
        return sorted(path.name for path in self.root.glob("*.png")) if part == "train" else []

    def read_image(self, id: str) -> np.ndarray:
        if id.startswith("extra"):
            raise MissingExtraError("reading this", "geo")
        try:
            first = np.array(Image.open(self.root / id))
        except FileNotFoundError:
            raise DataError(f"{id}: no such image", "H201") from None
        rows, columns = np.indices(first.shape)
        others = [(17 * rows + rows * columns + 31 * band) % 256 for band in range(1, self.bands)]
        image = np.stack([first, *others], axis=2).astype(np.uint8)
        return np.stack(np.split(image, self.dates, axis=2)) if self.dates else image

    def read_target(self, id: str) -> np.ndarray:
        target = np.array(Image.open(self.root / id)) // 10
        return target[:-1] if id == "short.png" else target

    def mask_path(self, id: str) -> Path | None:
        return self.root / id


@pytest.fixture
def dataset(tmp_path: Path) -> Squares:
    for number in range(14):
        mask = np.zeros((40 + number, 70 - number), dtype=np.uint8)
        mask[:, 20 + number :] = 1
        mask[5 + number :, :10] = 2
        Image.fromarray(mask * 10).save(tmp_path / f"{number:02d}.png")
    return Squares(tmp_path)


def loader(dataset: Dataset, recipe: dict | None = None, unlabeled: Dataset | None = None, **kwargs) -> TrainLoader:
    ids = tuple(dataset.ids("train"))
    split = Split(ids[:5], ids[5:], ())
    recipe = {"crop": 48, "batch": {"labeled": 4, "unlabeled": 4}, "workers": 0} | (recipe or {})
    return train_loader(Source(DataRecipe.model_validate(recipe), dataset, unlabeled, split), **kwargs)


def batches(made: TrainLoader, start: int = 0, stop: int = 3) -> list[HostBatch]:
    made.steps.start, made.steps.stop = start, stop
    return list(made)


def assert_equal(first: list[HostBatch], second: list[HostBatch]) -> None:
    assert [batch.step for batch in first] == [batch.step for batch in second]
    for one, other in zip(first, second, strict=True):
        assert len(one.streams) == len(other.streams)
        for a, b in zip(one.streams, other.streams, strict=True):
            for name in ("image", "covered", "index", "target"):
                x, y = getattr(a, name), getattr(b, name)
                assert (x is None and y is None) or torch.equal(x, y)


def test_batches_do_not_depend_on_the_number_of_workers(dataset):
    plain = batches(loader(dataset, draws=2), stop=4)
    made = loader(dataset, {"workers": 2}, draws=2)
    assert_equal(plain, batches(made, stop=4))
    # Workers stay alive between ranges and prefetch: the next range must still begin where it should.
    assert_equal(batches(loader(dataset, draws=2), 4, 7), batches(made, 4, 7))


def test_a_resumed_loader_continues_the_unbroken_sequence(dataset):
    unbroken = batches(loader(dataset), stop=6)
    assert_equal(unbroken[4:], batches(loader(dataset, {"workers": 1}), 4, 6))


def test_two_ranks_together_load_what_one_rank_loads(dataset):
    whole = batches(loader(dataset))
    parts = [batches(loader(dataset, rank=rank, world=2)) for rank in range(2)]
    for step, batch in enumerate(whole):
        for stream, samples in enumerate(batch.streams):
            halves = [part[step].streams[stream] for part in parts]
            assert torch.equal(samples.image, torch.cat([half.image for half in halves]))
            assert torch.equal(samples.index, torch.cat([half.index for half in halves]))


def test_a_repeated_image_is_cut_anew_each_time(dataset):
    seen: dict[int, list[torch.Tensor]] = {}
    for batch in batches(loader(dataset), stop=8):
        for image, index in zip(batch.streams[0].image, batch.streams[0].index.tolist(), strict=True):
            assert not any(torch.equal(image, other) for other in seen.get(index, []))
            seen.setdefault(index, []).append(image)
    assert sum(len(images) for images in seen.values()) == 32


def test_image_target_and_validity_lie_on_each_other(dataset):
    # At scale 1 nothing is interpolated, so the first band must stay ten times the label, flipped or not.
    flips = 0
    for host in batches(loader(dataset, {"scale": (1, 1), "pad": "black", "crop": 80}), stop=6):
        batch = to_batch(host, "cpu", dataset.task)
        samples = batch.labeled
        label = samples.target.masked_fill(~samples.valid, 0)
        assert torch.equal((samples.image[:, 0] * 255).round().long(), label * 10)
        assert torch.equal(samples.target == 255, ~samples.valid)
        assert not samples.valid.all()
        flips += int((host.streams[0].covered[:, 0] > 0).sum())
    assert flips > 0


def test_a_batch_holds_floats_on_labels_and_no_mask_of_an_unlabeled_image(dataset):
    batch = to_batch(batches(loader(dataset, draws=2))[0], "cpu", dataset.task)
    assert batch.labeled.image.shape == (4, 3, 48, 48)
    assert batch.labeled.image.dtype == torch.float32
    assert 0 <= batch.labeled.image.min()
    assert batch.labeled.image.max() <= 1
    assert batch.labeled.target.dtype == torch.int64
    assert batch.unlabeled.target is None
    assert batch.partner.target is None
    assert to_batch(batches(loader(dataset, draws=0))[0], "cpu", dataset.task).unlabeled is None


def test_unlabeled_streams_never_open_a_mask(dataset, monkeypatch):
    opened: list[str] = []
    read_target = Squares.read_target
    monkeypatch.setattr(Squares, "read_target", lambda self, id: opened.append(id) or read_target(self, id))
    batches(loader(dataset), stop=6)
    assert set(opened) == set(dataset.ids("train")[:5])


def test_bytes_become_exact_fractions(dataset):
    host = batches(loader(dataset))[0]
    expected = host.streams[0].image.double() / 255
    assert torch.equal(to_batch(host, "cpu", dataset.task, dtype=torch.float64).labeled.image, expected)


@pytest.mark.parametrize(("pad", "color"), [("black", (0, 0, 0)), ("mean", (124, 116, 104))])
def test_padding_has_the_color_of_the_recipe(dataset, pad, color):
    host = batches(loader(dataset, {"pad": pad, "scale": (0.5, 0.5)}))[0]
    valid = to_batch(host, "cpu", dataset.task).labeled.valid
    for image, inside in zip(host.streams[0].image, valid, strict=True):
        assert not inside.all()
        assert set(map(tuple, image[:, ~inside].T.tolist())) == {color}


def test_a_pair_of_dates_gets_a_time_axis(tmp_path, dataset):
    pairs = Squares(tmp_path, dates=2)
    samples = to_batch(batches(loader(pairs, {"scale": (1, 1), "crop": 32}))[0], "cpu", pairs.task).labeled
    assert samples.image.shape == (4, 2, 3, 32, 32)
    assert samples.valid.shape == (4, 32, 32)
    levels = (samples.image * 255).round().long()
    assert torch.equal(levels[:, 0, 0], samples.target * 10)  # the mask is the first band of the first date
    assert torch.equal(levels[:, 1, 1], (levels[:, 0, 1] + 3 * 31) % 256)  # bands 4 and 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_one_clear_error(dataset, workers):
    (dataset.root / "03.png").unlink()
    ids = tuple(f"{number:02d}.png" for number in range(14))
    split = Split(ids[:5], ids[5:], ())
    recipe = DataRecipe.model_validate({"crop": 48, "batch": {"labeled": 4, "unlabeled": 4}, "workers": workers})
    with pytest.raises(DataError) as caught:
        batches(train_loader(Source(recipe, dataset, None, split)), stop=8)
    assert (str(caught.value), caught.value.code) == ("03.png: no such image", "H201")


def test_errors_with_another_constructor_survive_the_way_from_the_worker(dataset):
    dataset.root.joinpath("00.png").rename(dataset.root / "extra.png")
    with pytest.raises(MissingExtraError, match=r"pip install \"halfmask\[geo\]\""):
        batches(loader(dataset, {"workers": 1}), stop=8)


def test_a_mask_of_another_size_names_both_sizes(dataset):
    dataset.root.joinpath("00.png").rename(dataset.root / "short.png")
    split = Split(("short.png",), tuple(dataset.ids("train")), ())
    recipe = DataRecipe.model_validate({"crop": 48, "batch": {"labeled": 1, "unlabeled": 1}, "workers": 0})
    with pytest.raises(DataError, match="image is 70x40 but its mask is 70x39"):
        batches(train_loader(Source(recipe, dataset, None, split)))


def test_the_reader_can_be_sent_to_a_spawned_worker(dataset):
    reader = loader(dataset, draws=2).dataset
    keys = loader(dataset, draws=2).steps.keys(3)
    assert_equal([pickle.loads(pickle.dumps(reader))[keys]], [reader[keys]])


def test_the_cache_gives_the_same_batches_and_is_used(dataset, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    plain = batches(loader(dataset), stop=8)
    assert_equal(plain, batches(loader(dataset, {"cache": "memmap"}, cache=cache), stop=8))
    assert not list(cache.rglob("*.part"))
    assert len(list(cache.rglob("*.npy"))) == 14 + 5  # images, and the masks of the labeled ones only

    def refuse(self: Squares, id: str) -> np.ndarray:
        raise AssertionError("decoded again")

    monkeypatch.setattr(Squares, "read_image", refuse)
    assert_equal(plain, batches(loader(dataset, {"cache": "memmap"}, cache=cache), stop=8))


def test_the_cache_notices_an_edited_file(dataset, tmp_path):
    cache = tmp_path / "cache"
    recipe = {"cache": "memmap", "scale": (1, 1), "flip": 0}
    batches(loader(dataset, recipe, cache=cache), stop=8)
    for path in dataset.root.glob("*.png"):
        Image.fromarray(np.full((50, 61), 20, dtype=np.uint8)).save(path)
    for batch in batches(loader(dataset, recipe, cache=cache), stop=8):
        assert (batch.streams[0].target == 2).all()


def test_worker_counts():
    assert worker_count(3) == 3
    assert 0 <= worker_count("auto") <= 8
    assert worker_count("auto", world=1000) == 0


def test_workers_outlive_a_sigterm_and_end_with_their_loader(dataset, monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    made = loader(dataset, {"workers": 1})
    made.steps.start, made.steps.stop = 0, 4
    items = iter(made)
    next(items)
    (worker,) = made._iterator._workers
    os.kill(worker.pid, signal.SIGTERM)
    assert len(list(items)) == 3
    os.kill(worker.pid, signal.SIGSTOP)  # stuck
    made.close()
    assert worker.exitcode == -signal.SIGKILL
