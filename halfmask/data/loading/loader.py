"""From lists of ids to batches on the device: decode and cut in worker processes, carry bytes, finish on the device.

What travels is one uint8 crop per image, a uint8 target for labeled images only, and three numbers that tell where
the padding is: a fourth of the bytes of floats, and no views that the device can make itself. An unlabeled stream
holds a reader of images and nothing else, so a mask of an unlabeled image cannot reach a method; pseudo-masks
(`data.weak.masks`) come from a folder that is named for them.
"""

import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int, Integer, UInt8
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from halfmask.batch import Batch, Samples
from halfmask.data.contract import Dataset
from halfmask.data.loading.cache import cached
from halfmask.data.loading.sampler import LABELED, ClassBalance, SampleKey, StepKeys, StepSampler, Turns
from halfmask.data.loading.streams import Cutter, ImageStream, LabeledStream, PseudoStream
from halfmask.data.splits.split import Split
from halfmask.data.splits.weak import NOTHING_KNOWN, Weak
from halfmask.errors import DataError, HalfmaskError
from halfmask.recipe.sections import DataRecipe
from halfmask.task import Task
from halfmask.views.weak import Geometry, covered, cut_image, cut_target, point_of

IMAGENET_MEAN = (0.485, 0.456, 0.406)
Stream = ImageStream | LabeledStream | PseudoStream


@dataclass(slots=True)
class HostSamples:
    """The crops of one stream as bytes."""

    # crops, bands first; for change detection the bands of the two dates follow each other
    image: UInt8[Tensor, "B C S S"]
    covered: Int[Tensor, "B 3"]  # (left, right, bottom) of the real pixels in each crop; outside is padding
    index: Int[Tensor, " B"]  # position in the list of the stream
    # training ids (uint8), the task's ignore index where unknown or padded, or one label per image (int64); of
    # unlabeled streams pseudo-masks, else `None`
    target: Integer[Tensor, "B *S"] | None = None
    tags: Bool[Tensor, "B K"] | None = None  # image-level labels of unlabeled streams, where they are known

    def pin_memory(self) -> "HostSamples":
        """Copy to page-locked memory, from which copies to a GPU run asynchronously."""
        target, tags = (None if one is None else one.pin_memory() for one in (self.target, self.tags))
        return HostSamples(self.image.pin_memory(), self.covered.pin_memory(), self.index.pin_memory(), target, tags)


@dataclass(slots=True)
class HostBatch:
    """One rank's samples of one step, in host memory."""

    step: int  # number of the step
    streams: tuple[HostSamples, ...]  # labeled samples, then one entry per unlabeled draw
    domain: str = ""  # whose turn it is, where there are several

    def pin_memory(self) -> "HostBatch":
        """Copy all tensors to page-locked memory."""
        return HostBatch(self.step, tuple(samples.pin_memory() for samples in self.streams), self.domain)


def to_batch(
    host: HostBatch,
    device: torch.device | str,
    task: Task,
    dtype: torch.dtype = torch.float32,
    class_weights: Tensor | None = None,
) -> Batch:
    """Copy a batch to the device and make it what a method expects: images in [0, 1], validity, int64 targets."""

    def finish(samples: HostSamples) -> Samples:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        image = move(samples.image).to(dtype).div_(255)
        if task.kind == "change":
            image = image.reshape(image.shape[0], 2, -1, *image.shape[2:])  # (B, 2, C, H, W)
        if task.kind == "classification":
            valid = torch.ones(len(image), dtype=torch.bool, device=image.device)
        else:
            valid = _valid(move(samples.covered), samples.image.shape[-1])
        target = None if samples.target is None else move(samples.target).long()
        tags = None if samples.tags is None else move(samples.tags)
        return Samples(image, valid, move(samples.index), target, tags)

    labeled, unlabeled, partner = (*map(finish, host.streams), None, None)[:3]
    assert labeled is not None
    return Batch(labeled, unlabeled, partner, host.domain, class_weights)


def _valid(covered: Int[Tensor, "B 3"], side: int) -> Bool[Tensor, "B S S"]:
    left, right, bottom = covered[:, :, None].unbind(1)  # (B, 1) each
    places = torch.arange(side, device=covered.device)
    across = (places >= left) & (places < right)
    return (places < bottom)[:, :, None] & across[:, None, :]


class _Failure(NamedTuple):
    """An error of a worker on its way to the main process, without the worker's traceback."""

    kind: type[HalfmaskError]
    message: str
    code: str

    def error(self) -> HalfmaskError:
        error = self.kind.__new__(self.kind)
        error.args = (self.message,)
        error.code = self.code
        return error


class StepReader(TorchDataset[Any]):
    """What the workers run: the keys of a step in, its bytes out. Picklable, so that workers may be spawned."""

    def __init__(
        self, streams: tuple[Stream, ...], cutter: Cutter, ignore: int, tags: Bool[np.ndarray, "N K"] | None = None
    ) -> None:
        self.streams, self.cutter, self.ignore, self.tags = streams, cutter, ignore, tags

    def __getitem__(self, keys: StepKeys) -> HostBatch | _Failure:
        try:
            streams = tuple(self._samples(keys, stream) for stream in range(len(self.streams)))
            return HostBatch(keys.step, streams, keys.domain)
        except HalfmaskError as error:
            return _Failure(type(error), str(error), error.code)

    def _samples(self, keys: StepKeys, stream: int) -> HostSamples:
        own = [key for key in keys.samples if key.stream == stream]
        crops, extents, targets = zip(*(self._cut(key) for key in own), strict=True)
        if len({crop.shape[0] for crop in crops}) > 1:
            names = [
                f"{self.streams[stream].ids[key.position]}: {crop.shape[0]}"
                for key, crop in zip(own, crops, strict=True)
            ]
            raise DataError(
                f"images of one dataset differ in their number of bands: {', '.join(names)}. Convert them to the same "
                "number of bands, or remove the odd ones.",
                "H207",
            )
        return HostSamples(
            torch.from_numpy(np.stack(crops)),
            torch.tensor(extents, dtype=torch.int32),
            torch.tensor([key.position for key in own]),
            None if targets[0] is None else torch.from_numpy(np.stack(targets)),
            None if stream == LABELED or self.tags is None else torch.from_numpy(self.tags[[k.position for k in own]]),
        )

    def _cut(self, key: SampleKey) -> tuple[np.ndarray, tuple[int, int, int], np.ndarray | None]:
        image, target = self.streams[key.stream].read(key.position)
        cutter, crop = self.cutter, self.cutter.geometry.crop
        rng = np.random.default_rng([cutter.seed, key.stream, key.n])
        shown = target is not None and target.ndim and key.shows is not None
        around = point_of(target, key.shows, rng) if shown else None  # type: ignore[arg-type]  # both are there
        window = cutter.geometry.sample(rng, image.shape[1], image.shape[0], around)
        fill = cutter.fill(image.shape[2])
        cut = cut_image(image, window, crop, fill=fill, resample=cutter.resample)
        if target is None or not target.ndim:  # nothing, or a label of the whole image
            return cut, covered(window, crop), target
        mask = cut_target(target, window, crop, ignore=self.ignore)
        return cut, covered(window, crop), mask


class TurnReader(TorchDataset[Any]):
    """What the workers run where several domains take turns: each step by the reader of its domain."""

    def __init__(self, readers: Mapping[str, StepReader]) -> None:
        self.readers = dict(readers)

    def __getitem__(self, keys: StepKeys) -> HostBatch | _Failure:
        return self.readers[keys.domain][keys]


class TrainLoader(DataLoader[HostBatch]):
    """A loader of steps: set `steps.start` and `steps.stop`, then iterate."""

    @property
    def steps(self) -> StepSampler | Turns:
        """Return the sampler, which knows the steps per epoch and holds the range of the next iteration."""
        assert isinstance(self.batch_sampler, StepSampler | Turns)
        return self.batch_sampler

    def __iter__(self) -> Iterator[HostBatch]:  # type: ignore[override]  # the base class names a private type
        # The workers start here, not at the first batch.
        items = super().__iter__()
        for worker in getattr(items, "_workers", ()):
            worker.terminate = worker.kill  # a stuck one that is to end ignores SIGTERM
        return self._checked(items)

    def close(self) -> None:
        """Stop the workers now; otherwise they live until the loader is collected."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()

    def _checked(self, items: Iterator[HostBatch]) -> Iterator[HostBatch]:
        try:
            yield from _raise_failures(items)
        except HalfmaskError:
            # Left to the garbage collector, each worker would be waited for in vain for five seconds.
            self.close()
            raise


@dataclass(frozen=True, slots=True)
class Source:
    """One dataset of a run."""

    recipe: DataRecipe  # its `data` section
    dataset: Dataset  # of the labeled and validation images
    unlabeled: Dataset | None  # of the unlabeled images; `None`: the same one
    split: Split  # which ids have masks, and which have none
    balance: ClassBalance | None = None  # draws the labeled samples by class
    weak: Weak = NOTHING_KNOWN  # what is known of the unlabeled images


def train_loader(
    source: Source,
    *,
    seed: int = 0,
    draws: int = 1,
    draws_share_images: bool = False,
    rank: int = 0,
    world: int = 1,
    pin: bool = False,
    cache: Path | None = None,
) -> TrainLoader:
    """Make the loader of training batches.

    Args:
        source: the dataset, and which of its images have masks.
        seed: of order and geometry (`run.seed`).
        draws: unlabeled batches per step (`Method.draws`).
        draws_share_images: `Method.draws_share_images`.
        rank: number of this process.
        world: number of processes.
        pin: use page-locked memory (when training on a GPU).
        cache: folder of decoded images, used when `recipe.cache` is not "none".

    Raises:
        DataError: a list is empty or cannot be dealt to the ranks. Broken files raise while iterating.
    """
    settings = {"seed": seed, "draws": draws, "draws_share_images": draws_share_images, "rank": rank, "world": world}
    reader, sampler = _parts(source, cache=cache, **settings)
    return _loader(reader, sampler, worker_count(source.recipe.workers, world), pin)


def turn_loader(
    sources: Mapping[str, Source], *, world: int = 1, pin: bool = False, cache: Path | None = None, **settings: Any
) -> TrainLoader:
    """Make the loader of several domains that take turns, step by step.

    A domain's n-th batch is what its n-th batch would be without the others. `sources` are by the name of the domain,
    in the order of the turns; all other arguments are those of `train_loader`.
    """
    parts = {
        name: _parts(source, world=world, cache=None if cache is None else cache / name, **settings)
        for name, source in sources.items()
    }
    readers = TurnReader({name: reader for name, (reader, _) in parts.items()})
    turns = Turns({name: sampler for name, (_, sampler) in parts.items()})
    workers = worker_count(next(iter(sources.values())).recipe.workers, world)
    return _loader(readers, turns, workers, pin)


def _parts(
    source: Source, *, cache: Path | None, seed: int = 0, draws: int = 1, **settings: Any
) -> tuple[StepReader, StepSampler]:
    """Build the reader and the sampler of one dataset."""
    recipe, labeled, split = source.recipe, source.dataset, source.split
    other = labeled if source.unlabeled is None else source.unlabeled
    streams: list[Stream] = [
        LabeledStream(
            split.labeled,
            cached(labeled.read_image, labeled, cache, form=recipe.cache),
            cached(labeled.read_target, labeled, cache, masks=True, form=recipe.cache),
        )
    ]
    read_image = cached(other.read_image, other, cache, form=recipe.cache)
    masks = source.weak.masks
    streams += [
        ImageStream(split.unlabeled, read_image)
        if masks is None
        else PseudoStream(split.unlabeled, read_image, masks.read)
    ] * draws
    cutter = Cutter(
        Geometry(recipe.crop, recipe.scale, recipe.flip),
        recipe.resample,
        black=recipe.pad == "black",
        mean=labeled.mean or IMAGENET_MEAN,
        seed=seed,
    )
    unlabeled = len(split.unlabeled) if draws else 0
    settings |= {"seed": seed, "draws": draws, "balance": source.balance}
    sampler = StepSampler(len(split.labeled), unlabeled, recipe, **settings)
    return StepReader(tuple(streams), cutter, labeled.task.ignore_index, source.weak.tags), sampler


def _loader(reader: StepReader | TurnReader, sampler: StepSampler | Turns, workers: int, pin: bool) -> TrainLoader:
    return TrainLoader(
        reader,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_only,
        pin_memory=pin,
        persistent_workers=workers > 0,
        worker_init_fn=_leave_signals,
    )


def worker_count(workers: int | str, world: int = 1) -> int:
    """Resolve `auto`: one core is left to the main process, at most 8 workers, cores are shared by the ranks."""
    if isinstance(workers, int):
        return workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(8, (cores - 1) // world))


def _raise_failures(items: Iterator[Any]) -> Iterator[Any]:
    try:
        for item in items:
            if isinstance(item, _Failure):
                raise item.error()
            yield item
    finally:
        del items  # or the traceback would keep the workers alive


def _only(items: list[HostBatch | _Failure]) -> HostBatch | _Failure:
    return items[0]  # a worker already made the whole batch


def _leave_signals(worker: int) -> None:
    # Ctrl-C reaches the whole process group, as does SIGTERM from `timeout`, systemd or SLURM. Only the main process
    # may react, else its workers are gone before the step ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
