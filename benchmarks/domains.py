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
import time
from pathlib import Path
from typing import Any

from few_masks import MODELS, resized

from halfmask.engine.evaluate import evaluate
from halfmask.engine.rundir import environment
from halfmask.engine.train import train
from halfmask.recipe import Recipe, load

# What the class files do not say, and CCT's guided perturbations need.
FOREGROUND = {
    "camvid": ["Pole", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"],
    "facades": ["Door", "Shop", "Balcony", "Window"],
}


def recipe_of(options: argparse.Namespace, method: str, domains: list[str], seed: int) -> Recipe:
    """Give the recipe of one run over one or several domains."""
    params = dict(item.partition(".")[2].split("=", 1) for item in options.params if item.startswith(f"{method}."))
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
    base: dict[str, Any] = {
        "method": entry,
        "model": MODELS[options.model],
        "data": {
            "crop": options.crop,
            "batch": {"labeled": options.batch, "unlabeled": options.batch},
            "scale": list(options.scale),
            "workers": 0,
        },
        "optim": {"name": "adamw", "lr": 1e-3},
        "run": {
            "steps": options.steps * len(domains),
            "seed": seed,
            "accelerator": options.accelerator,
            "logger": "none",
        },
    }
    if len(domains) > 1:
        base["method"] = {"name": "multi_domain", "method": entry, "batch_norm": options.batch_norm}
        base["data"]["domains"] = sources
    else:
        base["data"] |= sources[domains[0]]
    return load(base, options.set)


def run_one(options: argparse.Namespace, method: str, domains: list[str], seed: int) -> list[dict[str, Any]]:
    """Train (or resume, or skip) one run and score it on every domain's test part."""
    out = Path(options.out) / f"{method}_{'+'.join(domains)}_{options.labeled}_{seed}"
    score_file = out / "score.json"
    if score_file.exists():
        return json.loads(score_file.read_text())  # type: ignore[no-any-return]
    began = time.monotonic()
    if (out / "recipe.yaml").exists() and (out / "checkpoints" / "last.ckpt").exists():
        train(None, out, resume=True, quiet=True)
    else:
        train(recipe_of(options, method, domains, seed), out, overwrite=True, quiet=True)
    minutes = (time.monotonic() - began) / 60
    scores = [
        {
            "domain": name,
            "method": method,
            "trained": "alone" if len(domains) == 1 else "together",
            "seed": seed,
            "test_miou": evaluate(out / name if len(domains) > 1 else out, part="test", quiet=True).miou,
            "minutes": minutes / len(domains),
        }
        for name in domains
    ]
    score_file.write_text(json.dumps(scores))
    return scores


def table(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reduce the seeds to mean and sample standard deviation, per domain and for the mean over domains."""
    seeds = sorted({score["seed"] for score in scores})
    kinds = dict.fromkeys((score["method"], score["trained"]) for score in scores)
    names = list(dict.fromkeys(score["domain"] for score in scores))
    rows = []
    for method, trained in kinds:
        by_seed = {
            name: [
                score["test_miou"]
                for seed in seeds
                for score in scores
                if (score["method"], score["trained"], score["domain"], score["seed"]) == (method, trained, name, seed)
            ]
            for name in names
        }
        by_seed["mean"] = [statistics.mean(values) for values in zip(*by_seed.values(), strict=True)]
        for name, values in by_seed.items():
            sd = statistics.stdev(values) if len(values) > 1 else None
            row = {"domain": name, "method": method, "trained": trained, "mean": statistics.mean(values)}
            rows.append(row | {"sd": sd, "values": values})
    return rows


def options_of() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, nargs=2, type=Path, help="folders of the two datasets")
    parser.add_argument("--labeled", type=int, default=20, help="masks of each")
    parser.add_argument("--methods", nargs="+", default=["supervised", "cct"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600, help="of each domain")
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--batch-norm", choices=("shared", "own"), default="shared")
    parser.add_argument("--side", type=int, default=128, help="images are squeezed to SIDE x SIDE pixels first")
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--scale", nargs=2, type=float, default=[0.75, 1.5])
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--out", required=True, help="folder of the runs")
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe overrides for every run")
    parser.add_argument(
        "--params",
        nargs="*",
        default=['cct.heads="lite"', "cct.unlabeled_weight=10.0"],
        metavar="METHOD.KEY=JSON",
        help="of one method's runs",
    )
    options = parser.parse_args()
    options.roots = {path.name: resized(path, options.side, Path(options.out)) for path in options.data}
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
        spread = "" if row["sd"] is None else f" ± {row['sd']:.1%}"
        print(f"{row['domain']:<10} {row['method']:<12} {row['trained']:<9} {row['mean']:.1%}{spread}")
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name not in {"out", "roots", "json"}}
        settings["data"] = names
        state = environment()
        kept = {name: state[name] for name in ("python", "cpu_cores", "devices", "packages")}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"settings": settings, "environment": kept, "rows": rows, "runs": scores}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
