"""All networks of a trained run, from its checkpoint: what a bundle, which holds one of them, cannot give."""

from pathlib import Path

import torch

from halfmask.errors import CheckpointError, bullet_list
from halfmask.method import Method
from halfmask.models.build import Builder
from halfmask.models.fitting import misfits
from halfmask.models.model import Model
from halfmask.plugins import resolve
from halfmask.recipe.read import Entry, ModelRecipe, load
from halfmask.run.bundle import Bundle, load_bundle
from halfmask.run.checkpoint import read_checkpoint
from halfmask.run.folder import RunDir


def weights_of(run: str | Path) -> Path | None:
    """Give the checkpoint at the best validation of the shipped predictor, else the last one; `None`: there is none."""
    folder = RunDir(run)
    candidates = sorted(folder.checkpoints.glob("best-*.ckpt"))
    if candidates and (folder.path / "model.json").is_file():
        shipped = load_bundle(folder.path).meta.get("predictor")
        candidates = [path for path in candidates if path == folder.best(str(shipped))]
    return next(iter(candidates), folder.last if folder.last.is_file() else None)


def load_networks(method: Method, checkpoint: Path) -> int:
    """Fill a method with the weights and buffers of a checkpoint, and give the checkpoint's step.

    Raises:
        CheckpointError: it is damaged, or of another method, network or number of classes.
    """
    content = read_checkpoint(checkpoint)
    saved = content["state_dict"]
    state = {name.removeprefix("method."): value for name, value in saved.items() if name.startswith("method.")}
    if problems := misfits(state, method.state_dict()):
        raise CheckpointError(
            f"{checkpoint} does not fit: the method, its networks or the classes differ (it was trained for "
            f"{', '.join(content['halfmask']['classes'])}). Keep these, or train a new run from its start:\n"
            f"{bullet_list(problems)}",
            "H405",
        )
    method.load_state_dict(state)
    return int(content["halfmask"]["step"])


def open_predictors(bundle: Bundle, device: torch.device) -> dict[str, Model]:
    """Give every predictor of the run that a bundle belongs to, the shipped one first; of a bare bundle just that.

    Args:
        bundle: of the run.
        device: where they go.

    Raises:
        CheckpointError: the checkpoint does not fit the run's recipe.
    """
    run = RunDir(bundle.folder)
    checkpoint = weights_of(run.path) if run.recipe.is_file() else None
    if checkpoint is None:
        return {str(bundle.meta.get("predictor", "model")): bundle.model}
    recipe = load(run.recipe)
    builder = Builder(
        _without_weights(recipe.model), bundle.task, crop=recipe.data.crop, channels=bundle.model.mean.numel(),
        mean=tuple(bundle.model.mean.flatten().tolist()), std=tuple(bundle.model.std.flatten().tolist()),
    )  # fmt: skip
    method: Method = resolve("methods", recipe.method.name)(bundle.task, builder, **recipe.method.params)
    load_networks(method, checkpoint)
    return {name: model.to(device).eval() for name, model in method.predictors().items()}


def _without_weights(model: ModelRecipe) -> ModelRecipe:
    """The checkpoint brings the weights: nothing has to be downloaded."""
    params = {key: value for key, value in model.encoder.params.items() if key != "weights"}
    return model.model_copy(update={"encoder": Entry(name=model.encoder.name, **params)})
