"""Collect the images that may be labeled next, and measure each by the networks of a run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from halfmask.data.contract import Dataset
from halfmask.data.splits.split import open_dataset, recorded_lists, unlabeled_dataset
from halfmask.errors import DataError, RecipeError
from halfmask.infer.bundle import Bundle
from halfmask.infer.inference import class_map, probabilities, read_ahead
from halfmask.infer.runs import memory_cure
from halfmask.models.model import Network
from halfmask.progress import Bars
from halfmask.recipe.read import DataRecipe, EvalRecipe, load
from halfmask.suggest.scores import Measure, disagreement, uncertainty

_MOST_PIXELS = 30_000_000  # of an image that is looked at in full
_FEATURE_SIDE = 256  # of the image whose pooled features stand for it, unless the training crop is larger

Pixels = UInt8[np.ndarray, "*T H W C"]


@dataclass(frozen=True)
class Candidates:
    """The images of a run."""

    dataset: Dataset  # that the labeled images belong to
    unlabeled: Dataset  # that the candidates belong to: mostly the same
    candidates: tuple[str, ...]  # ids of images that may be labeled next
    labeled: tuple[str, ...]  # ids of those that the run learned from

    @property
    def elsewhere(self) -> bool:
        """Whether the candidates lie below another root than the labeled images."""
        return self.unlabeled is not self.dataset


@dataclass
class Measurements:
    """What was measured of some images, one entry each."""

    uncertainty: list[float] = field(default_factory=list)  # averaged over the predictors
    disagreement: list[float | None] = field(default_factory=list)  # of the predictors; `None` of a single one
    shares: list[list[float]] = field(default_factory=list)  # expected part of each class
    features: list[np.ndarray] = field(default_factory=list)  # pooled, of the encoder


@dataclass(frozen=True)
class Committee:
    """The networks of a run, which are asked about each image."""

    bundle: Bundle  # of the shipped predictor
    predictors: dict[str, Network]  # all of them, the shipped one first
    protocol: EvalRecipe  # of evaluation
    device: torch.device  # where they are
    measure: Measure  # of uncertainty

    def look(self, image: Pixels, into: Measurements) -> None:
        """Measure one image."""
        pixels = self._pixels(_reduced(image))
        with memory_cure(self.protocol):
            found = [
                probabilities(model, pixels, self.protocol, self.bundle.crop)[0] for model in self.predictors.values()
            ]
        into.uncertainty.append(float(np.mean([uncertainty(shares, self.measure) for shares in found])))
        into.disagreement.append(disagreement(found))
        into.shares.append(found[0].mean((1, 2)).tolist())
        into.features.append(self.features(pixels))

    @torch.inference_mode()
    def features(self, pixels: Float[Tensor, "1 *T C H W"]) -> Float[np.ndarray, " D"]:
        """Pool the coarsest features of the shipped network (of all its models), of a small copy of the image."""
        model = next(iter(self.predictors.values()))
        side = max(_FEATURE_SIDE, self.bundle.crop or 0)
        factor = min(1.0, side / max(pixels.shape[-2:]))
        multiple = model.size_multiple
        size = [max(round(length * factor / multiple), 1) * multiple for length in pixels.shape[-2:]]
        flat = F.interpolate(pixels.flatten(0, -4), size=size, mode="bilinear", antialias=True)
        small = flat.reshape(*pixels.shape[:-2], *size)
        pooled = [member.encode(small)[-1].mean((-2, -1))[0] for member in model.members]
        return np.asarray(torch.cat(pooled).float().cpu().numpy())

    def features_of(self, image: Pixels) -> Float[np.ndarray, " D"]:
        """Pool the features of a decoded image."""
        return self.features(self._pixels(_reduced(image)))

    def draft(self, image: Pixels) -> Integer[np.ndarray, "H W"]:
        """Predict the mask that an annotator begins with."""
        with memory_cure(self.protocol):
            found = class_map(self.bundle.model, self._pixels(image), self.protocol, self.bundle.crop)
        return np.asarray(found[0].cpu().numpy())

    def _pixels(self, image: Pixels) -> Float[Tensor, "1 *T C2 H2 W2"]:
        there = torch.from_numpy(np.moveaxis(image, -1, -3).copy())[None].to(self.device)
        return there.to(self.bundle.model.mean.dtype) / 255


def open_pool(run: Path, data: str | Path | None) -> Candidates:
    """Find candidates and labeled images: those of a run, or of a folder.

    Images that came after the run are candidates too. Where the run used every mask it found, an image that has one
    by now is labeled, and no candidate.

    Raises:
        DataError: no candidate.
        RecipeError: no data, or a run over several domains.
    """
    recipe = load(run / "recipe.yaml").data if (run / "recipe.yaml").is_file() and data is None else None
    if recipe is None:
        if data is None:
            raise RecipeError(f"{run} does not say where data is. Name the folder: --data DIR.")
        dataset = open_dataset(DataRecipe(root=str(data)))
        labeled = tuple(id for id in dataset.ids("train") if dataset.mask_path(id) is not None)
        candidates = _fresh(dataset, {*labeled})
        pool = Candidates(dataset, dataset, candidates, labeled)
    else:
        pool = _pool_of(run, recipe)
    if not pool.candidates:
        raise DataError(
            f"{pool.unlabeled.root}: every image is labeled, or for validation or test. Add images without masks.",
            "H143",
        )
    return pool


def look_at_all(
    committee: Committee, pool: Candidates, ids: Sequence[str], workers: int, quiet: bool
) -> tuple[Measurements, np.ndarray]:
    """Measure the candidates, and give the features of the labeled images, (N, D).

    Raises:
        DataError: an image cannot be read.
    """
    measured, known = Measurements(), []
    with Bars(quiet) as bars:
        count = bars.counter("suggest", len(ids) + len(pool.labeled))
        for image in read_ahead(partial(_read, pool.unlabeled), ids, workers):
            committee.look(image, measured)
            count(1)
        for image in read_ahead(partial(_read, pool.dataset), pool.labeled, workers):
            known.append(committee.features_of(image))
            count(1)
    return measured, np.stack(known) if known else np.zeros((0, len(measured.features[0])))


def _pool_of(run: Path, recipe: DataRecipe) -> Candidates:
    if recipe.domains:
        raise RecipeError(f"{run} was trained on several domains: suggest ranks the images of one. Give --data DIR.")
    dataset = open_dataset(recipe)
    other = unlabeled_dataset(recipe, dataset)
    labeled, unlabeled, val = recorded_lists(
        run / "split.json", "labeled", "unlabeled", "val", cure="Restore it, or give --data DIR."
    ).values()
    used_every_mask = recipe.labeled is None and recipe.split is None
    open_ = [id for id in unlabeled if not (used_every_mask and other is dataset and other.mask_path(id) is not None)]
    fresh = _fresh(dataset, {*labeled, *unlabeled, *val}) if other is dataset else ()
    found = [id for id in (*open_, *fresh) if all(file.exists() for file in other.image_files(id))]
    return Candidates(dataset, other, tuple(sorted(found)), tuple(labeled))


def _fresh(dataset: Dataset, known: set[str]) -> tuple[str, ...]:
    """Return the images without a mask that nobody has used yet."""
    ids = {id for part in ("train", "unlabeled") for id in dataset.ids(part)} - known
    return tuple(sorted(id for id in ids if dataset.mask_path(id) is None))


def _read(dataset: Dataset, id: str) -> Pixels:
    return dataset.read_image(id)


def _reduced(image: Pixels) -> Pixels:
    """Return every second (third, ...) pixel of an image that is too large to be looked at in full."""
    step = int(np.ceil(np.sqrt(image.shape[-3] * image.shape[-2] / _MOST_PIXELS)))
    return image if step <= 1 else np.ascontiguousarray(image[..., ::step, ::step, :])
