"""Evaluate a predictor: every image exactly once, by one protocol, into one confusion matrix.

Published multi-GPU code repeats images to make the list divisible by the number of processes; here each process
takes every world-size-th image and none twice, so the scores do not depend on the number of processes.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypedDict, Unpack, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Integer, UInt8
from torch import Tensor

from halfmask import __version__
from halfmask.atomic import write_json
from halfmask.data.contract import Dataset
from halfmask.errors import DataError, ShapeError
from halfmask.infer.bundle import Bundle, load_bundle, own_bundle
from halfmask.infer.devices import joined_ranks
from halfmask.infer.inference import READERS, center, class_map, read_ahead
from halfmask.infer.metrics import ConfusionMatrix, Scores
from halfmask.infer.runs import check_classes, memory_cure, open_part_of, open_run
from halfmask.infer.seen import seen_in_training
from halfmask.models.model import Network, eval_mode
from halfmask.progress import Bars
from halfmask.recipe.read import EvalRecipe
from halfmask.task import Task

_log = logging.getLogger(__name__)
# Images of a size that is still short of a full batch wait for more; so many may wait.
_WAITING_BATCHES = 8


@runtime_checkable
class Items(Protocol):
    """Images with targets, read on demand; reading must be safe from several threads."""

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "*T C H W"], Integer[Tensor, "*S"]]:
        """Return one image and its target."""
        ...


@dataclass(frozen=True, slots=True)
class DatasetItems:
    """Images and targets of a dataset, by id."""

    dataset: Dataset
    ids: Sequence[str]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "*T C H W"], Integer[Tensor, "*S"]]:
        """Read one image and its target."""
        id = self.ids[index]
        image = np.moveaxis(self.dataset.read_image(id), -1, -3)
        target = self.dataset.read_target(id)
        return torch.from_numpy(np.ascontiguousarray(image)), torch.from_numpy(target.copy())


class Pass(TypedDict, total=False):
    """How a pass over images is made.

    Args:
        crop: training crop side, the default window of `slide`; `None` asks the model's spec.
        workers: threads that read images ahead.
        on_batch: called with the number of images after each forward.
    """

    crop: int | None
    workers: int
    on_batch: Callable[[int], None] | None


def evaluate_model(
    model: Network,
    items: Items,
    task: Task,
    protocol: EvalRecipe,
    device: torch.device | str,
    *,
    rank: int = 0,
    world: int = 1,
    **options: Unpack[Pass],
) -> Scores:
    """Evaluate a model that is already on `device`; its training mode is restored afterwards.

    Args:
        model: takes images in [0, 1].
        items: uint8 images and targets.
        task: classes and ignore index.
        protocol: how to evaluate.
        device: where the model is.
        rank: this process; with `world` > 1 the counts of all processes are summed.
        world: number of processes.
        **options: crop, workers and on_batch, see `Pass`.

    Raises:
        DataError: no image, or no pixel whose target is a class.
    """
    if not len(items):
        raise DataError(
            "there is no image to evaluate. Name a part that has masks: --part val | test | train | all.", "H210"
        )
    matrix = count(model, items, task, protocol, device, rank=rank, world=world, **options)
    if world > 1:
        matrix.all_reduce()
    if not matrix.counts[:-1].any():
        raise DataError(
            f"none of the {len(items)} evaluated masks has a pixel of a class: all pixels are ignored or unknown. "
            "Check the values of the masks against the classes (halfmask.yaml or classes.txt).",
            "H203",
        )
    return matrix.scores(task.classes, protocol.absent_classes, task.kind)


def count(
    model: Network,
    items: Items,
    task: Task,
    protocol: EvalRecipe,
    device: torch.device | str,
    *,
    rank: int = 0,
    world: int = 1,
    **options: Unpack[Pass],
) -> ConfusionMatrix:
    """Count the pixels of one process's share of the images; arguments as in `evaluate_model`."""
    matrix = ConfusionMatrix(task.n_classes, task.ignore_index, device)
    share = range(rank, len(items), world)
    for _, prediction, target in _predictions(model, items, share, protocol, device, **options):
        matrix.update(prediction, target)
    return matrix


def count_each(
    model: Network, items: Items, task: Task, protocol: EvalRecipe, device: torch.device | str, **options: Unpack[Pass]
) -> Int[Tensor, "N K1 K"]:
    """Count every image on its own, on the CPU; the sum over images is what `count` gives. Arguments as there."""
    counts = torch.zeros(len(items), task.n_classes + 1, task.n_classes, dtype=torch.int64)
    for numbers, prediction, target in _predictions(model, items, range(len(items)), protocol, device, **options):
        for number, one, truth in zip(numbers, prediction, target, strict=True):
            matrix = ConfusionMatrix(task.n_classes, task.ignore_index, device)
            matrix.update(one, truth)
            counts[number] = matrix.counts.cpu()
    return counts


def _predictions(
    model: Network,
    items: Items,
    share: Sequence[int],
    protocol: EvalRecipe,
    device: torch.device | str,
    crop: int | None = None,
    workers: int = READERS,
    on_batch: Callable[[int], None] | None = None,
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Return numbers, class maps (B, *S) and targets (B, *S) of batches of images of equal size."""
    crop = crop or model.spec.get("crop")
    shown = read_ahead(lambda number: (number, *items[number]), share, workers)
    with eval_mode(model):
        for numbers, images, targets in _equal_size(shown, protocol.batch):
            image = torch.stack(images).to(device, non_blocking=True).to(model.mean.dtype) / 255
            target = torch.stack(targets).to(device, non_blocking=True)
            if protocol.mode == "center_crop":
                image, target = _centers(image, target, protocol, crop)
            yield numbers, class_map(model, image, protocol, crop), target
            if on_batch is not None:
                on_batch(len(numbers))


def evaluate(
    run: str | Path,
    *,
    data: str | Path | None = None,
    part: str = "val",
    overrides: Sequence[str] = (),
    device: str = "auto",
    workers: int = READERS,
    limit: int | None = None,
    write: bool = True,
    quiet: bool = False,
) -> Scores:
    """Evaluate the shipped predictor of a run, or any bundle, and write `metrics.json` beside it.

    Images that the model was trained on, also copies of them under other names, are warned about.

    The processes of torchrun share the images; each gets the scores of all, the first writes.

    Args:
        run: run folder, bundle folder or model.json.
        data: folder of the dataset; `None` takes the one the run was trained on.
        part: `val` (of the run's split), `test`, `train`, `all` (every image with a mask), or a list file.
        overrides: dotted `eval.*` and `data.*` keys, for example `["eval.mode=slide"]`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        workers: threads that read images ahead.
        limit: evaluate only the first so many images.
        write: write metrics.json.
        quiet: show no progress.

    Raises:
        CheckpointError: no bundle, a damaged one, or one made for other classes than the data has.
        DataError: no image with a mask in the part.
        RecipeError: an override is wrong, or nothing says where data is.
    """
    with joined_ranks(device) as ranks:
        opened = open_run(run, overrides, sections=("eval", "data"))
        bundle = load_bundle(own_bundle(opened.folder), ranks.device)
        changed = any(text.startswith("data.") for text in overrides)
        dataset, ids = open_part_of(opened, data, part, None if changed else opened.recorded_val)
        ids = ids[:limit]
        check_classes(bundle, dataset)
        seen = seen_in_training(opened.data, opened.lists, dataset, ids) if ranks.first else None
        if seen is not None and (text := seen.describe()):
            _log.warning(text)
        with Bars(quiet or not ranks.first) as bars:
            count = bars.counter("evaluate", len(range(0, len(ids), ranks.world)))
            with memory_cure(opened.protocol):
                items = DatasetItems(dataset, ids)
                options: Pass = {"crop": bundle.crop, "workers": workers, "on_batch": count}
                share = {"rank": ranks.rank, "world": ranks.world}
                scores = evaluate_model(
                    bundle.model, items, bundle.task, opened.protocol, ranks.device, **share, **options
                )
    if write and ranks.first:
        record = _record(scores, opened.protocol, bundle, part, len(ids), dataset)
        known = seen and {"labeled": len(seen.labeled), "unlabeled": len(seen.unlabeled)}
        write_json(opened.folder / "metrics.json", record | {"seen_in_training": known})
    return scores


def _record(
    scores: Scores, protocol: EvalRecipe, bundle: Bundle, part: str, images: int, dataset: Dataset
) -> dict[str, Any]:
    """Return what metrics.json holds: a number is worth nothing without the protocol behind it."""
    if protocol.mode != "whole":  # "the training crop" by its size
        protocol = protocol.model_copy(update={"window": protocol.window or bundle.crop})
    return {
        "metrics": scores.to_dict(Path(part).stem),
        "protocol": protocol.model_dump(mode="json"),
        "part": part,
        "images": images,
        "support": dict(zip(scores.classes, scores.support, strict=True)),
        "data": str(dataset.root),
        "checkpoint": {"sha256": bundle.meta["sha256"], "step": bundle.meta.get("step")},
        "halfmask": __version__,
    }


def _centers(image: Tensor, target: Tensor, protocol: EvalRecipe, crop: int | None) -> tuple[Tensor, Tensor]:
    """Return the middle windows of images and targets; only they are predicted and scored."""
    if target.ndim < 3:
        raise ShapeError("eval.mode=center_crop needs a dense prediction; use eval.mode=whole for classification.")
    top, left, height, width = center((image.shape[-2], image.shape[-1]), protocol, crop)
    return tuple(x[..., top : top + height, left : left + width] for x in (image, target))  # type: ignore[return-value]


def _equal_size(
    stream: Iterator[tuple[int, Tensor, Tensor]], batch: int
) -> Iterator[tuple[list[int], list[Tensor], list[Tensor]]]:
    """Collect images of equal size into batches; the order of images does not matter to a sum."""
    waiting: dict[torch.Size, list[tuple[int, Tensor, Tensor]]] = {}
    for number, image, target in stream:
        waiting.setdefault(image.shape, []).append((number, image, target))
        full = len(waiting[image.shape]) == batch
        if full or sum(map(len, waiting.values())) >= _WAITING_BATCHES * batch:
            largest = image.shape if full else max(waiting, key=lambda shape: len(waiting[shape]))
            yield _unzip(waiting.pop(largest))
    for group in waiting.values():
        yield _unzip(group)


def _unzip(group: list[tuple[int, Tensor, Tensor]]) -> tuple[list[int], list[Tensor], list[Tensor]]:
    return [number for number, _, _ in group], [image for _, image, _ in group], [target for _, _, target in group]
