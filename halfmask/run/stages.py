"""Between two stages: the first one's predictor labels the unlabeled images that have tags."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from halfmask.errors import DataError
from halfmask.infer.bundle import load_bundle
from halfmask.infer.devices import pick_device
from halfmask.infer.outputs import mask_image
from halfmask.method import Method
from halfmask.models.model import Model
from halfmask.palette import palette_of
from halfmask.run.folder import PSEUDO_MASKS, RunDir
from halfmask.run.prepare import prepare
from halfmask.run.progress import LookingLine

Label = Callable[[Method, Model, Tensor, Tensor], Tensor]


def write_pseudo_masks(run: RunDir, label: Label, *, quiet: bool = True) -> Path:
    """Label the tagged images of a finished stage, `<run>/pseudo_masks/<image>.png`: class ids, 255 = unknown.

    Masks that an earlier call finished are kept.

    Args:
        run: folder of the stage.
        label: `Stage.label`.
        quiet: show no progress.

    Raises:
        DataError: an image cannot be read, or the disk is full.
    """
    folder = run.path / PSEUDO_MASKS
    if folder.is_dir():
        return folder
    part = folder.with_name(f"{PSEUDO_MASKS}.part")
    shutil.rmtree(part, ignore_errors=True)  # an earlier call was interrupted
    recipe = run.load_recipe()
    prepared = prepare(recipe, look=False)
    tags = prepared.weak.tags
    assert tags is not None  # a stage with `label` learns from tags
    dataset, colors = prepared.unlabeled or prepared.dataset, palette_of(prepared.dataset.task)
    device = pick_device("cpu" if recipe.run.accelerator == "cpu" else "auto")
    model = load_bundle(run.path, device).model
    with LookingLine(quiet) as on_file:
        for number, (id, row) in enumerate(zip(prepared.split.unlabeled, tags, strict=True), 1):
            pixels = np.ascontiguousarray(np.moveaxis(dataset.read_image(id), -1, 0))
            image = torch.from_numpy(pixels).to(device).to(model.mean.dtype) / 255
            mask = label(prepared.method, model, image, torch.from_numpy(row).to(device))
            path = part / Path(id).with_suffix(".png")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                mask_image(mask.cpu().numpy().astype(np.uint8), colors).save(path)
            except OSError as error:
                raise DataError(
                    f"{path}: cannot be written ({error}). Free some space and resume the run.", "H502"
                ) from None
            on_file(number, len(tags))
    part.rename(folder)
    return folder
