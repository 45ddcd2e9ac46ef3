r"""Change detection and classification with few labels: several methods over seeds, with equal steps.

    python benchmarks/change_and_digits.py --task change --data DIR --seeds 0 1 2 --steps 600 \
        --out runs/change --json benchmarks/results/change.json
    python benchmarks/change_and_digits.py --task digits --labeled 20 40 --seeds 0 1 2 --steps 600 \
        --out runs/digits --json benchmarks/results/digits.json

`change`: image pairs of fixed cameras, other scenes in test than in training; the split `1_8_seed<seed>` in the folder
names the labeled pairs. `digits`: the 1797 images of scikit-learn (8x8 pixels, written as 32x32), the last 397 of them
for test.

Every run of a task shares network, crop, batch, optimizer and the choice of labels of its seed; only the method
differs. There is no validation: the last weights are scored, once, on the test part, by changed IoU and F1 or by
accuracy. Finished runs are kept and not repeated, an interrupted one is resumed.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from halfmask.engine.evaluate import evaluate
from halfmask.engine.rundir import environment
from halfmask.engine.train import train
from halfmask.recipe import Recipe, load

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


def recipe_of(options: argparse.Namespace, method: str, labeled: str, seed: int) -> Recipe:
    """Give the recipe of one run; small images suit a CPU."""
    params = [item.partition(".")[2] for item in options.params if item.startswith(f"{method}.")]
    base: dict[str, Any] = {
        "method": {"name": method},
        "optim": {"name": "adamw", "lr": 1e-3},
        "run": {"steps": options.steps, "seed": seed, "accelerator": options.accelerator, "logger": "none"},
    }
    if options.task == "change":
        base["model"] = {"name": "smp", "arch": "linknet", "encoder": {"name": "resnet18"}}
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
    return load(base, [*options.set, *(f"method.{param}" for param in params)])


def run_one(options: argparse.Namespace, method: str, labeled: str, seed: int) -> dict[str, Any]:
    """Train (or resume, or skip) one run and score it on the test part."""
    out = Path(options.out) / f"{method}_{labeled}_{seed}"
    score_file = out / "score.json"
    if score_file.exists():
        return json.loads(score_file.read_text())  # type: ignore[no-any-return]
    began = time.monotonic()
    if (out / "recipe.yaml").exists() and (out / "checkpoints" / "last.ckpt").exists():
        train(None, out, resume=True, quiet=True)
    else:
        train(recipe_of(options, method, labeled, seed), out, overwrite=True, quiet=True)
    minutes = (time.monotonic() - began) / 60
    found = evaluate(out, part="test", quiet=True).to_dict()
    kept = {name: found.get(name, 0.0) for name in SCORES[options.task]}
    score = {"method": method, "labeled": labeled, "seed": seed, "test": kept, "minutes": minutes}
    score_file.write_text(json.dumps(score))
    return score


def table(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reduce the seeds of each method and label count to mean and sample standard deviation of every score."""
    rows = []
    for labeled, method in dict.fromkeys((score["labeled"], score["method"]) for score in scores):
        group = [score for score in scores if (score["labeled"], score["method"]) == (labeled, method)]
        row: dict[str, Any] = {"labeled": labeled, "method": method}
        for name in group[0]["test"]:
            values = [score["test"][name] for score in group]
            spread = statistics.stdev(values) if len(values) > 1 else None
            row[name] = {"mean": statistics.mean(values), "sd": spread, "values": values}
        rows.append(row | {"minutes": statistics.mean(score["minutes"] for score in group)})
    return rows


def write_json(options: argparse.Namespace, rows: list[dict[str, Any]], scores: list[dict[str, Any]]) -> None:
    """Write settings, environment, table and single runs."""
    settings = {name: value for name, value in vars(options).items() if name not in {"out", "root", "json"}}
    settings["data"] = options.data.name if options.data else "scikit-learn digits"
    state = environment()
    kept = {name: state[name] for name in ("python", "cpu_cores", "devices", "packages")}
    content = {"settings": settings, "environment": kept, "rows": rows, "runs": scores}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    """Run everything and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=sorted(SCORES), required=True)
    parser.add_argument("--data", type=Path, help="folder with A/, B/, label/ and splits/; for --task change")
    parser.add_argument("--labeled", nargs="+", help="splits (default 1_8) or numbers of labels (default 20)")
    parser.add_argument("--methods", nargs="+", help="default: supervised, fixmatch, unimatch (change), unimatch_v2")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--out", required=True, type=Path, help="folder of the runs")
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe overrides for every run")
    parser.add_argument("--params", nargs="*", default=[], metavar="METHOD.KEY=VALUE", help="of one method's runs")
    options = parser.parse_args()
    change = options.task == "change"
    if change and options.data is None:
        parser.error("--task change needs --data DIR")
    options.methods = options.methods or ["supervised", "fixmatch", *(["unimatch"] if change else []), "unimatch_v2"]
    options.labeled = options.labeled or (["1_8"] if change else ["20"])
    options.root = options.data if change else write_digits(options.out / "digits")
    scores = []
    for labeled in options.labeled:
        for seed in options.seeds:
            for method in options.methods:
                scores.append(run_one(options, method, labeled, seed))
                print(json.dumps(scores[-1]), flush=True)
    rows = table(scores)
    for row in rows:
        name = SCORES[options.task][0]
        spread = "" if row[name]["sd"] is None else f" ± {row[name]['sd']:.1%}"
        mean = f"{name} {row[name]['mean']:.1%}{spread}"
        print(f"{row['labeled']:>5} labeled  {row['method']:<12} {mean}  {row['minutes']:.1f} min")
    if options.json:
        write_json(options, rows, scores)


if __name__ == "__main__":
    main()
