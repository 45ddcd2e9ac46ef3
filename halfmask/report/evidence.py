"""Read the parts of a run that need images or networks: judged images, counts of every image, the last checkpoint.

Results are kept in `<run>/report/`. Each is stored with a key made of everything it depends on (weights, protocol,
files), and is computed again when the key has changed.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int

from halfmask import __version__
from halfmask.atomic import atomic_path, write_json
from halfmask.batch import Progress as Steps
from halfmask.data.contract import Dataset
from halfmask.errors import CheckpointError
from halfmask.infer.bundle import load_bundle, own_bundle
from halfmask.infer.evaluate import DatasetItems, count_each
from halfmask.infer.inference import READERS
from halfmask.infer.runs import check_classes, memory_cure, open_part_of, open_run
from halfmask.infer.seen import seen_in_training
from halfmask.method import Method
from halfmask.recipe.read import EvalRecipe
from halfmask.report.records import Run
from halfmask.run.checkpoint import open_method
from halfmask.run.folder import RunDir
from halfmask.task import Task

Tick = Callable[[str, int, int], None]  # what, done, of how many


@dataclass(frozen=True)
class Wishes:
    """Options of a report."""

    data: str | Path | None = None  # folder of the images, where they were moved
    part: str | None = None  # images to judge by; `None` takes those that the run chose its checkpoint on
    twin: str | Path | None = None  # run folder to compare with; `None`: RUN/control, else RUN/twin
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # where to predict
    workers: int = READERS  # threads that read images ahead
    limit: int | None = None  # judge by the first so many images
    tick: Tick = field(default=lambda what, done, total: None, repr=False)  # called with progress


@dataclass(frozen=True)
class Images:
    """The images that a report judges by."""

    dataset: Dataset  # of the run
    ids: tuple[str, ...]  # of the images
    part: str  # name of the part
    protocol: EvalRecipe  # how they are predicted
    wishes: Wishes  # device, readers and progress
    seen: str = ""  # which of them the model was trained on, in words

    @property
    def device(self) -> torch.device:
        """Device to predict on."""
        return self.wishes.device

    @property
    def items(self) -> DatasetItems:
        """Images with targets, each read when it is asked for."""
        return DatasetItems(self.dataset, self.ids)

    @property
    def key(self) -> str:
        """Text that changes when an image or a mask is replaced: the key of stored results."""
        files = [path for id in self.ids for path in (*self.dataset.image_files(id), self.dataset.mask_path(id))]
        stamps = [(str(path), _stamp(path)) for path in files if path is not None]
        return digest(self.ids, stamps, self.protocol.model_dump(mode="json"), __version__)


def open_images(run: Run, wishes: Wishes) -> Images:
    """Open the images that the run chose its checkpoint on, or another part.

    Raises:
        CheckpointError: there is no model yet.
        DataError: the data is not there, or the part has no image with a mask.
    """
    opened = open_run(own_bundle(run.path), (), sections=("eval", "data"))
    part = wishes.part or opened.protocol.select_on
    dataset, ids = open_part_of(opened, wishes.data, part, opened.recorded_val)
    shown = tuple(ids[: wishes.limit])
    seen = seen_in_training(opened.data, opened.lists, dataset, shown).describe()
    return Images(dataset, shown, part, opened.protocol, wishes, seen)


class Tally(NamedTuple):
    """Pixels of every image by target and prediction."""

    ids: tuple[str, ...]  # of the images
    counts: Int[np.ndarray, "N K1 K"]  # row = target (the last: strange values), column = prediction
    part: str  # the images' name
    task: Task  # what was predicted
    absent: Any  # rule of the protocol for classes that occur nowhere


def tally(run: Path, images: Images) -> Tally:
    """Count the shipped predictor's pixels of every image, or read the counts of an earlier report.

    Raises:
        CheckpointError: no bundle, or one made for other classes.
        DataError: an image cannot be read.
    """
    bundle = load_bundle(own_bundle(run), images.device)
    check_classes(bundle, images.dataset)
    path = bundle.folder / "report" / f"counts-{Path(images.part).stem or 'val'}.npz"
    key = digest(images.key, bundle.meta["sha256"], images.part)
    counts = _cached_counts(path, key)
    if counts is None:
        done, total = 0, len(images.ids)

        def advance(number: int) -> None:
            nonlocal done
            done += number
            images.wishes.tick(f"predict {run.name}", done, total)

        with memory_cure(images.protocol):
            counts = count_each(
                bundle.model,
                images.items,
                bundle.task,
                images.protocol,
                images.device,
                crop=bundle.crop,
                workers=images.wishes.workers,
                on_batch=advance,
            ).numpy()
        with atomic_path(path) as partial:
            np.savez_compressed(partial, key=np.array(key), counts=counts)
    return Tally(images.ids, counts, images.part, bundle.task, images.protocol.absent_classes)


def load_method(run: Run, device: torch.device) -> tuple[Method, Steps]:
    """Build the method of a run and load its last checkpoint: all networks, and its buffers.

    Raises:
        CheckpointError: there is none, or it does not fit.
        RecipeError: the method cannot be imported.
    """
    if run.meta is None:
        raise CheckpointError(f"{run.path} holds no model.json: the run has not been validated yet.", "H407")
    method, step = open_method(load_bundle(own_bundle(run.path), device), RunDir(run.path).last)
    # As in training: passes over the list of unlabeled images.
    per_pass = (run.count("unlabeled") or 1) // int(run.recipe["data"]["batch"]["unlabeled"])
    return method.to(device).eval(), Steps(step, max(step, 1), max(per_pass, 1))


def cached_json(path: Path, key: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Return the result that was stored under this key, or compute and store it."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return dict(kept["value"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # absent, or of another version: computed anew
    value = dict(compute())
    write_json(path, {"key": key, "value": value})
    return value


def digest(*parts: Any) -> str:
    """Return one key of plain values."""
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()


def _cached_counts(path: Path, key: str) -> Int[np.ndarray, "N K1 K"] | None:
    try:
        with np.load(path) as kept:
            return kept["counts"] if str(kept["key"]) == key else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None  # a dataset whose files hold many images
    return state.st_size, state.st_mtime_ns
