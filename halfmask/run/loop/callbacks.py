"""Work around the steps: metrics, validation, checkpoints, signals and progress.

A run may die at any moment, also between two writes. A resumed one then does again what came before `last.ckpt` was
written (records, bundle) and makes up for what comes after it (`best-*.ckpt`): see `save`.

Ctrl-C and SIGTERM while a run trains: the first asks it to stop after the step, a second Ctrl-C stops it at once.
Lightning would turn Ctrl-C into exit code 1, and a SIGTERM at the wrong moment into success. So both signals are ours
from before the trainer starts until it has returned.
"""

import math
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from types import FrameType
from typing import Any, ClassVar

import torch

from halfmask.batch import Batch
from halfmask.errors import DataError
from halfmask.run.folder import RunDir
from halfmask.run.loop import shipping
from halfmask.run.loop.lightning_library import L
from halfmask.run.loop.module import LitMethod
from halfmask.run.loop.progress import ProgressLine
from halfmask.run.loop.validation import CleanStatistics, Examination, Examiner
from halfmask.task import Task
from halfmask.teaching.pseudo_label import confidence_range

_SAVE_SECONDS = 300.0
_COLLAPSE_SHARE, _COLLAPSE_LOGS = 0.98, 5
_SILENT_STEPS = 500  # without a single pseudo-label above the threshold, before a warning


class MetricsLog(L.Callback):
    """Reads the device-side sums every `every` steps; writes metrics.jsonl, loggers and the progress line.

    With `advises` it warns of pseudo-labels that go wrong, which is no help in a run that learns nothing from them.
    """

    def __init__(self, run: RunDir, task: Task, progress: ProgressLine, every: int, *, advises: bool = True) -> None:
        self.run, self.task, self.line, self.every, self.advises = run, task, progress, every, advises
        self._images, self._since, self._one_class = 0, time.monotonic(), 0
        self._logged, self._silent, self._warned = 0, 0, False
        self._empty_since: int | None = None  # step at which the method's memory was first seen empty

    def on_train_start(self, trainer: L.Trainer, module: LitMethod) -> None:
        """Start the clock and the progress line."""
        self._images, self._since, self._logged = 0, time.monotonic(), module.step
        if trainer.is_global_zero:
            self.line.start(module.step, module.total_steps)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: LitMethod, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count images; write a record at the logging cadence."""
        streams = [batch.labeled, batch.unlabeled, batch.partner]
        self._images += sum(len(samples.image) for samples in streams if samples is not None) * trainer.world_size
        if module.step % self.every and module.step != module.total_steps:
            if trainer.is_global_zero:
                self.line.advance(module.step)
            return
        values = self._values(trainer, module)
        self._check_memory(values, module.step)
        if not trainer.is_global_zero:
            return
        seconds = time.monotonic() - self._since
        values |= {"train/img_per_s": self._images / max(seconds, 1e-9), "train/lr": _rate(module)}
        if module.device.type == "cuda":
            values["sys/mem_gb"] = torch.cuda.max_memory_allocated() / 2**30
        self._images, self._since = 0, time.monotonic()
        self.record(trainer, module, values)
        self.line.show(module.step, values)
        if self.advises:
            self._watch_collapse(values)
            self._watch_coverage(values, module.step)

    def on_train_end(self, trainer: L.Trainer, module: LitMethod) -> None:
        """Close the progress line."""
        if trainer.is_global_zero:
            self.line.stop()

    def on_exception(self, trainer: L.Trainer, module: LitMethod, exception: BaseException) -> None:
        """Release the terminal before an error is printed."""
        self.line.stop()

    def record(self, trainer: L.Trainer, module: LitMethod, values: dict[str, float]) -> None:
        """Write one record to metrics.jsonl and the loggers; a class that occurs nowhere has no value."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self.run.append_metrics({"step": module.step, "epoch": round(module.progress.epoch, 4), **finite})
        for logger in trainer.loggers:
            logger.log_metrics(finite, step=module.step)

    def pause_clock(self) -> Callable[[], None]:
        """Stop the clock of images/s until the returned function is called."""
        before = time.monotonic()

        def resume() -> None:
            self._since += time.monotonic() - before

        return resume

    def _values(self, trainer: L.Trainer, module: LitMethod) -> dict[str, float]:
        values: dict[str, float] = {}
        reduce = partial(trainer.strategy.reduce, reduce_op="sum") if trainer.world_size > 1 else None
        for name, numbers in module.log_sums.read(reduce).items():
            full = name if "/" in name else f"train/{name}"
            # A step cannot log a number and a vector under one key; in the record they are one family.
            family = full.removesuffix("_by_class")
            names = [full] if len(numbers) == 1 else [f"{family}/{label}" for label in self.task.classes]
            values |= dict(zip(names, numbers, strict=True))
        return values

    def _check_memory(self, values: dict[str, float], step: int) -> None:
        """End a run whose method remembers features of no class at all; every process sees the same values.

        Raises:
            DataError: for long.
        """
        filled = [value for name, value in values.items() if name.startswith("memory/filled/")]
        if not filled or max(filled) > 0:
            self._empty_since = None
            return
        self._empty_since = step if self._empty_since is None else self._empty_since
        if step - self._empty_since >= _SILENT_STEPS:
            raise DataError(
                f"no class has entered the memory of the method for {step - self._empty_since} steps: no pixel is ever "
                "chosen, and nothing is learned from it. See its parameters (halfmask list methods NAME): lower a "
                "threshold, or give it more masks, or a pretrained encoder (model.encoder.weights).",
                "H606",
            )

    def _watch_collapse(self, values: dict[str, float]) -> None:
        shares = {name: value for name, value in values.items() if name.startswith("pseudo/share/")}
        top = max(shares, key=lambda name: shares[name], default="")
        self._one_class = self._one_class + 1 if top and shares[top] > _COLLAPSE_SHARE else 0
        if self._one_class == _COLLAPSE_LOGS:
            self.line.say(
                f"warning: {shares[top]:.0%} of the pseudo-labels are now {top.rpartition('/')[2]!r}; training may "
                "have collapsed to one class. A lower method.unlabeled_weight may help, or, with hard labels, a "
                "higher method.threshold."
            )

    def _watch_coverage(self, values: dict[str, float], step: int) -> None:
        """Warn once where no pseudo-label has passed for long: the unlabeled images teach nothing."""
        passed = values.get("pseudo/coverage", 1.0) > 0
        self._silent = 0 if passed else self._silent + step - self._logged
        self._logged = step
        if self._silent < _SILENT_STEPS or self._warned:
            return
        self._warned = True
        ranges = [(confidence_range(name), share) for name, share in values.items()]
        shares = ", ".join(f"{inside}: {share:.1%}" for inside, share in ranges if inside)
        self.line.say(
            f"warning: no pseudo-label has passed method.threshold for {self._silent} steps, so the unlabeled images "
            f"teach nothing. {f'Pixels by confidence: {shares}. ' if shares else ''}Use a lower method.threshold, a "
            "pretrained encoder (model.encoder.weights), or more masks."
        )


def save(trainer: L.Trainer, module: LitMethod, run: RunDir) -> None:
    """Write `last.ckpt`, and copy it for each predictor whose best score is the one of this step."""
    if trainer.is_global_zero:
        run.flush_records()  # the records up to this step must not be lost where its checkpoint is kept
    trainer.save_checkpoint(run.last)
    if trainer.is_global_zero:
        run.copy_best(module.best_steps, module.step)


class Validation(L.Callback):
    """Scores every predictor at a cadence, notes the best step of each, and ships one.

    Args:
        run: where the bundle is written.
        metrics: takes the scores.
        examiner: scores and ships.
        every: steps between two validations.
        clean: statistics of batch norm to validate with; `None`: those of the training.
        rule: `eval.ship`.
    """

    def __init__(
        self,
        run: RunDir,
        metrics: MetricsLog,
        examiner: Examiner,
        every: int,
        clean: CleanStatistics | None = None,
        rule: shipping.Rule = "first",
    ) -> None:
        self.run, self.metrics, self.examiner, self.every = run, metrics, examiner, every
        self.clean, self.rule = clean, rule
        self.last: dict[str, float] = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, module: LitMethod, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Evaluate, record, write the bundle; `Checkpoints` saves the same step."""
        if module.step % self.every == 0 or module.step == module.total_steps:
            self._validate(trainer, module)

    def on_train_start(self, trainer: L.Trainer, module: LitMethod) -> None:
        """Make up for a validation that the run stopped in."""
        if module.step % self.every == 0 and module.validated < module.step:
            self._validate(trainer, module)
            save(trainer, module, self.run)

    def _validate(self, trainer: L.Trainer, module: LitMethod) -> None:
        ends = module.step == module.total_steps
        with module.average.swapped_in(module.method) if ends and module.average is not None else nullcontext():
            self._examine(trainer, module, ends=ends)

    def _examine(self, trainer: L.Trainer, module: LitMethod, *, ends: bool) -> None:
        if ends and self.clean is not None:
            shares = self.clean.agreement(module, trainer.global_rank, trainer.world_size)
            if trainer.is_global_zero and (text := shipping.doubtful_statistics(shares, module.meta["recipe"])):
                self.metrics.line.say(text)
        if self.clean is None or not self.clean.used or not (self.examiner.images or ends):
            self._score(trainer, module)
            return
        resume_clock = self.metrics.pause_clock()
        with self.clean.swapped_in(module, trainer.global_rank, trainer.world_size):
            self._score(trainer, module)
        resume_clock()

    def _score(self, trainer: L.Trainer, module: LitMethod) -> None:
        if not self.examiner.images:
            module.method.after_evaluation({}, module.progress)
            module.validated = module.step
            if module.step == module.total_steps and trainer.is_global_zero:
                self.examiner.ship(module, self.run.path, None, {})
                if module.average is not None:
                    name = next(iter(module.method.predictors()))
                    last = shipping.describe_last(name, 0, module.average.span_of(name))
                    self.metrics.line.keep(f"ship     {last}")
            return
        resume_clock = self.metrics.pause_clock()
        images, metric = self.examiner.images, self.examiner.main_metric
        found = self.examiner.examine(module, trainer.global_rank, trainer.world_size)
        shipped = shipping.choose(self.rule, found, module.best, images)
        own = f"{shipped.name}/"
        values = found.values | {
            key.removeprefix(own): value for key, value in found.values.items() if key.startswith(own)
        }
        for name, score in found.main.items():
            if shipped.last or name not in module.best or score > module.best[name]:
                module.best[name], module.best_steps[name] = score, module.step
        if shipped.now and trainer.is_global_zero:
            self.examiner.ship(module, self.run.path, shipped.name, {f"val_{metric}": found.main[shipped.name]})
        module.method.after_evaluation(values, module.progress)
        module.validated = module.step
        self.last = values
        if trainer.is_global_zero:
            self.metrics.record(trainer, module, values)
            self.metrics.line.validated(module.step, values, metric)
            if module.step == module.total_steps:
                self._conclude(shipped, found, module)
        resume_clock()

    def _conclude(self, shipped: shipping.Shipment, found: Examination, module: LitMethod) -> None:
        """Say what is shipped, where that needs a word, and whether a network has learned nothing."""
        best, span = module.best, 0 if module.average is None else module.average.span_of(shipped.name)
        text = shipping.describe(self.rule, shipped, found, best, self.examiner.images, span)
        if shipped.last:
            self.metrics.line.keep(text)  # the command's last line says it
        elif text:
            self.metrics.line.tell(text)
        if found.one_class:
            self.metrics.line.say(shipping.warn(found.one_class))


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether a run was asked to stop, and by what.

    Args:
        quiet: do not say that the wish was heard.

    Attributes:
        signal: that asked; on another rank, SIGTERM stands for it.
    """

    codes: ClassVar[dict[signal.Signals, int]] = {number: 128 + number for number in SIGNALS}  # as shells count

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.signal: signal.Signals | None = None
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        """Take the signals over."""
        self.hold()
        return self

    def __exit__(self, *failure: object) -> None:
        """Restore the signal handlers of before."""
        for number, former in self._former.items():
            signal.signal(number, former)
        self._former = {}

    def hold(self) -> None:
        """Take the signals over, again if a library took them meanwhile; only possible in the main thread."""
        for number in SIGNALS:
            try:
                before = signal.signal(number, self._heard)
            except ValueError:
                return
            self._former.setdefault(number, before)

    @property
    def exit_code(self) -> int:
        """Exit code of the command line: 130 for Ctrl-C, 143 for SIGTERM."""
        return self.codes[self.signal or signal.SIGINT]

    def agree(self, trainer: L.Trainer) -> bool:
        """Tell whether any process was asked to stop; all of them have to call this at the same step."""
        asked = self.signal is not None
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(asked, all=False):
            self.signal = self.signal or signal.SIGTERM
        return self.signal is not None

    def _heard(self, number: int, frame: FrameType | None) -> None:
        again, self.signal = self.signal is not None, self.signal or signal.Signals(number)
        if again and number == signal.SIGINT:
            raise StopNow
        if not self.quiet and not again:
            cure = " Press Ctrl-C again to stop at once." if number == signal.SIGINT else ""
            print(f"stopping after this step, then saving.{cure}", file=sys.stderr, flush=True)


class Checkpoints(L.Callback):
    """Saves `last.ckpt` at the validation cadence, every few minutes, at the end, when asked to stop or out of data."""

    def __init__(self, run: RunDir, every: int, stop: StopRequest) -> None:
        self.run, self.every, self.stop = run, every, stop
        self._saved = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, module: LitMethod) -> None:
        """Start the clock; take back the signals that Lightning took over."""
        self._saved = time.monotonic()
        self.stop.hold()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: LitMethod, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Save when due."""
        # All ranks must stop at the same step; asking each step would cost a synchronization.
        asked = (trainer.world_size == 1 or module.step % 10 == 0) and self.stop.agree(trainer)
        timed = trainer.world_size == 1 and time.monotonic() - self._saved > _SAVE_SECONDS
        due = asked or timed or module.step % self.every == 0 or module.step == module.total_steps
        if due and module.guard.bad_step() is None:
            save(trainer, module, self.run)
            self._saved = time.monotonic()
        if asked:
            trainer.should_stop = True

    def on_exception(self, trainer: L.Trainer, module: LitMethod, exception: BaseException) -> None:
        """Save where a file cannot be read: the steps before are whole, and a resumed run validates what is missing."""
        unfinished = module.step < module.total_steps
        if isinstance(exception, DataError) and trainer.world_size == 1 and unfinished:
            save(trainer, module, self.run)


class KeepCheckpoints(L.Callback):
    """Saves the networks at evenly spaced steps, for `Stage.after`; the last of them is `last.ckpt`.

    Args:
        run: folder of the stage.
        count: how many, the last one included.
        total_steps: of the stage.
    """

    def __init__(self, run: RunDir, count: int, total_steps: int) -> None:
        self.run = run
        self.steps = {round(total_steps * part / count) for part in range(1, count)} - {0, total_steps}

    def on_train_batch_end(
        self, trainer: L.Trainer, module: LitMethod, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Save weights and buffers when due; before `last.ckpt` of the same step, so that no resumed run lacks one."""
        if module.step in self.steps:
            trainer.save_checkpoint(self.run.kept(module.step), weights_only=True)


def _rate(module: LitMethod) -> float:
    optimizers: Iterable[Any] = module.optimizer_by_key.values()
    return float(next(iter(optimizers)).param_groups[0]["lr"])


class StopNow(BaseException):
    """A second Ctrl-C: nothing is finished, nothing is saved."""
