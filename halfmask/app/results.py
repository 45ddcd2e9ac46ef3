"""Prepare what the page shows of several images: masks by class, shares, messages, and a zip of all masks."""

import csv
import io
import os
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from halfmask.app.look import Look, Looker
from halfmask.errors import HalfmaskError

Layers = tuple[UInt8[np.ndarray, "h w 3"], list[tuple[Float[np.ndarray, "h w"], str]]]


def about(looker: Looker) -> str:
    """Say what the model predicts, in one sentence."""
    bands = "" if looker.bands == 3 else f", {looker.bands} bands"
    return f"{looker.task.kind}, {looker.task.n_classes} classes{bands}."


def predict_files(looker: Looker, paths: Iterable[str]) -> tuple[list[Look], list[str]]:
    """Predict images.

    Returns:
        predictions, and the messages of files that could not be predicted: one of these must not cost the others.
    """
    looks, problems = [], []
    for path in map(Path, paths):
        try:
            looks.append(looker.look(path.read_bytes(), path.name))
        except HalfmaskError as error:
            problems.append(f"{error} [{error.code}]")
        except Exception as error:  # one image must not end the program
            problems.append(f"{path.name}: {type(error).__name__}: {error}. This is a bug, please report it.")
    return looks, problems


def layers(look: Look, classes: Sequence[str], alone: str = "") -> Layers:
    """Return the picture, and the mask of each class that occurs in it.

    Of a class `alone` only its mask is shown; the others keep their names, so that they can be chosen.
    """
    ids = look.class_ids()
    if ids is None:
        return look.pixels(), []
    present = [id for id, share in enumerate(look.shares) if share > 0]
    shown = [(ids == id) & (alone in ("", classes[id])) for id in present]
    return look.pixels(), [(mask.astype("float32"), classes[id]) for id, mask in zip(present, shown, strict=True)]


def ranked(look: Look, classes: Sequence[str]) -> dict[str, float]:
    """Return the share of each class that has one."""
    return {name: share for name, share in zip(classes, look.shares, strict=True) if share > 0}


def write_zip(looks: Sequence[Look], classes: Sequence[str]) -> Path:
    """Write the masks, or the table of labels, as a zip file in a folder of its own, below that of gradio."""
    name = "labels.zip" if looks[0].mask is None else "masks.zip"
    path = Path(tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR"))) / name
    with zipfile.ZipFile(path, "w") as archive:
        taken: dict[str, int] = {}
        for look in looks:
            if look.mask is not None:
                stem = Path(look.name).stem or "image"
                taken[stem] = taken.get(stem, 0) + 1
                archive.writestr(f"{stem}{f'-{taken[stem]}' if taken[stem] > 1 else ''}.png", look.mask)
        if any(look.mask is None for look in looks):
            archive.writestr("labels.csv", labels_table(looks, classes))
    return path


def labels_table(looks: Sequence[Look], classes: Sequence[str]) -> str:
    """Return the table that `halfmask predict` writes: image, label, confidence."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["image", "label", "confidence"])
    for look in looks:
        best = max(range(len(classes)), key=look.shares.__getitem__)
        rows.writerow([look.name, classes[best], f"{look.shares[best]:.4f}"])
    return text.getvalue()
