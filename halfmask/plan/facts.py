"""Collect the facts of a plan: the data at a glance, and the machine."""

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from halfmask.data.check import take_fingerprint
from halfmask.data.contract import Dataset, count_classes
from halfmask.data.splits.opening import check_data
from halfmask.data.splits.split import resolve_split, unlabeled_dataset, verify
from halfmask.data.splits.verify import default_folder
from halfmask.errors import DataError, Faults
from halfmask.infer.devices import is_first_rank
from halfmask.progress import looking_at_files
from halfmask.recipe.sections import DataRecipe
from halfmask.task import Kind, Task
from halfmask.views.components import cell_boxes

_LOOKED_AT = 60  # images per part
_COUNTED, _MEASURED = 100, 8  # masks
_CELLS = 160  # along the long side of a mask whose objects are measured
_LEAST_CELLS = 4  # of an object; smaller ones are noise as often as not


@dataclass(frozen=True)
class DataFacts:
    """The data at a glance; sizes, shares and objects are those of a sample.

    Args:
        task: kind and classes.
        labeled: masks that train.
        unlabeled: images that train without one.
        val: images that validate.
        held_out: whether those were taken from the masks for want of a validation part.
        side: median of the images' shorter sides, in pixels.
        long_side: likewise of the longer ones.
        channels: bands of an image.
        objects: sizes below which a quarter, and half, of the objects are: square roots of their areas in pixels.
            Objects are connected regions of any class but the most frequent one; `None` where there are none.
        shares: of the labeled pixels (or images), per class.
    """

    task: Task
    labeled: int
    unlabeled: int
    val: int
    held_out: bool
    side: int
    long_side: int
    channels: int
    objects: tuple[float, float] | None
    shares: tuple[float, ...]

    @property
    def kind(self) -> Kind:
        """Kind of task: segmentation, change or classification."""
        return self.task.kind


@dataclass(frozen=True)
class Machine:
    """What there is to train with.

    Args:
        gpu: its name; `None`: none.
        memory: bytes that are free, on the GPU or else in main memory.
        cores: of the CPU that this process may use.
        load: processes that want to run, on average over the last minute; this one may be among them.
    """

    gpu: str | None
    memory: int
    cores: int
    load: float = 0.0

    @property
    def busy(self) -> bool:
        """Whether other programs take a good part of the cores, so that times measured now are long."""
        return self.load > self.cores + 0.5


def look_at_data(recipe: DataRecipe, *, unlabeled: bool = True, quiet: bool = True) -> DataFacts:
    """Open the data, look at every file as before a training, and measure a sample.

    Args:
        recipe: says where it is.
        unlabeled: look at the files of unlabeled images, too.
        quiet: show no progress of that.

    Raises:
        DataError: all that is wrong with its lists and files; or it holds nothing to learn from.
        RecipeError: it cannot be read as the recipe says.
    """
    seen = take_fingerprint(recipe, limit=_LOOKED_AT)
    if seen.failures:
        faults = Faults()
        check_data(recipe, faults, quiet=quiet)
        faults.raise_all()
        raise seen.failures[0]
    assert seen.dataset is not None
    with warnings.catch_warnings():  # preparing the run says them again
        warnings.simplefilter("ignore")
        split = resolve_split(recipe, seen.dataset)
    sizes = [facts.header.upright for facts in seen.images.values() if facts.header is not None]
    if not sizes:
        raise DataError(
            f"{seen.root}: no image can be opened. See what is wrong: halfmask check --data {seen.root}", "H201"
        )
    dataset = seen.dataset
    if is_first_rank():
        with looking_at_files(quiet) as on_file:  # before any of them is read in trials
            others = unlabeled_dataset(recipe, dataset) if unlabeled else None
            verify(dataset, split, others, stamps=default_folder(), on_file=on_file)
    counts = count_classes(dataset, _spread(split.labeled, _COUNTED)).sum(0)
    dense = dataset.task.kind != "classification"
    return DataFacts(
        task=dataset.task,
        labeled=len(split.labeled),
        unlabeled=len(split.unlabeled),
        val=len(split.val),
        held_out=bool(split.val) and any("held out" in remark for remark in split.remarks),
        side=int(np.median([min(size) for size in sizes])),
        long_side=int(np.median([max(size) for size in sizes])),
        channels=dataset.channels,
        objects=_object_sizes(dataset, _spread(split.labeled, _MEASURED), int(counts.argmax())) if dense else None,
        shares=tuple((counts / max(counts.sum(), 1)).tolist()),
    )


def look_at_machine(accelerator: str = "auto") -> Machine:
    """Tell GPU, free memory, cores and load; `accelerator` is `run.accelerator`."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if accelerator in {"auto", "gpu"} and torch.cuda.is_available():
        return Machine(torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0], cores, load)
    return Machine(None, _free_memory(), cores, load)


def _free_memory() -> int:
    """Return the bytes of main memory this process may still take; the limit of a container counts."""
    free = sys.maxsize
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    elif hasattr(os, "sysconf"):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdecimal():
        free = min(free, int(text) - int(used.read_text()))
    return free


def _object_sizes(dataset: Dataset, ids: Sequence[str], most_frequent: int) -> tuple[float, float] | None:
    found: list[float] = []
    for id in ids:
        target = np.asarray(dataset.read_target(id))
        step = max(1, -(-max(target.shape) // _CELLS))
        cells = torch.from_numpy(target[::step, ::step].copy())
        values = [v for v in cells.unique().tolist() if v != most_frequent and v < dataset.task.n_classes]
        if values:
            _, areas = cell_boxes(torch.stack([cells == value for value in values]))
            found += [step * area**0.5 for area in areas.flatten().tolist() if area >= _LEAST_CELLS]
    if not found:
        return None
    quarter, half = np.quantile(found, (0.25, 0.5))
    return float(quarter), float(half)


def _spread(ids: Sequence[str], count: int) -> Sequence[str]:
    return ids[:: max(1, -(-len(ids) // count))]
