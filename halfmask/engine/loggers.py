"""Loggers beside metrics.jsonl, by name."""

from pathlib import Path
from typing import Any

from halfmask.errors import HalfmaskError, MissingExtraError


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
        raise _NotInstalled(name) from error


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


class _NotInstalled(MissingExtraError):
    def __init__(self, name: str) -> None:
        HalfmaskError.__init__(self, f"run.logger={name} needs its package: pip install {name}; or run.logger=none.")
