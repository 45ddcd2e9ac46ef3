"""End a run at the first loss that is not finite: keep the last finite weights, say the likely cause and the cure."""

import math
from contextlib import nullcontext
from typing import Any

from halfmask.batch import Batch
from halfmask.errors import DivergenceError
from halfmask.run.folder import RunDir
from halfmask.run.loop.callbacks import save
from halfmask.run.loop.lightning_library import L
from halfmask.run.loop.module import LitMethod
from halfmask.run.loop.validation import CleanStatistics, Examiner

ALARM = "alarm/not_finite"  # in metrics.jsonl
_USUAL_RATES = {"adamw": 1e-2, "sgd": 1.0}
_SUGGESTED_RATES = {"adamw": 1e-3, "sgd": 1e-2}
_LARGE_WEIGHT = 1e4


class StopAtInfinity(L.Callback):
    """Ends a run at the first step that is not finite; comes before all other callbacks.

    Args:
        run: folder of the run.
        examiner: writes the bundle, if none is there yet.
        cadences: steps between questions to a GPU: of logging and of validation.
        clean: statistics of batch norm to ship with; `None`: those of the training.
    """

    def __init__(
        self, run: RunDir, examiner: Examiner, cadences: tuple[int, ...], clean: CleanStatistics | None = None
    ) -> None:
        self.run, self.examiner, self.cadences, self.clean = run, examiner, cadences, clean

    def on_train_batch_end(
        self, trainer: L.Trainer, module: LitMethod, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Ask when due. Raises DivergenceError: a step was not finite."""
        due = any(module.step % every == 0 for every in self.cadences) or module.step == module.total_steps
        if module.device.type != "cpu" and not due:
            return
        found = module.guard.bad_step()  # the same in all processes
        if found is not None:
            self._stop(trainer, module, found)
        if due:
            module.guard.keep_buffers()

    def _stop(self, trainer: L.Trainer, module: LitMethod, step: int) -> None:
        cause = explain(module, str(trainer.precision))
        module.guard.restore_buffers()
        module.step = step
        kept = ""
        if module.guard.weights_are_finite():
            save(trainer, module, self.run)
            kept = f" The weights of step {step} are kept in {self.run.last}"
            if not module.best:
                self._ship(trainer, module)
                kept += f" and {self.run.path / 'model.safetensors'}"
            else:
                kept += f", the best ones in {self.run.path / 'model.safetensors'}"
            kept += "."
        if trainer.is_global_zero:
            self.run.append_metrics({"step": step + 1, "epoch": round(module.progress.epoch, 4), ALARM: 1.0})
            self.run.flush_records()
        raise DivergenceError(
            f"the loss or its gradient is not finite in step {step + 1} of {module.total_steps}. {cause}{kept}"
        )

    def _ship(self, trainer: L.Trainer, module: LitMethod) -> None:
        used = self.clean is not None and self.clean.used
        clean = self.clean.swapped_in(module, trainer.global_rank, trainer.world_size) if self.clean and used else None
        with clean or nullcontext():
            if trainer.is_global_zero:
                self.examiner.ship(module, self.run.path, None, {})


def explain(module: LitMethod, precision: str) -> str:
    """Say what the likely cause is, and what mends it."""
    optim, rate = module.optim, module.lr
    largest = max((float(p.detach().abs().max()) for p in module.method.parameters() if p.numel()), default=0.0)
    if rate > _USUAL_RATES[optim.name] or not largest < _LARGE_WEIGHT:
        lower = min(rate / 10, _SUGGESTED_RATES[optim.name])
        return (
            f"Likely the learning rate is too high: optim.lr={optim.lr:g} with {optim.name}, and the largest weight "
            f"is now {largest:.3g}. Train anew with optim.lr={lower:.1g}, perhaps also optim.clip_norm=1."
        )
    exact = " or run.precision=32-true" if not math.isnan(largest) and "32" not in precision else ""
    return (
        f"Likely a step was too large (a rare image, a class of few pixels, or the start of training). Train anew with "
        f"optim.clip_norm=1, optim.lr={rate / 10:.1g}, optim.warmup_steps={max(10, module.total_steps // 20)}{exact}."
    )
