"""Validation: score every predictor of a method, and write the bundle of the shipped one.

Both use the networks with the statistics of `CleanStatistics`, where the recipe asks for them (`run.precise_bn`).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from halfmask.data.loading.loader import HostBatch, to_batch
from halfmask.infer.bundle import save_bundle
from halfmask.infer.metrics import Scores
from halfmask.models.model import Network, eval_mode
from halfmask.models.statistics import estimate_statistics, install_statistics
from halfmask.run.loop.module import LitMethod
from halfmask.task import Task

MakeBatches = Callable[[int, int], Iterable[HostBatch]]  # rank, world
Evaluate = Callable[[Network, int, int], Scores]  # model, rank, world


class Examination(NamedTuple):
    """Result of one validation.

    Args:
        values: all scores, under the names of metrics.jsonl.
        main: the score that chooses the checkpoint, of each predictor, the method's first one first.
        one_class: the class of each predictor that predicts no other one, though the masks show several.
    """

    values: dict[str, float]
    main: dict[str, float]
    one_class: dict[str, str] = {}  # noqa: RUF012  # never changed


@runtime_checkable
class Examiner(Protocol):
    """Scores the networks of a run."""

    main_metric: str
    images: int  # to validate on

    def examine(self, module: LitMethod, rank: int, world: int) -> Examination:
        """Score every predictor; each process takes its share of the images."""
        ...

    def ship(self, module: LitMethod, folder: Path, name: str | None, score: dict[str, float]) -> None:
        """Write what `predict` needs of a predictor, or of the first one."""
        ...


class CleanStatistics:
    """Statistics of batch norm over clean training images, for as long as networks are scored and shipped.

    The training goes on with its own, so how often a run validates does not change what it learns.

    Args:
        batches: makes the batches whose weak images are taken, the same at every call.
        used: score and ship with them; `False`: only compare them with those of the training.
    """

    def __init__(self, batches: MakeBatches, *, used: bool) -> None:
        self.batches, self.used = batches, used
        self._kept: list[HostBatch] | None = None

    @contextmanager
    def swapped_in(self, module: LitMethod, rank: int, world: int) -> Iterator[None]:
        """Put clean statistics into every predictor, keep them for the checkpoint, and restore its own at the end."""
        predictors = module.method.predictors()
        before: list[tuple[Network, dict[str, Tensor]]] = []
        module.statistics = {}
        try:
            for name, network in predictors.items():
                if network.has_batch_stats:
                    own = estimate_statistics(network, self._images(module, rank, world))
                    before.append((network, install_statistics(network, own)))
                    module.statistics[name] = {key: value.cpu() for key, value in own.items()}
            yield
        finally:
            for network, former in reversed(before):
                install_statistics(network, former)

    @torch.no_grad()
    def agreement(self, module: LitMethod, rank: int, world: int) -> dict[str, float]:
        """Return for each predictor the part of the pixels that keep their class with clean statistics."""
        found: dict[str, float] = {}
        for name, network in module.method.predictors().items():
            if not network.has_batch_stats:
                continue
            images = next(self._images(module, rank, world))
            with eval_mode(network):
                own = network(images).argmax(1)
                before = install_statistics(network, estimate_statistics(network, self._images(module, rank, world)))
                found[name] = (network(images).argmax(1) == own).float().mean().item()
                install_statistics(network, before)
        return found

    def _images(self, module: LitMethod, rank: int, world: int) -> Iterator[Tensor]:
        if self._kept is None:  # a few small crops as bytes: read once
            self._kept = list(self.batches(rank, world))
        for host in self._kept:
            batch = to_batch(host, module.device, module.method.task)
            streams = [batch.labeled, batch.unlabeled]
            yield torch.cat([samples.image for samples in streams if samples is not None])


class TaskExaminer:
    """Examines a run over one dataset.

    Args:
        task: what is predicted.
        evaluate: gives the scores of a model; `None` without validation images.
        images: how many there are.
    """

    def __init__(self, task: Task, evaluate: Evaluate | None, images: int) -> None:
        self.task, self.evaluate = task, evaluate
        self.main_metric, self.images = task.main_metric, images

    def examine(self, module: LitMethod, rank: int, world: int) -> Examination:
        """Score every predictor as `<predictor>/val/<score>`, the first one also as `val/<score>`."""
        assert self.evaluate is not None
        values: dict[str, float] = {}
        main: dict[str, float] = {}
        one_class: dict[str, str] = {}
        for name, model in module.method.predictors().items():
            found = self.evaluate(model, rank, world)
            scores = found.to_dict()
            values |= {f"{name}/val/{key}": value for key, value in scores.items()}
            values |= {} if main else {f"val/{key}": value for key, value in scores.items()}
            main[name] = found.main[1]
            if (label := only_class(found)) is not None:
                one_class[name] = label
        return Examination(values, main, one_class)

    def ship(self, module: LitMethod, folder: Path, name: str | None, score: dict[str, float]) -> None:
        """Write the bundle of a predictor, or of the first one."""
        predictors = module.method.predictors()
        name = name or next(iter(predictors))
        kept = {key: module.meta.get(key) for key in ("range", "nodata", "ids")}
        save_bundle(folder, predictors[name], self.task, extra={**origin_of(module, name), **kept, **score})


def only_class(scores: Scores) -> str | None:
    """Return the only class that is predicted, where the targets show several.

    A class that is predicted nowhere has no precision.
    """
    predicted = [label for label, value in zip(scores.classes, scores.precision, strict=True) if not math.isnan(value)]
    return predicted[0] if len(predicted) == 1 and sum(count > 0 for count in scores.support) > 1 else None


def origin_of(module: LitMethod, predictor: str) -> dict[str, Any]:
    """Return what a bundle says about the training it is from."""
    active = module.average is not None and module.average.active
    averaged = module.average.span_of(predictor) if active and module.average is not None else 0
    return {
        "method": module.meta["recipe"]["method"]["name"],
        "predictor": predictor,
        "step": module.step,
        **({"averaged_steps": averaged} if averaged else {}),
        "eval": module.meta["recipe"]["eval"],
    }
