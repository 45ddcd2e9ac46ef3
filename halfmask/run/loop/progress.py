"""Show the progress of a training run, as a bar or as lines, and make the loggers beside metrics.jsonl."""

import importlib.util
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from halfmask.errors import MissingExtraError
from halfmask.progress import Bars
from halfmask.task import METRIC_NAMES


class ProgressLine:
    """Shows steps, losses and validations of a training run on stderr: stdout carries results.

    Args:
        quiet: write nothing but warnings.
        stream: where to write; stderr when `None`.
    """

    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.quiet = quiet
        self.log: Path | None = None  # every line also goes here, with the time
        self.console = Console(file=stream or sys.stderr, highlight=False)
        self._bars: Bars | None = None
        self._total, self._began, self._first = 0, 0.0, 0

    def start(self, step: int, total: int) -> None:
        """Begin at `step` of `total`."""
        self._total, self._began, self._first = total, time.monotonic(), step
        if self.quiet or not self.console.is_terminal:
            return
        self._bars = Bars(console=self.console, keep=True)
        self.advance(step)

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self._bars is not None:
            self._bars.show("step", step, self._total)

    def show(self, step: int, values: dict[str, float]) -> None:
        """Show loss, coverage and speed."""
        text = describe(values)
        self.keep(f"step {step}/{self._total}  {text}")
        if self._bars is not None:
            self._bars.show("step", step, self._total, text)
        elif not self.quiet:
            pace = (time.monotonic() - self._began) / max(step - self._first, 1)
            self._print(f"step {step}/{self._total}  {text}  eta {_clock(pace * (self._total - step))}")

    def validated(self, step: int, values: dict[str, float], metric: str = "miou") -> None:
        """Print the validation score of every predictor."""
        end = f"/val/{metric}"
        scores = [f"{name.removesuffix(end)} {value:.1%}" for name, value in values.items() if name.endswith(end)]
        text = f"step {step}/{self._total}  validation {METRIC_NAMES[metric]}: {', '.join(scores)}"
        self.keep(text)
        if not self.quiet:
            self._print(text)

    def tell(self, text: str) -> None:
        """Print a line above the bar unless quiet; the log file has it in any case."""
        self.keep(text)
        if not self.quiet:
            self._print(text)

    def say(self, text: str) -> None:
        """Print a line above the bar, also when quiet."""
        self.keep(text)
        self._print(text)

    def _print(self, text: str) -> None:
        # Names of files and classes may hold brackets, which are no markup; a log file needs no wrapping.
        self.console.print(text, markup=False, soft_wrap=True)

    def keep(self, text: str) -> None:
        """Write a line to the log file only."""
        if self.log is not None:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now().isoformat(timespec='seconds')}  {text}\n")

    def stop(self) -> None:
        """Remove the bar, which leaves the terminal as it was."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def describe(values: dict[str, float]) -> str:
    """Write the main values of a record in one line.

    >>> describe({"train/loss": 0.41, "train/loss_sup": 0.22, "train/loss_unsup": 0.19, "pseudo/coverage": 0.63})
    'loss 0.410 (sup 0.220 unsup 0.190)  pseudo-label coverage 63%'
    """
    parts = [f"loss {values.get('train/loss', float('nan')):.3f}"]
    terms = [
        f"{name.removeprefix('train/loss_')} {value:.3f}"
        for name, value in values.items()
        if name.startswith("train/loss_")
    ]
    if len(terms) > 1:
        parts[0] += f" ({' '.join(terms)})"
    if "pseudo/coverage" in values:
        parts.append(f"pseudo-label coverage {values['pseudo/coverage']:.0%}")
    if "train/img_per_s" in values:
        parts.append(f"{values['train/img_per_s']:.1f} images/s")
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def require_logger(name: str) -> None:
    """Check that a logger's package is installed, before anything else of a run. Raises MissingExtraError."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise _not_installed(name)


def make_logger(name: str, out: Path) -> Any:
    """Make a Lightning logger: tensorboard in `<run>/tb`, or wandb, mlflow, trackio where installed.

    Raises:
        MissingExtraError: the package is not installed.
    """
    if name == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(out, name="", version="tb")
    try:
        if name == "wandb":
            from lightning.pytorch.loggers import WandbLogger

            return WandbLogger(project="halfmask", name=out.name, save_dir=out)
        if name == "mlflow":
            from lightning.pytorch.loggers import MLFlowLogger

            return MLFlowLogger(experiment_name="halfmask", run_name=out.name)
        return _trackio(out)
    except ModuleNotFoundError as error:
        raise _not_installed(name) from error


def _trackio(out: Path) -> Any:
    import trackio  # type: ignore[import-not-found,unused-ignore]
    from lightning.pytorch.loggers.logger import DummyLogger

    class TrackioLogger(DummyLogger):
        """Sends metrics to trackio; it keeps them on this machine."""

        def __init__(self) -> None:
            super().__init__()
            trackio.init(project="halfmask", name=out.name)

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            trackio.log(metrics, step=step)

        def finalize(self, status: str) -> None:
            trackio.finish()

    return TrackioLogger()


def _not_installed(name: str) -> MissingExtraError:
    return MissingExtraError(f"run.logger={name}", "", f"pip install {name}; or choose run.logger=none")
