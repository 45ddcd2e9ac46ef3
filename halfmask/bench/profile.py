"""Where a training step of a recipe spends its time: `halfmask bench --profile`.

The run is a real one (trainer, precision, loader), in a folder that is thrown away; its parts are timed from outside.

    load wait        until the loader hands over the next batch
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
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from halfmask.batch import Batch
from halfmask.bench.ceilings import GOOD_SHARE, matmul_rate
from halfmask.data.loading.loader import HostBatch, TrainLoader
from halfmask.errors import RecipeError
from halfmask.forms import plain_forms
from halfmask.recipe.read import Recipe
from halfmask.run.module import LitMethod
from halfmask.run.optim import base_rate
from halfmask.run.prepare import prepare
from halfmask.run.prepared import loader_maker
from halfmask.run.trainer import make_trainer, prepare_networks, with_precision

PHASES = ("load wait", "host to device", "forward", "backward", "optimizer", "EMA", "metrics")
_WARM_UP = 2  # steps that are not counted: libraries set themselves up, workers start
_WAITING = 0.1  # share of the step from which on waiting for data is worth a hint


class PhaseClock:
    """Adds up the time of named phases: on the host, and on a GPU between events."""

    def __init__(self, device: torch.device) -> None:
        self.gpu = device.type == "cuda"
        self.reset()

    def reset(self) -> None:
        """Forget what was timed."""
        self.host: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._events: dict[str, list[tuple[Any, Any]]] = {name: [] for name in PHASES}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a block."""
        began = time.perf_counter()
        first = self._event()
        yield
        if first is not None:
            self._events[name].append((first, self._event()))
        self.host[name] += time.perf_counter() - began

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is timed whenever it is called."""

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.phase(name):
                return function(*arguments, **options)

        return timed

    def items(self, name: str, source: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
        """Return an iterator maker whose waiting for the next item is timed."""

        def timed(*arguments: Any, **options: Any) -> Iterator[Any]:
            items = iter(source(*arguments, **options))
            while True:
                with self.phase(name):
                    item = next(items, None)
                if item is None:
                    return
                yield item

        return timed

    def on_device(self) -> dict[str, float] | None:
        """Return seconds per phase on the GPU; waits for it."""
        if not self.gpu:
            return None
        torch.cuda.synchronize()
        return {
            name: sum(first.elapsed_time(last) for first, last in pairs) / 1000 for name, pairs in self._events.items()
        }

    def _event(self) -> Any:
        if not self.gpu:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass(frozen=True)
class Profile:
    """Seconds per step, and what the loader gives by itself.

    Args:
        steps: steps that were counted.
        images: per step, of all streams.
        device: where.
        precision: of the run.
        step: seconds per step on the wall.
        host: seconds per step and phase on the host; on a GPU most of it is only the launching of work.
        gpu: seconds per step and phase on the GPU, or `None`.
        loader: seconds per batch of the loader alone.
        workers: of the loader.
        matmul: operations per step over those the device could do in that time, or `None` if they were not counted.
    """

    steps: int
    images: int
    device: str
    precision: str
    step: float
    host: dict[str, float]
    gpu: dict[str, float] | None
    loader: float
    workers: int | str
    matmul: float | None = field(default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        return asdict(self)

    def table(self) -> str:
        """Write one line per phase, then who waits for whom."""
        gpu = self.gpu
        lines = [f"{'phase':<16}{'ms / step':>12}{'share':>8}" + ("" if gpu is None else f"{'on the GPU, ms':>18}")]
        for name, seconds in self.host.items():
            line = f"{name:<16}{1e3 * seconds:>12.2f}{seconds / self.step:>8.0%}"
            lines.append(line + ("" if gpu is None else f"{1e3 * gpu[name]:>18.2f}"))
        rest = max(self.step - sum(self.host.values()), 0.0)
        lines.append(f"{'other':<16}{1e3 * rest:>12.2f}{rest / self.step:>8.0%}")
        lines.append(f"{'step':<16}{1e3 * self.step:>12.2f}{1:>8.0%}   {self.images / self.step:.1f} images/s")
        lines.append("")
        lines.append(f"{self.device}, {self.precision}, {self.steps} steps of {self.images} images")
        lines.append(
            f"loader alone: {self.images / self.loader:.1f} images/s with data.workers={self.workers}; "
            f"{self._who_waits()}"
        )
        if self.matmul is not None:
            lines.append(f"matrix products: {self.matmul:.0%} of what the device can do (good: {GOOD_SHARE:.0%})")
        return "\n".join(lines)

    def _who_waits(self) -> str:
        waits = self.host["load wait"] / self.step
        if waits < _WAITING:
            return "the step does not wait for data"
        return f"{waits:.0%} of the step is waiting for data: more data.workers, or data.cache=memmap for PNG files"


def profile_recipe(recipe: Recipe, steps: int = 20) -> Profile:
    """Train some steps by a recipe and time their parts.

    Args:
        recipe: any; its length does not matter, and nothing it writes is kept.
        steps: how many to count, after two more that are not.

    Raises:
        RecipeError: the recipe is for several processes. Every error of `prepare`.
    """
    if recipe.run.devices * recipe.run.nodes > 1:
        raise RecipeError("a profile is taken in one process: set run.devices=1 run.nodes=1 and divide data.batch.")
    total = steps + _WARM_UP
    run = recipe.run.model_copy(update={"logger": "none", "steps": total, "epochs": None})
    recipe = with_precision(recipe.model_copy(update={"run": run}))
    with plain_forms(run.reference), tempfile.TemporaryDirectory(prefix="halfmask-profile-") as folder:
        prepared = prepare(recipe)
        make_loader = loader_maker(prepared, Path(folder))
        loader_seconds = _loader_alone(make_loader(0, total, 0, 1))
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
        watch = _Watch(recipe.run.log_every)
        trainer = make_trainer(recipe.run, Path(folder), prepared.method, [watch])
        watch.attach(module, trainer.strategy.root_device)
        trainer.fit(module)
    return watch.profile(recipe, steps, loader_seconds)


class _Watch(L.Callback):
    """Wraps the parts of a step with a clock, and starts counting after the warm-up."""

    def __init__(self, log_every: int) -> None:
        self.log_every = log_every
        self.images = self.flops = 0
        self._began = self._ended = 0.0

    def attach(self, module: LitMethod, device: torch.device) -> None:
        """Wrap everything but the optimizers, which the trainer makes later."""
        self.clock = clock = PhaseClock(device)
        self.device = device
        make_loader, method = module.make_loader, module.method

        def timed_loader(start: int, stop: int, rank: int, world: int) -> DataLoader[HostBatch]:
            loader = make_loader(start, stop, rank, world)
            assert isinstance(loader, TrainLoader)
            loader._checked = clock.items("load wait", loader._checked)  # type: ignore[method-assign]
            return loader

        module.make_loader = timed_loader
        module.transfer_batch_to_device = clock.timed(  # type: ignore[method-assign]
            "host to device", module.transfer_batch_to_device
        )
        method.updates = clock.items("forward", method.updates)  # type: ignore[method-assign]
        module.manual_backward = clock.timed("backward", module.manual_backward)  # type: ignore[method-assign]
        module.clip_gradients = clock.timed("optimizer", module.clip_gradients)  # type: ignore[method-assign]
        method.after_update = clock.timed("EMA", method.after_update)  # type: ignore[method-assign]
        module.log_sums.add = clock.timed("metrics", module.log_sums.add)  # type: ignore[method-assign]
        module.log_sums.read = clock.timed("metrics", module.log_sums.read)  # type: ignore[method-assign]

    def on_train_batch_start(  # type: ignore[override]  # only ever meets LitMethod
        self, trainer: L.Trainer, module: LitMethod, batch: Batch, batch_idx: int
    ) -> None:
        """Wrap the optimizers; count the operations of the first step."""
        if batch_idx == 0:
            for optimizer in module._wrapped.values():
                optimizer.step = self.clock.timed("optimizer", optimizer.step)  # type: ignore[method-assign]
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, module: LitMethod, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Start the clock after the warm-up, stop it after the last step."""
        if batch_idx == 0:
            self._counter.__exit__(None, None, None)
            self.flops = int(self._counter.get_total_flops())
        streams = (batch.labeled, batch.unlabeled, batch.partner)
        self.images = sum(len(samples.image) for samples in streams if samples is not None)
        if module.step % self.log_every == 0:
            module.log_sums.read()
        if batch_idx + 1 == _WARM_UP:
            self._synchronize()
            self.clock.reset()
            self._began = time.perf_counter()
        if module.step == module.total_steps:
            self._synchronize()
            self._ended = time.perf_counter()

    def profile(self, recipe: Recipe, steps: int, loader_seconds: float) -> Profile:
        """Divide by the steps."""
        gpu, step = self.clock.on_device(), (self._ended - self._began) / steps
        dtype = torch.bfloat16 if recipe.run.precision == "bf16-mixed" else torch.float32
        return Profile(
            steps,
            self.images,
            torch.cuda.get_device_name(self.device) if self.clock.gpu else str(self.device),
            recipe.run.precision,
            step,
            {name: seconds / steps for name, seconds in self.clock.host.items()},
            None if gpu is None else {name: seconds / steps for name, seconds in gpu.items()},
            loader_seconds,
            recipe.data.workers,
            self.flops / step / matmul_rate(self.device, dtype) if self.flops else None,
        )

    def _synchronize(self) -> None:
        if self.clock.gpu:
            torch.cuda.synchronize(self.device)


def _loader_alone(loader: DataLoader[HostBatch]) -> float:
    """Return seconds per batch when nothing else is done, after the warm-up."""
    batches, began = 0, time.perf_counter()
    for number, _ in enumerate(loader, start=1):
        if number == _WARM_UP:
            began = time.perf_counter()
        batches = number
    return (time.perf_counter() - began) / max(batches - _WARM_UP, 1)
