"""Files as the authors' training scripts write them, made from the recorded weights."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfmask import load_bundle


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def write(path: Path, entry: str = "model", **networks: dict[str, Tensor]) -> Path:
    """A checkpoint with the prefix of data-parallel training, an optimizer and a score computed by numpy."""
    content: dict[str, Any] = {
        key: {f"module.{name}": value for name, value in state.items()} for key, state in networks.items()
    }
    score = np.mean(np.array([86.0, 86.5]))
    torch.save({**content, "optimizer": {"state": {}}, "epoch": 42, "previous_best": score}, path)
    return path


def logits(folder: Path, normalized: Tensor) -> Tensor:
    """What an imported bundle gives for an image that the recording holds normalized, in float64."""
    model = load_bundle(folder).model.double()
    image = normalized.double()
    return model(image * model.std + model.mean)
