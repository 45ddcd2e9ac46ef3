r"""Train two datasets with label spaces of their own, each alone and both over one encoder; test once at the end.

    python benchmarks/domains.py --data DIR/camvid DIR/facades --labeled 20 --methods supervised cct \
        --seeds 0 1 2 --steps 600 --out runs/domains --json benchmarks/results/domains.json

Runs of one seed share network, crop, batch, optimizer and labeled images. `--steps` counts each domain's own steps: a
run over both takes twice as many, half of them on each, so every domain sees the same batches alone and together. There
is no validation set: the last weights are scored, once, on each test part. Images are squeezed to 128 x 128 pixels.
Finished runs are kept and not repeated, an interrupted one is resumed.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from _runs import (
    MODELS,
    add_views,
    grouped,
    over_seeds,
    params_of,
    parser_of,
    percent,
    resized,
    run_once,
    training,
    views,
    write_json,
)

from halfmask.infer.evaluate import evaluate
from halfmask.recipe.read import Recipe, load
from halfmask.run.train import train

# What the class files do not say, and CCT's guided perturbations need.
FOREGROUND = {
    "camvid": ["Pole", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"],
    "facades": ["Door", "Shop", "Balcony", "Window"],
}


def recipe_of(options: argparse.Namespace, method: str, domains: list[str], seed: int) -> Recipe:
    """Give the recipe of one run over one or several domains."""
    params = dict(param.split("=", 1) for param in params_of(options, method))
    entry = {"name": method, **{key: json.loads(value) for key, value in params.items()}}
    sources: dict[str, Any] = {
        name: {
            "root": str(options.roots[name]),
            "dataset": {"name": "folder", "foreground": FOREGROUND.get(name)},
            "labeled": options.labeled,
            "labeled_seed": seed,
            "val": "none",
        }
        for name in domains
    }
    base: dict[str, Any] = {"method": entry, "model": MODELS[options.model], "data": views(options)}
    base |= training(options, seed)
    base["run"]["steps"] *= len(domains)
    if len(domains) > 1:
        base["method"] = {"name": "multi_domain", "method": entry, "batch_norm": options.batch_norm}
        base["data"]["domains"] = sources
    else:
        base["data"] |= sources[domains[0]]
    return load(base, options.set)


def run_one(options: argparse.Namespace, method: str, domains: list[str], seed: int) -> list[dict[str, Any]]:
    """Train one run and score it on every domain's test part."""
    out = options.out / f"{method}_{'+'.join(domains)}_{options.labeled}_{seed}"
    return run_once(
        out,
        lambda: train(recipe_of(options, method, domains, seed), out, overwrite=True, quiet=True),
        lambda minutes: [
            {
                "domain": name,
                "method": method,
                "trained": "alone" if len(domains) == 1 else "together",
                "seed": seed,
                "test_miou": evaluate(out / name if len(domains) > 1 else out, part="test", quiet=True).miou,
                "minutes": minutes / len(domains),
            }
            for name in domains
        ],
    )


def table(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reduce the seeds to mean and sample standard deviation, per domain and for the mean over domains."""
    rows = []
    for (method, trained), both in grouped(scores, "method", "trained").items():
        by_domain = {
            name: [score["test_miou"] for score in sorted(group, key=lambda score: score["seed"])]
            for (name,), group in grouped(both, "domain").items()
        }
        by_domain["mean"] = [statistics.mean(values) for values in zip(*by_domain.values(), strict=True)]
        for name, values in by_domain.items():
            rows.append({"domain": name, "method": method, "trained": trained, **over_seeds(values)})
    return rows


def options_of() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(__doc__, steps=600, model="small")
    parser.add_argument("--data", required=True, nargs=2, type=Path, help="folders of the two datasets")
    parser.add_argument("--labeled", type=int, default=20, help="masks of each")
    parser.add_argument("--methods", nargs="+", default=["supervised", "cct"])
    parser.add_argument("--batch-norm", choices=("shared", "own"), default="shared")
    parser.add_argument("--side", type=int, default=128, help="images are squeezed to SIDE x SIDE pixels first")
    add_views(parser, scale=(0.75, 1.5))
    parser.add_argument(
        "--params",
        nargs="*",
        default=['cct.heads="lite"', "cct.unlabeled_weight=10.0"],
        metavar="METHOD.KEY=JSON",
        help="of one method's runs",
    )
    options = parser.parse_args()
    options.roots = {path.name: resized(path, options.side, options.out) for path in options.data}
    return options


def main() -> None:
    """Run everything and write the JSON file."""
    options = options_of()
    names = [path.name for path in options.data]
    scores: list[dict[str, Any]] = []
    for seed in options.seeds:
        for method in options.methods:
            for domains in (*([name] for name in names), names):
                scores += run_one(options, method, domains, seed)
                print(json.dumps(scores[-len(domains) :]), flush=True)
    rows = table(scores)
    for row in rows:
        print(f"{row['domain']:<10} {row['method']:<12} {row['trained']:<9} {percent(row)}")
    write_json(options, names, rows, scores)


if __name__ == "__main__":
    main()
