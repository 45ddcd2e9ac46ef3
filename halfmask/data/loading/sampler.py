"""Which samples form batch number `step`: a pure function of the seed, the stream and the step.

A stream is one list walked pass after pass; stream 0 is the labeled list, streams 1, 2, ... are the draws from the
unlabeled list. Pass `p` visits the list in the order `default_rng((seed, stream, p)).permutation(length)`. The batch
of a step is formed for all devices together and then dealt to the ranks in contiguous slices. So neither the number
of workers, nor the number of ranks, nor an interruption changes which images are seen, or when.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from torch.utils.data import Sampler

from halfmask.errors import DataError
from halfmask.recipe.sections import DataRecipe

LABELED, UNLABELED, PARTNER = 0, 1, 2  # stream numbers


class SampleKey(NamedTuple):
    """One sample of a batch."""

    stream: int  # 0 labeled, 1 unlabeled, 2 the second unlabeled draw
    position: int  # place in the list of the stream
    n: int  # running number of the sample in its stream over the whole run; seeds its augmentation
    shows: int | None = None  # class that its crop has to show; `None`: any crop


class StepKeys(NamedTuple):
    """The samples of one rank in one step, ordered by stream; of one domain, where several take turns."""

    step: int
    samples: tuple[SampleKey, ...]
    domain: str = ""


class Walk:
    """An endless walk over one list in batches, reshuffled on every pass.

    Args:
        length: entries of the list.
        batch: entries per step, over all ranks.
        used: entries of a pass that are used; the rest of the permutation is left out. `length` lets a batch reach
            into the next pass, so every entry is seen equally often.
        short_last: end each pass with its smaller batch instead (`used` must be `length`).
        seed: of the permutations, together with `stream` and the number of the pass.
        stream: streams of equal length and equal `stream` walk in the same order.
    """

    def __init__(self, length: int, batch: int, *, used: int, short_last: bool, seed: int, stream: int) -> None:
        self.length, self.batch, self.used, self.short_last = length, batch, used, short_last
        self.seed, self.stream = seed, stream
        self._pass, self._order = -1, np.empty(0, dtype=np.int64)

    def batch_at(self, step: int) -> list[tuple[int, int]]:
        """Return (position in the list, running number) of every entry of a step's batch."""
        if self.short_last:
            number, within = divmod(step, -(-self.length // self.batch))
            start = number * self.length + within * self.batch
            stop = min(start + self.batch, (number + 1) * self.length)
        else:
            start, stop = step * self.batch, (step + 1) * self.batch
        return [(self._entry(*divmod(n, self.used)), n) for n in range(start, stop)]

    def _entry(self, number: int, place: int) -> int:
        if number != self._pass:
            self._order = np.random.default_rng((self.seed, self.stream, number)).permutation(self.length)
            self._pass = number
        return int(self._order[place])


def steps_per_epoch(length: int, batch: int, *, drop_last: bool = True) -> int:
    """Count the steps of one pass over a list.

    A list shorter than a batch takes one step, whose batch (with `drop_last`) is filled from the next pass.

    >>> steps_per_epoch(10, 4), steps_per_epoch(10, 4, drop_last=False), steps_per_epoch(3, 4)
    (2, 3, 1)
    """
    return max(1, length // batch) if drop_last else -(-length // batch)


class ClassBalance:
    """Draws labeled samples by class (`data.balance: classes`): a class that occurs, then an image that shows it.

    Every class is drawn equally often, or as often as `weigh` says, and of its images each one; the crop is then laid
    around one of its pixels. Sample `n` is a pure function of the seed, n and the weights.

    Args:
        counts: pixels of each class in each mask, in the order of the labeled list.
        seed: of the draws.

    >>> ClassBalance(np.array([[90, 10, 0], [100, 0, 0]]), seed=0).draw(0)  # image and class
    (0, 0)

    Raises:
        DataError: no mask shows a class.
    """

    def __init__(self, counts: Int[np.ndarray, "N K"], seed: int) -> None:
        self.seed = seed
        self._classes = np.flatnonzero(counts.any(0))
        self._images = [np.flatnonzero(counts[:, number]) for number in self._classes]
        self._upto: np.ndarray | None = None  # summed chances of the classes; `None`: all alike
        if not len(self._classes):
            raise DataError("data.balance=classes, but no labeled mask shows any class.", "H210")

    def weigh(self, weights: Sequence[float] | None) -> None:
        """Set how often each class is drawn from now on: in proportion to `weights[k]`; `None`: all equally often.

        Raises:
            DataError: weights that are no chances.
        """
        if weights is None:
            self._upto = None
            return
        own = np.asarray(weights, dtype=np.float64)[self._classes]
        if not np.isfinite(own).all() or (own < 0).any() or not own.any():
            raise DataError(
                f"classes cannot be drawn with the weights {[round(weight, 4) for weight in weights]}. Let "
                "class_weights_for_sampling() of the method return finite numbers that are not negative, and not all 0."
            )
        self._upto = np.cumsum(own / own.sum())
        self._upto[-1] = 1.0  # rounding must not leave a gap at the end

    def draw(self, n: int) -> tuple[int, int]:
        """Return the position of sample `n` in the labeled list, and the class it has to show."""
        rng = np.random.default_rng((self.seed, LABELED, n, 1))
        if self._upto is None:
            number = int(rng.integers(len(self._classes)))
        else:
            number = int(np.searchsorted(self._upto, rng.random(), side="right"))
        return int(rng.choice(self._images[number])), int(self._classes[number])


class StepSampler(Sampler[list[StepKeys]]):
    """Batches of the steps `start <= step < stop`, for use as a loader's `batch_sampler`.

    The engine sets `start` and `stop` before each iteration; iterating leaves them as they are, so prefetching,
    persistent workers, an interruption and a resume all give the same sequence.

    Args:
        labeled: length of the labeled list.
        unlabeled: length of the unlabeled list; 0 if there is none.
        recipe: the `data` section: `batch`, `drop_last`, and how the two lists are walked (`labeled_cut`,
            `independent_shuffle`). With `drop_last: false` every pass of every list ends with its smaller batch;
            otherwise only the list that defines the epoch loses its tail, and others run on into their next pass.
        seed: of all orders.
        draws: unlabeled batches per step; 0 makes an epoch one pass over the labeled list.
        draws_share_images: further draws are the same images again (with their own augmentation).
        rank: whose share of each batch is given.
        world: number of ranks.
        balance: draws the labeled samples, in place of the walk over their list.

    Raises:
        DataError: a list that is needed is empty, or a batch leaves a rank without a sample.
    """

    def __init__(
        self,
        labeled: int,
        unlabeled: int,
        recipe: DataRecipe,
        *,
        seed: int = 0,
        draws: int = 1,
        draws_share_images: bool = False,
        rank: int = 0,
        world: int = 1,
        balance: ClassBalance | None = None,
    ) -> None:
        if labeled == 0:
            raise DataError(
                "the labeled list is empty. Give at least one image with a mask (data.split, data.labeled).", "H210"
            )
        if draws and unlabeled == 0:
            raise DataError(
                "the unlabeled list is empty, but the method learns from unlabeled images. "
                "Use fewer masks (data.labeled), add images (data.unlabeled), or train with method=supervised.",
                "H210",
            )
        self.rank, self.world, self.balance = rank, world, balance
        self.labeled_length = labeled
        batch, drop_last = recipe.batch, recipe.drop_last
        length = unlabeled if draws and recipe.labeled_cut else labeled  # of the labeled list as it is walked
        main, main_batch = (unlabeled, batch.unlabeled) if draws else (labeled, batch.labeled)
        self.steps_per_epoch = steps_per_epoch(main, main_batch, drop_last=drop_last)
        used = min(main, self.steps_per_epoch * main_batch)
        # A labeled list walked in step with the unlabeled one loses the same tail, or the pairs would drift apart.
        in_step = length == main and batch.labeled == main_batch
        shared_order = not recipe.independent_shuffle and length == main

        def walk(length: int, batch: int, used: int, stream: int) -> Walk:
            return Walk(length, batch, used=used, short_last=not drop_last, seed=seed, stream=stream)

        self.walks = [walk(length, batch.labeled, used if in_step else length, UNLABELED if shared_order else LABELED)]
        for draw in range(draws):
            self.walks.append(walk(main, main_batch, used, UNLABELED if draws_share_images else UNLABELED + draw))
        self._refuse_empty_shares()
        self.start, self.stop = 0, self.steps_per_epoch

    def keys(self, step: int) -> StepKeys:
        """Return this rank's samples of one step."""
        samples: list[SampleKey] = []
        for stream, walk in enumerate(self.walks):
            entries = walk.batch_at(step)
            share = slice(len(entries) * self.rank // self.world, len(entries) * (self.rank + 1) // self.world)
            samples += [self._key(stream, position, n) for position, n in entries[share]]
        return StepKeys(step, tuple(samples))

    def smallest_batch(self, stream: int | None = None) -> int:
        """Count the samples of the smallest batch of a stream, or of any, over all ranks."""
        walks = self.walks if stream is None else [self.walks[stream]]
        return min(walk.length % walk.batch or walk.batch if walk.short_last else walk.batch for walk in walks)

    def weigh(self, weights: Sequence[float] | None) -> None:
        """Set how often each class of labeled samples is drawn, where they are drawn by class."""
        if self.balance is not None:
            self.balance.weigh(weights)

    def __iter__(self) -> Iterator[list[StepKeys]]:
        # One "item" per step: a worker makes a whole batch.
        return ([self.keys(step)] for step in range(self.start, self.stop))

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def _key(self, stream: int, position: int, n: int) -> SampleKey:
        if stream == LABELED and self.balance is not None:
            drawn, shows = self.balance.draw(n)
            return SampleKey(stream, drawn, n, shows)
        length = self.labeled_length if stream == LABELED else self.walks[stream].length
        return SampleKey(stream, position % length, n)

    def _refuse_empty_shares(self) -> None:
        if self.smallest_batch() < self.world:
            raise DataError(
                f"a batch of {self.smallest_batch()} cannot be dealt to {self.world} devices. Set data.drop_last=true, "
                "or use larger batches (data.batch) or fewer devices (run.devices).",
                "H210",
            )


class Turns(Sampler[list[StepKeys]]):
    """Several domains in turns: step `s` is of domain `s % n`, and is that domain's step `s // n`.

    The epoch is over when the longest domain has been passed once; shorter ones have begun anew by then.

    Args:
        samplers: by domain, in the order of the turns.
    """

    def __init__(self, samplers: Mapping[str, StepSampler]) -> None:
        self.samplers, self.domains = dict(samplers), tuple(samplers)
        self.steps_per_epoch = len(samplers) * max(sampler.steps_per_epoch for sampler in samplers.values())
        self.start, self.stop = 0, self.steps_per_epoch

    def keys(self, step: int) -> StepKeys:
        """Return this rank's samples of one step."""
        own, turn = divmod(step, len(self.domains))
        domain = self.domains[turn]
        return StepKeys(step, self.samplers[domain].keys(own).samples, domain)

    def weigh(self, weights: Sequence[float] | None) -> None:
        """Ignore the weights: those of one domain's classes say nothing about the others."""

    def __iter__(self) -> Iterator[list[StepKeys]]:
        return ([self.keys(step)] for step in range(self.start, self.stop))

    def __len__(self) -> int:
        return max(0, self.stop - self.start)
