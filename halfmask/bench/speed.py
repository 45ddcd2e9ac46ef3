"""Measure the training speed of a recipe: images per second, memory, and where a step waits.

A real run (trainer, precision, loader) in a folder that is thrown away:

    2 steps             not counted: libraries set themselves up, workers start
    `steps` steps       with the loader; peak memory
    3 steps             under `torch.profiler`, which slows a step down: only the shares of its parts are read
    `steps` steps       on the last batch again and again: what the step takes without loading

The parts of a step, in its order:

    load wait        until the loader returns the next batch
    host to device   copy of the bytes; floats, masks and targets made there
    forward          the method's step: pseudo-labels, views, losses
    backward         gradients
    optimizer        clipping and the step of the optimizers
    EMA              the method's work after the update: moving averages, queues
    metrics          sums of the logged values, and reading them
    other            the trainer between these
"""

import contextlib
import functools
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from halfmask.batch import Batch
from halfmask.data.loading.loader import HostBatch, TrainLoader
from halfmask.errors import RecipeError
from halfmask.recipe.read import Recipe
from halfmask.run.cost import watch_peak
from halfmask.run.loop.lightning_library import L
from halfmask.run.loop.module import LitMethod
from halfmask.run.loop.optim import base_rate
from halfmask.run.loop.trainer import make_trainer, prepare_networks
from halfmask.run.prepare import prepare
from halfmask.run.prepared import loader_maker

PHASES = ("load wait", "host to device", "forward", "backward", "optimizer", "EMA", "metrics")
WARM_UP = 2
PROFILED = 3
_LABEL = "halfmask: "  # before the name of a phase, so that no operator has the same name
_WAITING = 0.1  # share of the step from which on waiting for data is worth a hint
_OPERATORS = 5
# Step rates are compared with this share of the matmul rate: what well-tuned training reaches on one device.
GOOD_SHARE = 0.4


@dataclass(frozen=True)
class Speed:
    """What was measured about a recipe. Times are seconds per step."""

    device: str  # name of the GPU or CPU
    precision: str  # of the run
    workers: int | str  # of the loader
    steps: int  # steps that were timed with the loader, and as many without
    images: int  # per step, of all streams
    step: float  # with the loader
    wait: float  # part of `step` in which the trainer waits for the next batch
    without_loading: float  # on one batch again and again
    loader: float  # the loader alone, per batch
    memory: int  # bytes at the peak; on a CPU of the whole process
    # share of a profiled step by phase, on the host; on a GPU most of it is only the launching of work
    phases: dict[str, float]
    gpu_phases: dict[str, float] | None  # share of the GPU's work by phase, or `None`
    operators: dict[str, float]  # share of the device's work by operator of torch, the costliest only
    # operations per step over those the device could do in that time, or `None` if they were not counted
    matmul: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for `--json`, with the rates in images per second."""
        rates = {"with_loading": self.step, "without_loading": self.without_loading, "loader": self.loader}
        return asdict(self) | {"images_per_second": {name: self.images / seconds for name, seconds in rates.items()}}

    def table(self) -> str:
        """Write the rates, then one line per phase, then the costliest operators."""
        lines = [
            f"{self.device}, {self.precision}, {self.steps} steps of {self.images} images",
            f"{self.images / self.step:>10.1f} images/s with loading ({1e3 * self.step:.1f} ms per step)",
            f"{self.images / self.without_loading:>10.1f} images/s without loading",
            f"{self.images / self.loader:>10.1f} images/s by the loader alone, data.workers={self.workers}",
            f"{self.memory / 2**30:>10.2f} GiB at the peak",
            "",
            self._verdict(),
        ]
        if self.matmul is not None:
            lines.append(f"matrix products: {self.matmul:.0%} of what the device can do (good: {GOOD_SHARE:.0%})")
        gpu = self.gpu_phases
        lines += ["", f"{'phase':<16}{'share':>8}" + ("" if gpu is None else f"{'of the GPU':>14}")]
        for name, share in {**self.phases, "other": max(1 - sum(self.phases.values()), 0.0)}.items():
            lines.append(f"{name:<16}{share:>8.1%}" + ("" if gpu is None else f"{gpu.get(name, 0.0):>14.1%}"))
        lines += ["", "costliest operators"]
        lines += [f"{share:>8.1%}  {name}" for name, share in self.operators.items()]
        return "\n".join(lines)

    def _verdict(self) -> str:
        waits = self.wait / self.step
        if waits < _WAITING:
            return "the step does not wait for data"
        return f"{waits:.0%} of the step is waiting for data: more data.workers, or data.cache=memmap for PNG files"


def measure_recipe(recipe: Recipe, steps: int, trace: Path | None = None) -> Speed:
    """Train some steps by a recipe and time them.

    Args:
        recipe: any; its length does not matter, and nothing it writes is kept.
        steps: how many to time with the loader, and as many without.
        trace: file for the profiled steps, to be opened in a browser at ui.perfetto.dev.

    Raises:
        RecipeError: the recipe is for several processes. Every error of `prepare`.
    """
    if recipe.run.devices * recipe.run.nodes > 1:
        raise RecipeError("speed is measured in one process: set run.devices=1 run.nodes=1 and divide data.batch.")
    total = WARM_UP + steps + PROFILED + steps
    run = recipe.run.model_copy(update={"logger": "none", "steps": total, "epochs": None})
    recipe = recipe.model_copy(update={"run": run})
    with tempfile.TemporaryDirectory(prefix="halfmask-bench-") as folder:
        prepared = prepare(recipe)
        recipe = prepared.recipe
        make_loader = loader_maker(prepared, Path(folder))
        loader_seconds = _loader_alone(make_loader(0, WARM_UP + steps, 0, 1))
        module = LitMethod(
            prepared.method,
            recipe.optim,
            lr=base_rate(recipe.optim, recipe.data.batch.labeled),
            total_steps=total,
            steps_per_epoch=prepared.steps_per_epoch,
            seed=recipe.run.seed,
            make_loader=make_loader,
            meta={},
        )
        prepare_networks(prepared.method, recipe.run)
        watch = _Watch(steps, recipe.run.log_every)
        trainer = make_trainer(recipe.run, Path(folder), prepared.method, [watch])
        watch.attach(module, trainer.strategy.root_device)
        trainer.fit(module)
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        watch.profiler.export_chrome_trace(str(trace))
    return watch.speed(recipe, loader_seconds)


class _Watch(L.Callback):
    """Names the parts of a step for the profiler, and measures the stretches of the run."""

    def __init__(self, steps: int, log_every: int) -> None:
        self.steps, self.log_every = steps, log_every
        self.loaded = WARM_UP + steps + PROFILED  # later steps repeat the last batch
        self.images = self.flops = 0
        self.wait = 0.0
        self.ends: dict[int, float] = {}  # number of steps done -> time
        self._peak = contextlib.ExitStack()

    def attach(self, module: LitMethod, device: torch.device) -> None:
        """Wrap everything but the optimizers, which the trainer makes later."""
        self.device = device
        activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device.type == "cuda")]
        self.profiler = profile(activities=activities)
        make_loader, method, sums = module.make_loader, module.method, module.log_sums

        def watched_loader(start: int, stop: int, rank: int, world: int) -> DataLoader[HostBatch]:
            loader = make_loader(start, stop, rank, world)
            assert isinstance(loader, TrainLoader)
            loader._checked = functools.partial(  # type: ignore[method-assign]
                self._feed, loader.close, loader._checked
            )
            return loader

        module.make_loader = watched_loader
        module.transfer_batch_to_device = _phase(  # type: ignore[method-assign]
            "host to device", module.transfer_batch_to_device
        )
        method.updates = _phase_of_items("forward", method.updates)  # type: ignore[method-assign]
        module.manual_backward = _phase("backward", module.manual_backward)  # type: ignore[method-assign]
        module.clip_gradients = _phase("optimizer", module.clip_gradients)  # type: ignore[method-assign]
        method.after_update = _phase("EMA", method.after_update)  # type: ignore[method-assign]
        sums.add = _phase("metrics", sums.add)  # type: ignore[method-assign]
        sums.read = _phase("metrics", sums.read)  # type: ignore[method-assign]

    def _feed(
        self, close: Callable[[], None], checked: Callable[..., Iterator[HostBatch]], items: Iterator[HostBatch]
    ) -> Iterator[HostBatch]:
        """Return the loader's batches, timed; then close it and repeat the last one."""
        batches = _phase_of_items("load wait", checked)(items)
        for _ in range(self.loaded):
            began = time.perf_counter()
            batch = next(batches)
            self.wait += time.perf_counter() - began
            yield batch
        close()
        while True:
            yield batch

    def on_train_batch_start(  # type: ignore[override]  # only ever meets LitMethod
        self, trainer: L.Trainer, module: LitMethod, batch: Batch, batch_idx: int
    ) -> None:
        """Wrap the optimizers; count the operations of the first step."""
        if batch_idx == 0:
            for optimizer in module._wrapped.values():
                optimizer.step = _phase("optimizer", optimizer.step)  # type: ignore[method-assign]
            self._counter = flop_counter()
            self._counter.__enter__()

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, module: LitMethod, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Begin and end the stretches of the run."""
        if batch_idx == 0:
            self._counter.__exit__(None, None, None)
            self.flops = int(self._counter.get_total_flops())
            streams = (batch.labeled, batch.unlabeled, batch.partner)
            self.images = sum(len(samples.image) for samples in streams if samples is not None)
        if module.step % self.log_every == 0:
            module.log_sums.read()
        done = batch_idx + 1
        if done == WARM_UP:
            self.peak = self._peak.enter_context(watch_peak(self.device))
            self.wait = 0.0
            self._note(done)
        elif done == WARM_UP + self.steps:
            self._note(done)
            self._peak.close()
            self.waited = self.wait
            self.profiler.start()
            self.profiling = time.perf_counter()
        elif done == self.loaded:
            self._synchronize()
            self.profiling = time.perf_counter() - self.profiling
            self.profiler.stop()
        elif done == self.loaded + 1:  # the first without loading stops the workers
            self._note(done)
        elif done == module.total_steps:
            self._note(done)

    def speed(self, recipe: Recipe, loader_seconds: float) -> Speed:
        """Divide by the steps."""
        times = list(self.ends.values())
        step, alone = (times[1] - times[0]) / self.steps, (times[3] - times[2]) / (self.steps - 1)
        dtype = torch.bfloat16 if recipe.run.precision == "bf16-mixed" else torch.float32
        host, gpu, operators = read_profile(self.profiler.events(), self.profiling)
        return Speed(
            device=device_name(self.device),
            precision=recipe.run.precision,
            workers=recipe.data.workers,
            steps=self.steps,
            images=self.images,
            step=step,
            wait=self.waited / self.steps,
            without_loading=alone,
            loader=loader_seconds,
            memory=self.peak.most,
            phases=host,
            gpu_phases=gpu if self.device.type == "cuda" else None,
            operators=operators,
            matmul=self.flops / alone / matmul_rate(self.device, dtype) if self.flops else None,
        )

    def _note(self, done: int) -> None:
        self._synchronize()
        self.ends[done] = time.perf_counter()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def read_profile(events: Iterable[Any], seconds: float) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Sum up the events of `torch.profiler`, whose times are in microseconds, over seconds on the clock.

    Returns:
        By phase the share of the time on the host; by phase the share of the GPU's work; by operator the share of the
        work, on the GPU where there is one.
    """
    on_host = [event for event in events if event.device_type == DeviceType.CPU]
    phases = [event for event in on_host if event.name.startswith(_LABEL)]
    host = dict.fromkeys(PHASES, 0.0)
    for event in phases:
        host[event.name.removeprefix(_LABEL)] += event.time_range.elapsed_us() / 1e6 / seconds
    gpu: dict[str, float] = defaultdict(float)
    launched: dict[str, float] = defaultdict(float)
    computed: dict[str, float] = defaultdict(float)
    for event in on_host:
        if event.is_user_annotation:
            continue
        computed[event.name] += event.self_cpu_time_total
        if busy := sum(kernel.duration for kernel in event.kernels):
            # By the time of the launch: backward launches from a thread of its own, which knows no labels.
            start = event.time_range.start
            inside = (phase for phase in phases if phase.time_range.start <= start <= phase.time_range.end)
            gpu[next((phase.name.removeprefix(_LABEL) for phase in inside), "other")] += busy
            launched[event.name] += busy
    return host, _shares(gpu), dict(islice(_shares(launched or computed).items(), _OPERATORS))


def _shares(amounts: dict[str, float]) -> dict[str, float]:
    """Divide by the sum; largest first."""
    total = sum(amounts.values()) or 1.0
    return {name: amount / total for name, amount in sorted(amounts.items(), key=lambda item: -item[1])}


def _phase(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark the calls of a function for the profiler."""

    @functools.wraps(function)
    def named(*arguments: Any, **options: Any) -> Any:
        with record_function(_LABEL + name):
            return function(*arguments, **options)

    return named


def _phase_of_items(name: str, source: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
    """Mark the wait for each item of an iterator for the profiler; the time between items is not part of it."""

    def named(*arguments: Any, **options: Any) -> Iterator[Any]:
        items = iter(source(*arguments, **options))
        while True:
            with record_function(_LABEL + name):
                item = next(items, None)
            if item is None:
                return
            yield item

    return named


def _loader_alone(loader: DataLoader[HostBatch]) -> float:
    """Return seconds per batch when nothing else is done, after the warm-up."""
    batches, began = 0, time.perf_counter()
    for number, _ in enumerate(loader, start=1):
        if number == WARM_UP:
            began = time.perf_counter()
        batches = number
    return (time.perf_counter() - began) / max(batches - WARM_UP, 1)


@functools.cache
def matmul_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Return the operations per second of a large matrix product, measured once per process."""
    side = 4096 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side).to(device, dtype) for _ in range(2))  # not zeros: they multiply faster
    timer = Timer("a @ b", globals={"a": a, "b": b}, num_threads=torch.get_num_threads())
    return 2 * side**3 / min(timer.blocked_autorange(min_run_time=0.3).times)


def flop_counter() -> FlopCounterMode:
    """Build a counter of the operations of products and convolutions, with the right number for grouped ones.

    torch's own counts the gradient of a depthwise convolution's weights as if it were a dense one.
    """
    own = {torch.ops.aten.convolution_backward: _gradient_flops}
    return FlopCounterMode(display=False, custom_mapping=own)


def _gradient_flops(grad: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any) -> int:
    """Count the gradients of a convolution by shapes: each of image and weights takes as many as the convolution."""
    _, _, _, _, transposed, _, _, wanted = rest  # the arguments of `aten.convolution_backward`
    return int(wanted[0] + wanted[1]) * int(conv_flop_count(list(x), list(weight), list(grad), transposed=transposed))


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or the CPU's instruction set and number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.backends.cpu.get_cpu_capability()} CPU, {os.cpu_count()} cores"
