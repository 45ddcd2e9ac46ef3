"""Compare two forms of one computation: agreement first, then time by `torch.utils.benchmark`, then memory."""

import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Measurement, Timer

from halfmask.bench.speed import flop_counter, matmul_rate
from halfmask.run.cost import watch_peak

Compute = Callable[[], Any]

SMALL_IS_GOOD = {"launches", "syncs", "error", "norm error", "seconds"}  # their targets are upper bounds
ABSOLUTE = {"s", "images/s"}  # units that say more about the machine than about the code
_NOISE = 2**20  # smaller differences of the resident set
# A block of 64 KiB or more gets pages of its own, which go back to the system when it is freed.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class Disagreement(Exception):  # a finding about the code, not an error of the user
    """The fast form does not compute what the plain one computes."""


@dataclass(frozen=True)
class Setting:
    """How the rows are computed; `quick` takes tiny sizes: does everything run and agree?"""

    device: torch.device
    quick: bool = False
    rounds: int = 5
    seconds: float = 0.2
    memory: bool = True
    data: Path | None = None
    seed: int = 0

    def size(self, full: int, quick: int) -> int:
        """Choose between the size that counts and a tiny one."""
        return quick if self.quick else full

    def generator(self) -> torch.Generator:
        """Return a CPU generator, so that inputs are the same on every device."""
        return torch.Generator().manual_seed(self.seed)

    def normal(self, *shape: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw normal values."""
        return torch.randn(*shape, generator=generator or self.generator()).to(self.device)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Draw integers of [0, high)."""
        return torch.randint(high, shape, generator=self.generator()).to(self.device)


@dataclass
class Pair:
    """Two forms of one computation, over the same inputs.

    Args:
        plain: the textbook form.
        fast: what the library runs.
        agree: compares their results, says how far they are apart, and raises `Disagreement` where that is too far.
        traffic: the fewest bytes that any form must read and write, for the share of the copy rate.
        flops: count the matrix products of the fast form, for the share of the matmul rate.
        graph: a backward pass is part of it, so saved bytes are of interest.
        floor: the part of the work that nothing can avoid, such as decoding.
        dtype: of the matrix products of the fast form.
    """

    plain: Compute
    fast: Compute
    agree: Callable[[Any, Any], str]
    traffic: int | None = None
    flops: bool = False
    graph: bool = False
    floor: Compute | None = None
    dtype: torch.dtype = torch.float32


def forms(run: Callable[[Any], Any], plain: Any, fast: Any, agree: Callable[[Any, Any], str], **facts: Any) -> Pair:
    """Pair two functions (or settings) that `run` computes alike."""
    return Pair(functools.partial(run, plain), functools.partial(run, fast), agree, **facts)


@dataclass
class Measure:
    """One number about a row: a ratio plain / fast, unless `unit` says something else."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str = "x"
    reference: float | None = None  # of the plain form; its name in recorded files
    fast: float | None = None
    base_unit: str = "s"
    limit: dict[str, Any] | None = None  # share of a physical limit that the fast form reaches, and its name


@dataclass(frozen=True)
class Row:
    """One line: an id (rows of several sizes share it), the input in words, what is compared, and targets by device.

    `work` makes the pair to compare; or, where time is not the subject, it measures by itself.
    """

    id: str
    size: str
    work: Callable[[Setting], Pair | list[Measure]]
    title: str
    cpu: Mapping[str, float] = field(default_factory=dict)
    cuda: Mapping[str, float] = field(default_factory=dict)
    needs_data: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")

    def targets(self, device: str) -> Mapping[str, float]:
        """Return the bounds of measures on a kind of device."""
        return self.cuda if device == "cuda" else self.cpu


def holds(name: str, value: float, target: float, allowance: float = 0.0) -> bool:
    """Tell whether a measure keeps its target, give or take a fraction of it.

    >>> holds("time", 1.8, 2.0), holds("time", 1.8, 2.0, allowance=0.15), holds("syncs", 0, 0)
    (False, True, True)
    """
    return value <= target * (1 + allowance) if name in SMALL_IS_GOOD else value >= target * (1 - allowance)


def measure(row: Row, setting: Setting, script: Path) -> tuple[dict[str, Any], list[Measurement]]:
    """Run one row; a row that fails gets a `problem` and no numbers.

    Args:
        row: the row.
        setting: how.
        script: file that measures the memory of a row in a process of its own, called with `--memory-of`.

    Returns:
        What the file of results says about the row, and the times of both forms.
    """
    torch.manual_seed(setting.seed)
    found: list[Measure] = []
    times: list[Measurement] = []
    agreement = problem = ""
    try:
        work = row.work(setting)
        if isinstance(work, Pair):
            agreement = work.agree(work.plain(), work.fast())
            ratio, times = _times(row, work, setting)
            found = [ratio, *(_memory(row, work, setting, script) if setting.memory else [])]
            found += _launches(work) if setting.device.type == "cuda" else []
        else:
            found = work
    except Disagreement as error:
        problem = f"disagrees with its plain form: {error}"
    except Exception as error:  # the other rows go on
        problem = f"{type(error).__name__}: {error}"
    targets = {} if setting.quick else row.targets(setting.device.type)
    measures = [_judged(one, targets.get(one.name)) for one in found]
    return {
        "id": row.id, "size": row.size, "agreement": agreement, "problem": problem, "measures": measures,
    }, times  # fmt: skip


def _judged(one: Measure, target: float | None) -> dict[str, Any]:
    if target is None:
        return {**asdict(one), "target": None, "reached": None}
    sign = "<=" if one.name in SMALL_IS_GOOD else ">="
    return {**asdict(one), "target": f"{sign} {target:g}", "reached": holds(one.name, one.value, target)}


def timer(compute: Compute, setting: Setting, **labels: str) -> Timer:
    """Time a computation: CPU time of this process, or the clock around work that the GPU has finished."""
    clock = {} if setting.device.type == "cuda" else {"timer": time.process_time}
    threads = torch.get_num_threads()
    return Timer("compute()", globals={"compute": compute}, num_threads=threads, **labels, **clock)


def seconds(compute: Compute, setting: Setting) -> float:
    """Return the median seconds of a call."""
    return float(timer(compute, setting).blocked_autorange(min_run_time=max(setting.seconds, 1e-6)).median)


def _times(row: Row, pair: Pair, setting: Setting) -> tuple[Measure, list[Measurement]]:
    """Time both forms in turns (plain, fast, fast, plain), so that a machine that slows down hits both."""
    timers = {
        form: timer(getattr(pair, form), setting, label=row.id, sub_label=row.size, description=form)
        for form in ("plain", "fast")
    }
    blocks: dict[str, list[Measurement]] = {"plain": [], "fast": []}
    for _ in range(setting.rounds):
        for form in ("plain", "fast", "fast", "plain"):
            blocks[form].append(timers[form].blocked_autorange(min_run_time=max(setting.seconds, 1e-6)))
    plain, fast = ([block.median for block in blocks[form]] for form in ("plain", "fast"))
    ratios = [
        (plain[number] + plain[number + 1]) / (fast[number] + fast[number + 1]) for number in range(0, len(plain), 2)
    ]
    ratio = Measure("time", statistics.median(ratios), min(ratios), max(ratios))
    ratio.reference, ratio.fast = statistics.median(plain), statistics.median(fast)
    ratio.limit = _limit(pair, ratio.fast, setting)
    return ratio, [*Measurement.merge(blocks["plain"]), *Measurement.merge(blocks["fast"])]


def _limit(pair: Pair, fast: float, setting: Setting) -> dict[str, Any] | None:
    if pair.floor is not None:
        return {"share": seconds(pair.floor, setting) / fast, "name": "decode"}
    if pair.flops:
        with flop_counter() as counter:
            pair.fast()
        return {"share": counter.get_total_flops() / matmul_rate(setting.device, pair.dtype) / fast, "name": "matmul"}
    if pair.traffic is not None:
        return {"share": pair.traffic / copy_rate(setting.device) / fast, "name": "copy"}
    return None


@functools.cache
def copy_rate(device: torch.device) -> float:
    """Return bytes per second of a large copy, read and written bytes counted."""
    source = torch.rand(2**28 if device.type == "cuda" else 2**25).to(device)  # beyond every cache
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), Setting(device))


def _memory(row: Row, pair: Pair, setting: Setting, script: Path) -> list[Measure]:
    forms = [_in_own_process(row, form, setting, script) for form in ("plain", "fast")]
    measures = []
    for name in ("saved", "peak") if pair.graph else ("peak",):
        plain, fast = (form[name] for form in forms)
        if max(plain, fast) >= _NOISE:
            value = plain / max(fast, _NOISE if name == "peak" else 1)
            measures.append(Measure(name, value, reference=float(plain), fast=float(fast), base_unit="B"))
    return measures


def _in_own_process(row: Row, form: str, setting: Setting, script: Path) -> dict[str, int]:
    # The row's name travels with its settings: the process makes the same inputs from the same seed.
    command = [sys.executable, str(script), row.id, "--memory-of", form, "--size", row.size]
    command += ["--device", str(setting.device), "--threads", str(torch.get_num_threads())]
    command += ["--quick"] * setting.quick + ([] if setting.data is None else ["--data", str(setting.data)])
    done = subprocess.run(command, env={**os.environ, **_MALLOC}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the memory of {row.id} ({form}) could not be measured: {done.stderr.strip()[-400:]}")
    measured: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return measured


def memory_of(row: Row, form: str, setting: Setting) -> dict[str, int]:
    """Measure one form in this process.

    Returns:
        `peak`: memory at the most during a call, above what the inputs take. `saved`: see `saved_bytes`.
    """
    pair = row.work(setting)
    if not isinstance(pair, Pair):
        raise TypeError(f"{row.id} measures by itself")
    compute = getattr(pair, form)
    compute()  # libraries set themselves up in the first call
    with watch_peak(setting.device) as peak:
        compute()
    return {"peak": peak.added, "saved": saved_bytes(compute)}


def saved_bytes(compute: Compute) -> int:
    """Return the most bytes of distinct storages that graphs hold for backward passes at one time during a call.

    >>> x = torch.ones(1000, requires_grad=True)
    >>> saved_bytes(lambda: x.exp().sum().backward())
    4000
    """
    counter = _SavedBytes()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Saved(tensor, counter), lambda saved: saved.tensor):
        result = compute()
    del result
    return counter.peak


class _SavedBytes:
    """Counts a storage when its first holder comes, and forgets it when the last one goes."""

    def __init__(self) -> None:
        self.live = self.peak = 0
        self.holders: dict[int, int] = {}


class _Saved:
    """A saved tensor; the graph lets go of it when it is done."""

    def __init__(self, tensor: Tensor, counter: _SavedBytes) -> None:
        storage = tensor.untyped_storage()
        self.tensor, self.counter = tensor.detach(), counter
        self.key, self.bytes = storage.data_ptr(), storage.nbytes()
        if not counter.holders.get(self.key):
            counter.live += self.bytes
            counter.peak = max(counter.peak, counter.live)
        counter.holders[self.key] = counter.holders.get(self.key, 0) + 1

    def __del__(self) -> None:
        self.counter.holders[self.key] -= 1
        if not self.counter.holders[self.key]:
            self.counter.live -= self.bytes


def _launches(pair: Pair) -> list[Measure]:
    """Count the kernels of one fast call, and how often the host waits for the device in it."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        pair.fast()
        torch.cuda.synchronize()
    kernels = sum(event.count for event in profiler.key_averages())
    with _sync_warnings() as caught:
        pair.fast()
    syncs = sum("synchroniz" in str(warning.message) for warning in caught)
    return [Measure("launches", float(kernels), unit=""), Measure("syncs", float(syncs), unit="")]


@contextlib.contextmanager
def _sync_warnings() -> Iterator[list[warnings.WarningMessage]]:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield caught
    finally:
        torch.cuda.set_sync_debug_mode("default")


def close(*, atol: float, rtol: float = 0.0) -> Callable[[Any, Any], str]:
    """Compare tensors, or tuples of them, with a tolerance.

    >>> close(atol=0.1)(torch.ones(2), torch.tensor([1.0, 1.05]))
    'largest difference 5e-02'
    """

    def agree(plain: Any, fast: Any) -> str:
        worst = 0.0
        for expected, found in zip(_tensors(plain), _tensors(fast), strict=True):
            if expected.shape != found.shape:
                raise Disagreement(f"shapes differ: {tuple(expected.shape)} and {tuple(found.shape)}")
            apart = (expected.double() - found.double()).abs()
            if not bool((apart <= atol + rtol * expected.double().abs()).all()):
                raise Disagreement(f"largest difference {apart.max().item():.1e}, allowed {atol:g} + {rtol:g} |x|")
            worst = max(worst, apart.max().item() if apart.numel() else 0.0)
        return f"largest difference {worst:.0e}"

    return agree


def equal_but(share: float) -> Callable[[Any, Any], str]:
    """Compare class maps, which may differ in a small share of the pixels (ties up to rounding)."""

    def agree(plain: Tensor, fast: Tensor) -> str:
        different = (plain.long() != fast.long()).double().mean().item()
        if different > share:
            raise Disagreement(f"{different:.1e} of the pixels differ, allowed {share:g}")
        return f"{different:.0e} of the pixels differ"

    return agree


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [tensor for part in result for tensor in _tensors(part)]
