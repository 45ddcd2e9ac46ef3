"""A tiny dataset and recipe for tests of the engine: ten images of two shapes on noise, six with a mask."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from halfmask.method import Method
from halfmask.recipe.read import Recipe, load

CLASSES = "0\tbackground\t0,0,0\n1\tdisc\t255,0,0\n2\tbar\t0,0,255\n"


def write_dataset(root: Path, images: int = 10, masks: int = 6, size: tuple[int, int] = (56, 48)) -> Path:
    """Write images/, masks/ for the first `masks` images, and classes.txt."""
    rng = np.random.default_rng(7)
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    (root / "classes.txt").write_text(CLASSES)
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    for number in range(images):
        y, x = rng.integers(12, height - 12), rng.integers(12, width - 12)
        target = np.zeros((height, width), dtype=np.uint8)
        target[(rows - y) ** 2 + (columns - x) ** 2 < 90] = 1
        target[:, (x + 20) % width : (x + 26) % width] = 2
        image = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
        image[target == 1, 0] += 140
        image[target == 2, 2] += 140
        Image.fromarray(image).save(root / "images" / f"shape_{number:02d}.png")
        if number < masks:
            Image.fromarray(target).save(root / "masks" / f"shape_{number:02d}.png")
    return root


def recipe(root: Path, *overrides: str, method: str = "fixmatch", **params: Any) -> Recipe:
    """A run of a few steps with the smallest network that has batch norm."""
    base = {
        "method": {"name": method, **params},
        "model": {
            "encoder": {"name": "timm", "model": "test_resnet"},
            "decoder": {"name": "segformer", "embedding": 16},
        },
        "data": {
            "root": str(root),
            "crop": 32,
            "batch": {"labeled": 2, "unlabeled": 2},
            "workers": 0,
            "val": "auto",
        },
        "optim": {"name": "adamw", "lr": 1e-3},
        "run": {
            "steps": 6,
            "log_every": 2,
            "eval_every": 3,
            "accelerator": "cpu",
            "logger": "none",
            "precision": "32-true",
        },
    }
    return load(base, overrides)


@contextmanager
def failing_at(method: type[Method], step: int, error: BaseException) -> Iterator[None]:
    """Within the block, the method's training step `step` raises the error."""
    whole = method.step

    def failing(self: Any, batch: Any, progress: Any) -> Any:
        if progress.step == step:
            raise error
        return whole(self, batch, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "step", failing)
        yield
