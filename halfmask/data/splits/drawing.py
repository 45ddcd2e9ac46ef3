"""Choose which images are labeled: a seeded draw in which every class occurs, where that is possible."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from halfmask.atomic import require_writable
from halfmask.data.contract import Dataset
from halfmask.data.folder.lists import write_list
from halfmask.errors import DataError, gathered

_CHUNK = 64
# Masks looked at before choosing, as a multiple of the number wanted, once every class has been seen.
_POOL = 4
_SEED_VAL = 1


class Drawn(NamedTuple):
    """Chosen ids (sorted), and the names of the classes that none of them shows."""

    ids: tuple[str, ...]
    missing: tuple[str, ...]


class NewSplit(NamedTuple):
    """A split that was written.

    Args:
        folder: holds labeled.txt and unlabeled.txt.
        labeled: chosen ids.
        unlabeled: all other training ids.
        missing: classes that no labeled image shows: warn about them.
    """

    folder: Path
    labeled: tuple[str, ...]
    unlabeled: tuple[str, ...]
    missing: tuple[str, ...]


def draw(dataset: Dataset, ids: Sequence[str], count: int, seed: int) -> Drawn:
    """Draw `count` of `ids`: first a greedy cover of the classes, then at random.

    Masks are looked at in random order, until every class was seen and there are enough to choose from. Of images with
    one label each, every class gets the same number, as far as it has so many (and one more for some, if `count` is no
    multiple of the number of classes).

    Raises:
        DataError: fewer images than wanted, or a broken mask.
    """
    if not ids:
        raise DataError(
            f"{count} labeled images are wanted, but no image has a mask. Add masks named like their images.", "H210"
        )
    if count > len(ids):
        raise DataError(
            f"{count} labeled images are wanted, but only {len(ids)} images have a mask. Use data.labeled={len(ids)} "
            "or less, or add masks.",
            "H210",
        )
    order = [sorted(ids)[position] for position in np.random.default_rng(seed).permutation(len(ids))]
    if dataset.task.kind == "classification":
        return _draw_labels(dataset, order, count)
    present: dict[str, frozenset[int]] = {}
    for start in range(0, len(order), _CHUNK):
        present |= classes_in(dataset, order[start : start + _CHUNK])
        seen = frozenset().union(*present.values())
        if len(seen) == dataset.task.n_classes and len(present) >= _POOL * count:
            break
    chosen, covered = _cover(present, count)
    taken = set(chosen)
    chosen += [id for id in order if id not in taken][: count - len(chosen)]
    missing = _names(dataset, covered.union(*(present.get(id, frozenset()) for id in chosen)))
    return Drawn(tuple(sorted(chosen)), missing)


def _draw_labels(dataset: Dataset, order: Sequence[str], count: int) -> Drawn:
    """Take the first image of every class in turn, then the second of every class, ..."""
    turn: dict[str, int] = {}
    seen = [0] * dataset.task.n_classes
    for id in order:
        label = int(dataset.read_target(id))
        turn[id] = seen[label]
        seen[label] += 1
    chosen = sorted(order, key=lambda id: turn[id])[:count]  # stable: within a turn in random order
    drawn = frozenset(int(dataset.read_target(id)) for id in chosen)
    return Drawn(tuple(sorted(chosen)), _names(dataset, drawn))


def hold_out(dataset: Dataset, ids: Sequence[str], count: int, seed: int) -> tuple[str, ...]:
    """Draw `count` of `ids` whose removal leaves every class with the others, as far as possible."""
    order = [sorted(ids)[position] for position in np.random.default_rng([seed, _SEED_VAL]).permutation(len(ids))]
    present = classes_in(dataset, order)
    uses = np.zeros(dataset.task.n_classes, dtype=np.int64)
    for found in present.values():
        uses[list(found)] += 1
    chosen: list[str] = []
    for id in order:
        if len(chosen) < count and (uses[list(present[id])] > 1).all():
            chosen.append(id)
            uses[list(present[id])] -= 1
    taken = set(chosen)
    chosen += [id for id in order if id not in taken][: count - len(chosen)]
    return tuple(sorted(chosen))


def make_split(
    dataset: Dataset,
    *,
    out: Path | str,
    count: int | None = None,
    fraction: float | None = None,
    seeds: Sequence[int] = (0,),
    val: int | None = None,
    name: str | None = None,
) -> list[NewSplit]:
    """Write `<out>/<name>_seed<k>/{labeled,unlabeled}.txt` for each seed, and `<out>/val.txt` if images are held out.

    Args:
        dataset: its training images with masks are drawn from.
        out: folder of the lists, for example `<root>/splits`.
        count: number of labeled images; or give `fraction`.
        fraction: part of the training images with a mask, in (0, 1].
        seeds: one split each.
        val: number of masks held out for validation, the same for every seed; only without a validation part.
        name: of the splits; by default the count, or `1_8` for a fraction of an eighth.

    Raises:
        DataError: more images wanted than there are, broken masks, or `out` cannot be written.
        ValueError: not exactly one of `count` and `fraction`.
    """
    if (count is None) == (fraction is None):
        raise ValueError("give either count or fraction")
    out = Path(out)
    require_writable(out)
    train = dataset.ids("train")
    masked = [id for id in train if dataset.mask_path(id) is not None]
    held_out: tuple[str, ...] = ()
    if val:
        if len(masked) <= val:
            raise DataError(f"{val} masks to hold out, but only {len(masked)} images have one. Hold out fewer.", "H210")
        held_out = hold_out(dataset, masked, val, seed=0)
        write_list(out / "val.txt", held_out)
    pool = sorted(set(masked) - set(held_out))
    wanted = count if count is not None else number_of(fraction or 0, len(pool))
    label = name or (str(count) if fraction is None else _fraction_name(fraction))
    made = []
    for seed in seeds:
        drawn = draw(dataset, pool, wanted, seed)
        rest = (set(train) | set(dataset.ids("unlabeled"))) - set(drawn.ids) - set(held_out)
        split = NewSplit(out / f"{label}_seed{seed}", drawn.ids, tuple(sorted(rest)), drawn.missing)
        write_list(split.folder / "labeled.txt", split.labeled)
        write_list(split.folder / "unlabeled.txt", split.unlabeled)
        made.append(split)
    return made


def classes_in(dataset: Dataset, ids: Sequence[str]) -> dict[str, frozenset[int]]:
    """Read masks and give the classes each shows (ignored pixels apart). Raises DataError: all that cannot be read."""

    def look(id: str) -> frozenset[int] | DataError:
        try:
            return frozenset(np.unique(dataset.read_target(id)).tolist()) - {dataset.task.ignore_index}
        except DataError as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoders release the interpreter lock
        found = dict(zip(ids, pool.map(look, ids), strict=True))
    failed = list({str(one): one for one in found.values() if isinstance(one, DataError)}.values())
    if len(failed) > 1:
        raise gathered(f"{dataset.root}: {len(failed)} problems in masks:", failed)
    if failed:
        raise failed[0]
    return {id: one for id, one in found.items() if not isinstance(one, DataError)}


def number_of(fraction: float, total: int) -> int:
    """Round a fraction of a number, half up, at least 1.

    >>> number_of(1 / 16, 367)
    23
    """
    return max(1, int(fraction * total + 0.5))


def _cover(present: dict[str, frozenset[int]], count: int) -> tuple[list[str], frozenset[int]]:
    chosen: list[str] = []
    covered: frozenset[int] = frozenset()
    everything = frozenset().union(*present.values())
    while len(chosen) < count and covered != everything:
        # `max` keeps the first of equals, which is random because `present` is in random order.
        best = max(present, key=lambda id: len(present[id] - covered))
        chosen.append(best)
        covered |= present[best]
    return chosen, covered


def _names(dataset: Dataset, seen: frozenset[int]) -> tuple[str, ...]:
    return tuple(name for id, name in enumerate(dataset.task.classes) if id not in seen)


def _fraction_name(fraction: float) -> str:
    """Return the name that published lists give a fraction.

    >>> _fraction_name(1 / 16), _fraction_name(0.4)
    ('1_16', '40pct')
    """
    inverse = 1 / fraction
    return f"1_{inverse:.0f}" if abs(inverse - round(inverse)) < 0.01 else f"{fraction * 100:g}pct"
