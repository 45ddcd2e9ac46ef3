"""Loggers beside metrics.jsonl, by name."""

import importlib.util
from pathlib import Path
from typing import Any

from halfmask.errors import MissingExtraError


def require(name: str) -> None:
    """Check that a logger's package is there, before anything else of a run.

    Raises:
        MissingExtraError: the package is not installed.
    """
    if name != "none" and importlib.util.find_spec(name) is None:
        raise _not_installed(name)


def make(name: str, out: Path) -> Any:
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
