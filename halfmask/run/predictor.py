"""Bundles of networks that a run did not ship: by the name of a predictor, or by a checkpoint.

    halfmask evaluate RUN --predictor student
    halfmask predict RUN/checkpoints/best-student.ckpt --input photos --out masks

They are written on first use, to RUN/predictors/NAME, and are used like any other bundle.
"""

from pathlib import Path

from halfmask.errors import CheckpointError, RecipeError, nearest
from halfmask.infer.bundle import PREDICTORS, bundle_folder, load_bundle, own_bundle, save_bundle
from halfmask.infer.domains import domain_names
from halfmask.run.checkpoint import open_method
from halfmask.run.folder import RunDir


def bundle_of(path: str | Path, predictor: str | None = None) -> Path:
    """Return the place of the bundle of a predictor, which is written first if need be.

    Args:
        path: run folder, bundle, or a checkpoint of a run; anything else is returned as it is.
        predictor: its name, at its best validation; `None`: the shipped one, or the one that a checkpoint is named by.

    Raises:
        CheckpointError: no run, no checkpoint, or one that does not fit the run's recipe.
        RecipeError: the run has no predictor of that name.
    """
    path = Path(path)
    named = path.suffix == ".ckpt"
    if not named and predictor is None:
        return path
    run = RunDir(_run_of(path) if named else bundle_folder(own_bundle(path)))  # not the twin, where that is shipped
    shipped = load_bundle(own_bundle(run.path))
    own = str(shipped.meta.get("predictor"))
    if named:
        checkpoint = path
        name = predictor or (path.stem.removeprefix("best-") if path.stem.startswith("best-") else own)
    else:
        name = predictor or own
        if name == own:
            return path if bundle_folder(path) == run.path else own_bundle(path)
        checkpoint = run.best(name) if run.best(name).is_file() else run.last
    if not run.recipe.is_file() or not checkpoint.is_file():
        raise CheckpointError(
            f"{checkpoint}: no such checkpoint. A bundle alone holds one network ({own}): for another one name the run "
            "that halfmask train wrote.",
            "H407",
        )
    folder = run.path / PREDICTORS / (name if checkpoint == run.best(name) else f"{name}-{checkpoint.stem}")
    written = folder / "model.json"
    if written.is_file() and written.stat().st_mtime >= checkpoint.stat().st_mtime:
        return folder
    method, step = open_method(shipped, checkpoint)
    networks = method.predictors()
    if name not in networks:
        raise RecipeError(
            f"the run has no predictor {name!r}.{nearest(name, list(networks))} It has: {', '.join(networks)}.", "H303"
        )
    kept = {key: shipped.meta.get(key) for key in ("method", "eval", "range", "nodata", "ids", "license")}
    folder.mkdir(parents=True, exist_ok=True)
    save_bundle(folder, networks[name], shipped.task, extra={**kept, "predictor": name, "step": step})
    return folder


def _run_of(checkpoint: Path) -> Path:
    """Return the folder of the run that a checkpoint is of."""
    run = checkpoint.resolve().parent.parent
    if domain_names(run):
        raise CheckpointError(
            f"{checkpoint} is of a run over several domains; each has a bundle: {', '.join(domain_names(run))}.", "H401"
        )
    return run
