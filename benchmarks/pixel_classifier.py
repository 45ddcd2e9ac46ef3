r"""A random forest on multi-scale features of each pixel: what interactive labeling tools offer, as a baseline.

    python benchmarks/pixel_classifier.py --data DIR --labeled 4 --seeds 0 1 2 --json benchmarks/results/forest.json

Intensity, edges and texture at several scales (scikit-image), a forest of 100 trees (scikit-learn), the same masks as
`few_masks.py` and `defaults.py` draw for a seed, the same test images. Nothing is tuned; unlabeled images are not used.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _runs import percent, run_all, table, write_json
from numpy.typing import NDArray
from PIL import Image
from skimage.feature import multiscale_basic_features
from sklearn.ensemble import RandomForestClassifier

from halfmask.data.contract import Dataset
from halfmask.data.splits.split import open_dataset, part_ids, resolve_split
from halfmask.infer.metrics import ConfusionMatrix
from halfmask.recipe.read import load

_PIXELS = 20_000  # per labeled image: more change the forest little and cost minutes


def features(image: NDArray[Any], side: int) -> NDArray[Any]:
    """Return (H, W, F) features of an image whose long side is brought to `side` pixels."""
    scale = min(1.0, side / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    found: NDArray[Any] = multiscale_basic_features(small, sigma_min=1, sigma_max=16, channel_axis=-1)
    return found


def samples(dataset: Dataset, ids: Sequence[str], side: int, seed: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield features (N, F) and classes (N,) of some labeled pixels of each image."""
    rng = np.random.default_rng(seed)
    for id in ids:
        values = features(np.asarray(dataset.read_image(id)), side)
        size = (values.shape[1], values.shape[0])
        target = np.asarray(Image.fromarray(np.asarray(dataset.read_target(id))).resize(size, Image.Resampling.NEAREST))
        known = np.flatnonzero(target < dataset.task.n_classes)
        chosen = rng.choice(known, min(len(known), _PIXELS), replace=False)
        yield values.reshape(-1, values.shape[-1])[chosen], target.reshape(-1)[chosen]


def run_one(options: argparse.Namespace, labeled: int, seed: int) -> dict[str, Any]:
    """Train one forest and score it on the test part, at the images' own size."""
    began = time.monotonic()
    recipe = load({"data": {"root": str(options.data), "labeled": labeled, "labeled_seed": seed, "val": "none"}}).data
    dataset = open_dataset(recipe)
    split = resolve_split(recipe, dataset)
    values, classes = zip(*samples(dataset, split.labeled, options.side, seed), strict=True)
    forest = RandomForestClassifier(100, max_depth=16, max_samples=0.3, n_jobs=options.jobs, random_state=seed)
    forest.fit(np.concatenate(values), np.concatenate(classes))
    confusion = ConfusionMatrix(dataset.task.n_classes, dataset.task.ignore_index)
    test = part_ids(recipe, dataset, "test")
    dataset.sealed -= frozenset(test)
    for id in test:
        image, target = np.asarray(dataset.read_image(id)), np.asarray(dataset.read_target(id))
        found = features(image, options.side)
        predicted = forest.predict(found.reshape(-1, found.shape[-1])).reshape(found.shape[:2]).astype(np.uint8)
        full = Image.fromarray(predicted).resize((target.shape[1], target.shape[0]), Image.Resampling.NEAREST)
        confusion.update(torch.from_numpy(np.asarray(full).copy()), torch.from_numpy(target.astype(np.int64)))
    return {
        "method": "random_forest",
        "labeled": labeled,
        "seed": seed,
        "test_miou": confusion.scores(dataset.task.classes).miou,
        "minutes": (time.monotonic() - began) / 60,
    }


def main() -> None:
    """Run everything and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--labeled", nargs="+", type=int, default=[4])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--side", type=int, default=256, help="long side that images are shrunk to")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    scores = run_all(lambda labeled, seed: run_one(options, labeled, seed), options.labeled, options.seeds)
    for row in (rows := table(scores, "labeled", "method")):
        print(f"{row['labeled']:>4} labeled  random_forest  {percent(row)}  {row['minutes']:.1f} min")
    write_json(options, options.data.name, rows, scores)


if __name__ == "__main__":
    main()
