"""Write rendered scenes as a dataset folder: a few with masks, many without."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from jaxtyping import UInt8
from PIL import Image

from halfmask.demo.render import render
from halfmask.demo.scene import CLASSES, PALETTE, draw_scene
from halfmask.errors import DataError
from halfmask.palette import hex_color

# Consecutive labeled scenes are made to hold these, so that every class has a mask.
_KINDS_PER_SCENE = 4


@dataclass(frozen=True)
class Size:
    """How much to render."""

    labeled: int = 4  # training images with a mask
    unlabeled: int = 160  # training images without
    val: int = 16  # images for choosing the best checkpoint
    test: int = 48  # images for the reported scores
    side: int = 128  # pixels

    @property
    def total(self) -> int:
        """Number of all images."""
        return self.labeled + self.unlabeled + self.val + self.test


def write_dataset(
    folder: Path, size: Size, seed: int, *, overwrite: bool = False, progress: Callable[[int, int], None] | None = None
) -> None:
    """Render a dataset: `train|val|test/{images,masks}`, `unlabeled/`, and `halfmask.yaml` that names the classes.

    No mask is written for an unlabeled image. Equal arguments give equal files.

    Args:
        folder: where to; must be new or empty.
        size: how many images.
        seed: of all scenes.
        overwrite: remove the sub-folders that this function writes first.
        progress: called with (images done, images in all).

    Raises:
        DataError: the folder holds something else.
    """
    parts = ("train", "val", "test", "unlabeled")
    if overwrite:
        for name in parts:
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / "halfmask.yaml").unlink(missing_ok=True)
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty. Render anew with --overwrite, or choose another --out.", "H408")
    folder.mkdir(parents=True, exist_ok=True)
    described = {
        "classes": dict(enumerate(CLASSES)),
        "palette": {index: hex_color(color) for index, color in enumerate(PALETTE)},
        "foreground": list(CLASSES[1:]),
    }
    (folder / "halfmask.yaml").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
    done = 0
    for stream, (part, count) in enumerate(
        {"train": size.labeled, "unlabeled": size.unlabeled, "val": size.val, "test": size.test}.items()
    ):
        for number in range(count):
            kinds = _kinds_of(number) if part == "train" else None
            image, mask = render_scene((seed, stream, number), size.side, kinds)
            _save(folder, part, f"scene_{number:03d}", image, mask)
            done += 1
            if progress is not None:
                progress(done, size.total)


def render_scene(
    seed: tuple[int, ...], side: int, kinds: tuple[int, ...] | None = None
) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W"]]:
    """Draw and render one scene; equal arguments give an equal image."""
    rng = np.random.default_rng(seed)
    return render(draw_scene(rng, kinds=kinds), side, rng)


def _kinds_of(number: int) -> tuple[int, ...]:
    kinds = len(CLASSES) - 1
    return tuple((number * _KINDS_PER_SCENE + offset) % kinds + 1 for offset in range(_KINDS_PER_SCENE))


def _save(folder: Path, part: str, name: str, image: np.ndarray, mask: np.ndarray) -> None:
    images = folder / part if part == "unlabeled" else folder / part / "images"
    images.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(images / f"{name}.png")
    if part == "unlabeled":
        return
    masks = folder / part / "masks"
    masks.mkdir(parents=True, exist_ok=True)
    indexed = Image.fromarray(mask)
    indexed.putpalette([channel for color in PALETTE for channel in color])
    indexed.save(masks / f"{name}.png")
