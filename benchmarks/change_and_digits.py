r"""Change detection and classification with few labels: several methods over seeds, with equal steps.

    python benchmarks/change_and_digits.py --task change --data DIR --seeds 0 1 2 --steps 600 \
        --out runs/change --json benchmarks/results/change.json
    python benchmarks/change_and_digits.py --task digits --labeled 20 40 --seeds 0 1 2 --steps 600 \
        --out runs/digits --json benchmarks/results/digits.json

`change`: image pairs of fixed cameras, other scenes in test than in training; the split `1_8_seed<seed>` in the folder
names the labeled pairs. `digits`: the 1797 images of scikit-learn (8x8 pixels, written as 32x32), the last 397 of them
for test.

Every run of a task shares network, crop, batch, optimizer and the choice of labels of its seed; only the method
differs: by default supervised, fixmatch, unimatch (of `change` only) and unimatch_v2. There is no validation: the last
weights are scored, once, on the test part, by changed IoU and F1 or by accuracy. Finished runs are kept and not
repeated, an interrupted one is resumed.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from _runs import (
    MODELS,
    add_method_options,
    forms_of,
    grouped,
    label_and_method,
    over_seeds,
    overrides_of,
    parser_of,
    percent,
    run_all,
    run_once,
    training,
    write_json,
)
from PIL import Image

from halfmask.infer.evaluate import evaluate
from halfmask.recipe.read import Recipe, load
from halfmask.run.train import train

TEST_DIGITS = 397
SCORES = {"change": ("changed_iou", "f1", "acc"), "digits": ("acc", "class_acc")}


def write_digits(root: Path) -> Path:
    """Write scikit-learn's digits as one folder per class."""
    if root.exists():
        return root
    from sklearn.datasets import load_digits

    bunch = load_digits()
    part_folder = root.with_suffix(".part")
    for number, (pixels, label) in enumerate(zip(bunch.images, bunch.target, strict=True)):
        part = "test" if number >= len(bunch.target) - TEST_DIGITS else "train"
        path = part_folder / part / str(label) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
        image.resize((32, 32), Image.Resampling.BILINEAR).save(path)
    part_folder.rename(root)
    return root


def recipe_of(options: argparse.Namespace, form: str, labeled: str, seed: int) -> Recipe:
    """Give the recipe of one run; small images suit a CPU."""
    label, method = label_and_method(form)
    base: dict[str, Any] = {"method": {"name": method}, **training(options, seed)}
    if options.task == "change":
        base["model"] = MODELS[options.model]
        base["data"] = {
            "dataset": "change_folder", "split": f"{labeled}_seed{seed}", "crop": 128, "scale": [0.4, 0.8],
            "batch": {"labeled": 8, "unlabeled": 8},
        }  # fmt: skip
        base["eval"] = {"scales": [0.6]}
    else:
        encoder = {"name": "resnet", "depth": 18, "stem": "plain", "output_stride": 32, "width": 16}
        base["model"] = {"encoder": encoder, "decoder": {"name": "pool"}}
        base["data"] = {
            "dataset": "class_folder", "labeled": int(labeled), "labeled_seed": seed, "crop": 32,
            "scale": [0.85, 1.15], "flip": 0.0, "batch": {"labeled": 32, "unlabeled": 64},
        }  # fmt: skip
    base["data"] |= {"root": str(options.root), "val": "none", "workers": 0}
    return load(base, [*options.set, *overrides_of(options, label, method)])


def run_one(options: argparse.Namespace, form: str, labeled: str, seed: int) -> dict[str, Any]:
    """Train one run and score it on the test part."""
    label, _ = label_and_method(form)
    out = options.out / f"{label}_{labeled}_{seed}"

    def score(minutes: float) -> dict[str, Any]:
        found = evaluate(out, part="test", quiet=True).to_dict()
        kept = {metric: found.get(metric, 0.0) for metric in SCORES[options.task]}
        return {"method": label, "labeled": labeled, "seed": seed, "test": kept, "minutes": minutes}

    return run_once(out, lambda: train(recipe_of(options, form, labeled, seed), out, overwrite=True, quiet=True), score)


def table(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reduce the seeds of each method and label count to mean and sample standard deviation of every score."""
    rows = []
    for (labeled, method), group in grouped(scores, "labeled", "method").items():
        row: dict[str, Any] = {"labeled": labeled, "method": method}
        for name in group[0]["test"]:
            row[name] = over_seeds([score["test"][name] for score in group])
        rows.append(row | {"minutes": statistics.mean(score["minutes"] for score in group)})
    return rows


def options_of() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(__doc__, steps=600, model="linknet")
    parser.add_argument("--task", choices=sorted(SCORES), required=True, help="--model is of `change`")
    parser.add_argument("--data", type=Path, help="folder with A/, B/, label/ and splits/; for --task change")
    parser.add_argument("--labeled", nargs="+", help="splits (default 1_8) or numbers of labels (default 20)")
    add_method_options(parser, default=None)
    options = parser.parse_args()
    change = options.task == "change"
    if change and options.data is None:
        parser.error("--task change needs --data DIR")
    if not change:
        options.model = None
    options.methods = options.methods or ["supervised", "fixmatch", *(["unimatch"] if change else []), "unimatch_v2"]
    options.labeled = options.labeled or (["1_8"] if change else ["20"])
    options.root = options.data if change else write_digits(options.out / "digits")
    return options


def main() -> None:
    """Run everything and write the JSON file."""
    options = options_of()
    scores = run_all(
        lambda labeled, seed, form: run_one(options, form, labeled, seed),
        options.labeled,
        options.seeds,
        forms_of(options),
    )
    rows = table(scores)
    name = SCORES[options.task][0]
    for row in rows:
        found = f"{name} {percent(row[name])}"
        print(f"{row['labeled']:>5} labeled  {row['method']:<12} {found}  {row['minutes']:.1f} min")
    write_json(options, options.data.name if options.data else "scikit-learn digits", rows, scores)


if __name__ == "__main__":
    main()
