"""Predict what a run takes: memory, seconds per step, all steps. `halfmask train --dry-run` prints it.

Two trial steps at each of two small batches, on the device and with the data of the run:

    memory(n) = fixed + n * per_image        n images per step and process; a line through the two trials
    seconds(n) = likewise; plus loading, where no worker process does it meanwhile

The fixed part holds weights, moving averages, gradients, the state of the optimizers and, on a CPU, the libraries. On a
CPU the memory is the resident set of the training process (loader workers come on top), on a GPU that of torch's
allocator (the driver takes about half a GiB more). Compilation is left out, and so is validation.
"""

import contextlib
import math
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.optim import Optimizer

from halfmask.batch import Progress
from halfmask.data.loading.loader import to_batch, worker_count
from halfmask.models.model import has_batch_norm
from halfmask.recipe.read import BatchRecipe, Recipe
from halfmask.run.loop.eager import without_compiler
from halfmask.run.loop.optim import base_rate, make_optimizers
from halfmask.run.loop.trainer import prepare_networks, uses_gpu
from halfmask.run.prepared import Prepared, loader_maker


@dataclass(frozen=True)
class Cost:
    """What one process of a run takes.

    Args:
        device: where the trials ran.
        labeled: images with masks per step, of the whole run.
        unlabeled: images without, likewise.
        unit: the smallest batch of the same ratio, (labeled, unlabeled), per process.
        world: number of processes.
        fewest: units per process below which the method or its network cannot train.
        fixed: bytes that do not depend on the batch.
        per_unit: bytes for each unit of the batch.
        step_seconds: of one step at the run's batch.
        steps: of the run.
    """

    device: str
    labeled: int
    unlabeled: int
    unit: tuple[int, int]
    world: int
    fewest: int
    fixed: int
    per_unit: int
    step_seconds: float
    steps: int

    @property
    def memory(self) -> int:
        """Memory in bytes at the run's batch, per process."""
        return self.fixed + self.per_unit * (self.labeled // self.world // self.unit[0])

    @property
    def seconds(self) -> float:
        """Seconds of all steps, without validation."""
        return self.step_seconds * self.steps

    def fitting(self, limit: int) -> tuple[int, int] | None:
        """Return the largest batch of the same ratio, over all processes, that a limit in bytes holds; `None`: none."""
        units = (limit - self.fixed) // max(self.per_unit, 1)
        if units < self.fewest:
            return None
        return units * self.unit[0] * self.world, units * self.unit[1] * self.world

    def describe(self) -> str:
        """Write memory and time."""
        return (
            f"memory   about {_size(self.memory)}{self._each} on this {self.device} ({_size(self.fixed)} whatever the "
            f"batch, {_size(self.per_unit)} for each {self.unit[0]}+{self.unit[1]} images)\n"
            f"time     about {self.step_seconds:.3g} s per step, {_duration(self.seconds)} for {self.steps} steps, "
            "without validation"
        )

    def describe_limit(self, limit: int) -> str:
        """Write what a memory limit in bytes allows."""
        fitting = self.fitting(limit)
        if fitting is None:
            verdict = "not even the smallest batch fits; a smaller data.crop or network might"
        else:
            keys = f"data.batch.labeled={fitting[0]} data.batch.unlabeled={fitting[1] or 1}"
            fits = self.memory <= limit
            verdict = f"the batch fits; the largest would be {keys}" if fits else f"too large; what fits is {keys}"
        return f"limit    {_size(limit)}{self._each}: {verdict}"

    @property
    def _each(self) -> str:
        return " per process" if self.world > 1 else ""


def predict_cost(prepared: Prepared) -> Cost:
    """Run the trials; the method's weights are different afterwards.

    Raises:
        torch.OutOfMemoryError: even the small trial does not fit.
    """
    recipe, method = prepared.recipe, prepared.method
    world = recipe.run.devices * recipe.run.nodes
    per_process = recipe.data.batch.labeled // world, recipe.data.batch.unlabeled // world if method.draws else 0
    shared = math.gcd(*per_process)
    unit = per_process[0] // shared, per_process[1] // shared
    images = 2 if has_batch_norm(method) else 1
    fewest = math.ceil(images / unit[0])
    if unit[1]:
        fewest = max(fewest, math.ceil(max(images, method.smallest_batch) / unit[1]))
    with _trials(prepared) as trial:
        first = min(fewest, shared)
        second = min(2 * first, shared)
        small = trial.run(unit, first)
        large = trial.run(unit, second) if second > first else small
    if second == first:
        per_unit, unit_seconds = small.memory // first, small.seconds / first
    else:
        per_unit = max((large.memory - small.memory) // (second - first), 0)
        unit_seconds = max((large.seconds - small.seconds) / (second - first), 0.0)
    compute = large.seconds + unit_seconds * (shared - second)
    load = large.load / second * shared
    workers = worker_count(recipe.data.workers, world)
    return Cost(
        device="GPU" if uses_gpu(recipe.run) else "CPU",
        labeled=recipe.data.batch.labeled,
        unlabeled=recipe.data.batch.unlabeled if method.draws else 0,
        unit=unit,
        world=world,
        fewest=fewest,
        fixed=large.memory - per_unit * second if second > first else 0,
        per_unit=per_unit,
        step_seconds=max(compute, load / workers) if workers else compute + load,
        steps=prepared.total_steps,
    )


@dataclass(frozen=True)
class _Taken:
    memory: int
    seconds: float  # of a step
    load: float  # seconds of loading, in this process


@dataclass
class _Trial:
    prepared: Prepared
    device: torch.device
    optimizers: dict[str, Optimizer]
    folder: Path

    def run(self, unit: tuple[int, int], units: int) -> _Taken:
        recipe, method = self.prepared.recipe, self.prepared.method
        batch = BatchRecipe(labeled=unit[0] * units, unlabeled=max(unit[1] * units, 1))
        data = recipe.data.model_copy(update={"batch": batch, "workers": 0})
        prepared = replace(self.prepared, recipe=recipe.model_copy(update={"data": data}))
        taken = _Taken(0, 0.0, 0.0)
        batches = iter(loader_maker(prepared, self.folder)(0, 2, 0, 1))
        for step in range(2):  # the first also sets up libraries and the state of the optimizers
            began = time.perf_counter()
            host = next(batches)
            loaded = time.perf_counter()
            with watch_peak(self.device) as peak:
                dtype = torch.float64 if recipe.run.precision == "64-true" else torch.float32
                weights = prepared.class_weights.get(host.domain)
                weights = None if weights is None else weights.to(self.device)
                one = to_batch(host, self.device, method.task, dtype=dtype, class_weights=weights)
                # Of the run's end: while a method warms up, its steps take less.
                progress = Progress(
                    max(prepared.total_steps - 2, 0) + step, prepared.total_steps, prepared.steps_per_epoch
                )
                with _autocast(recipe, self.device):
                    for update in method.updates(one, progress):
                        optimizer = self.optimizers[update.group]
                        optimizer.zero_grad(set_to_none=True)
                        update.output.loss.backward()
                        with without_compiler():
                            optimizer.step()
                method.after_update(progress)
            seconds = time.perf_counter() - loaded  # the peak waited for the device
            taken = _Taken(max(taken.memory, peak.most), seconds, loaded - began)
        return taken


@contextmanager
def _trials(prepared: Prepared) -> Iterator[_Trial]:
    recipe = prepared.recipe
    device = torch.device("cuda" if uses_gpu(recipe.run) else "cpu")
    method = prepared.method.to(device).train()
    if recipe.run.precision == "64-true":
        method.double()
    prepare_networks(method, recipe.run.model_copy(update={"compile": False}))  # which takes minutes
    rate = base_rate(recipe.optim, recipe.data.batch.labeled)
    optimizers = make_optimizers(method, recipe.optim, rate, fused=device.type in {"cpu", "cuda"})
    with tempfile.TemporaryDirectory(prefix="halfmask-trial-") as folder:
        yield _Trial(prepared, device, optimizers, Path(folder))


def _autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.run.precision == "bf16-mixed")


def _size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


_STATUS = Path("/proc/self/status")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Peak:
    """The most memory that was taken while it watched.

    Args:
        before: bytes taken at its start.
        most: bytes taken at the most; on a CPU of the whole process.
    """

    def __init__(self, before: int) -> None:
        self.before = self.most = before

    @property
    def added(self) -> int:
        """Bytes that the block took, above what was in use before it."""
        return max(self.most - self.before, 0)


@contextlib.contextmanager
def watch_peak(device: torch.device) -> Iterator[Peak]:
    """Watch the memory of a block.

    >>> with watch_peak(torch.device("cpu")) as peak:
    ...     _ = torch.ones(2**22)
    >>> peak.most > 2**24
    True
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        peak = Peak(torch.cuda.memory_allocated(device))
        yield peak
        torch.cuda.synchronize(device)
        peak.most = torch.cuda.max_memory_allocated(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts anew
    peak = Peak(_status("VmRSS") or _ever())
    yield peak
    peak.most = _status("VmHWM") or _ever()


def parse_bytes(text: str) -> int:
    """Read `8GB`, `8GiB`, `500M`; units are powers of 1024, as tools that show memory use them.

    >>> parse_bytes("8GB") == parse_bytes("8 GiB") == 8 * 2**30
    True

    Raises:
        ValueError: something else.
    """
    compact = text.strip().upper().replace(" ", "").removesuffix("B").removesuffix("I")
    number, unit = (compact[:-1], compact[-1]) if compact[-1:] in {*"KMGT"} else (compact, "")
    size = float(number) * _UNITS[unit]
    if not 1 <= size < math.inf:
        raise ValueError(text)
    return int(size)


def _status(key: str) -> int | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def max_resident_unit() -> int:
    """Return the bytes in a unit of `ru_maxrss`, which differs between systems."""
    return 1 if sys.platform == "darwin" else 1024


def _ever() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * max_resident_unit()
