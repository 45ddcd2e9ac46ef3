"""Train a method for two steps as `halfmask train` does: the last rule of `check_method`.

Whatever the command checks before it trains, and whatever it does after, is thereby done once: batches, crops, class
weights, optimizers, the validation of every predictor, checkpoints, the bundle.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from halfmask.errors import HalfmaskError
from halfmask.infer.bundle import load_bundle
from halfmask.infer.domains import domain_names
from halfmask.method import DomainMethod, Method
from halfmask.recipe.read import load
from halfmask.run.fit import fit
from halfmask.testing import tiny

_IMAGES, _MASKS, _SIDE = 10, 6, 40
_DATASETS = {"segmentation": "folder", "change": "change_folder", "classification": "class_folder"}


def trains(cls: type[Method], kind: str, params: dict[str, Any]) -> str:
    """Train a method on ten tiny images and open what it ships; return what went wrong, "" if nothing.

    The class may be defined in a function.
    """
    with tempfile.TemporaryDirectory(prefix="halfmask-check-") as folder, _importable(cls) as name:
        root, out = Path(folder, "data"), Path(folder, "run")
        weak = write_tiny_dataset(root, kind, tags="tags" in cls.weak_labels and "masks" not in cls.weak_labels)
        recipe = _recipe(cls, name, kind, root, params) | ({"data.weak.tags": str(weak)} if weak else {})
        try:
            result = fit(load(None, recipe), out, quiet=True)
            for shipped in domain_names(result.out) or ("",):
                load_bundle(result.out / shipped)
        except HalfmaskError as error:
            return f"{type(error).__name__}: {error}"
    return ""


def write_tiny_dataset(root: Path, kind: str, *, tags: bool = False) -> Path | None:
    """Write ten images, six of them with a mask or label, in the layout of one's own data.

    With `tags` also a file of image-level labels, whose path is returned.
    """
    rng = np.random.default_rng(0)
    for number in range(_IMAGES):
        pictures = {"images": rng.integers(0, 255, (_SIDE, _SIDE, 3), dtype=np.uint8)}
        mask = np.zeros((_SIDE, _SIDE), np.uint8)
        mask[8:24, 4 + 2 * number : 20] = 1
        if kind == "segmentation":
            mask[28:] = 2
        if kind == "change":
            pictures = {"A": pictures["images"], "B": pictures["images"][::-1]}
        if kind == "classification":
            pictures = {"ground" if number % 2 else "disc": pictures["images"]}
            pictures = pictures if number < _MASKS else {"unlabeled": next(iter(pictures.values()))}
        elif number < _MASKS:
            pictures["label" if kind == "change" else "masks"] = mask
        for folder, pixels in pictures.items():
            path = root / folder / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(pixels)).save(path)
    if kind == "segmentation":
        names = "classes: {0: ground, 1: disc, 2: bar}\nforeground: [disc, bar]\n"
        (root / "halfmask.yaml").write_text(names)
    if not tags:
        return None
    lines = [f"images/{number}.png,disc" for number in range(_MASKS, _IMAGES)]
    (root / "tags.csv").write_text("\n".join(["image,classes", *lines]) + "\n")
    return root / "tags.csv"


def _recipe(cls: type[Method], name: str, kind: str, root: Path, params: dict[str, Any]) -> dict[str, Any]:
    batch = max(2, cls.smallest_batch)
    return {
        "method": {"name": name, **params},
        "model.encoder": {"name": f"{tiny.__name__}:TinyEncoder"},
        "model.decoder": {"name": f"{tiny.__name__}:TinyDecoder"},
        **_data(cls, kind, root), "data.crop": tiny.CROP, "data.workers": 0,
        "data.batch": {"labeled": batch, "unlabeled": batch},
        "run.steps": 2, "run.accelerator": "cpu", "run.logger": "none", "run.precision": "32-true",
    }  # fmt: skip


def _data(cls: type[Method], kind: str, root: Path) -> dict[str, Any]:
    if not issubclass(cls, DomainMethod):
        return {"data.root": str(root), "data.dataset": _DATASETS[kind]}
    other = root.with_name("other")
    write_tiny_dataset(other, kind)
    return {"data.domains": {path.name: {"root": str(path), "dataset": _DATASETS[kind]} for path in (root, other)}}


@contextmanager
def _importable(cls: type[Method]) -> Iterator[str]:
    """Return a name by which a recipe finds the class, wherever it is defined."""
    module = ModuleType("halfmask_checked_method")
    vars(module)[cls.__name__] = cls
    sys.modules[module.__name__] = module
    try:
        yield f"{module.__name__}:{cls.__name__}"
    finally:
        del sys.modules[module.__name__]
