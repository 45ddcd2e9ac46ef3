r"""Is an image that `halfmask suggest` names worth more than a random one? The same first run, more masks, over seeds.

    python benchmarks/suggest.py --data DIR --labeled 2 --more 2 --method mean_teacher --seeds 0 1 2 --steps 400 \
        --model small --out runs/suggest --json benchmarks/results/suggest.json

For each seed a first run learns from a few drawn masks. Then as many images more are labeled: those that `suggest`
names by that run, and, several times, random ones. From each list a run of the same length begins anew (or, with
--continue, with the weights of the first). There is no validation set: the last weights are scored, once, on the test
part. Finished runs are kept and not repeated, an interrupted one is resumed.
"""

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

from _runs import (
    MODELS,
    add_params,
    add_views,
    over_seeds,
    overrides_of,
    parser_of,
    percent,
    resized,
    run_once,
    training,
    views,
    write_json,
)

from halfmask.data.splits.split import write_list
from halfmask.infer.evaluate import evaluate
from halfmask.recipe.read import Recipe, load
from halfmask.run.train import train
from halfmask.suggest.scores import Weights
from halfmask.suggest.suggest import suggest


def recipe_of(options: argparse.Namespace, seed: int) -> Recipe:
    """Give the recipe of the first run; small images suit a CPU."""
    base: dict[str, Any] = {
        "method": {"name": options.method},
        "model": MODELS[options.model],
        "data": {
            "root": str(options.root),
            "labeled": options.labeled,
            "labeled_seed": seed,
            "val": "none",
            **views(options),
        },
        "eval": {"scales": [options.eval_scale]},
        **training(options, seed),
    }
    return load(base, [*options.set, *overrides_of(options, options.method, options.method)])


def finish(out: Path, recipe: Recipe, begin: Path | None = None) -> dict[str, Any]:
    """Train one run, from the weights of another if one is given, and score it on the test part."""

    def start() -> None:
        if begin is None:
            train(recipe, out, overwrite=True, quiet=True)
            return
        changed = [f"data.labeled={recipe.data.labeled}", "data.val=none"]
        train(None, out, resume_from=begin, overrides=changed, overwrite=True, quiet=True)

    return run_once(
        out,
        start,
        lambda minutes: {"test_miou": evaluate(out, part="test", quiet=True).miou, "minutes": minutes},
    )


def random_list(first: Path, out: Path, more: int, seed: int) -> tuple[Path, list[str]]:
    """Draw images that the first run did not have labeled, and write them with those it had."""
    split = json.loads((first / "split.json").read_text())
    drawn = random.Random(seed).sample(sorted(split["unlabeled"]["ids"]), more)
    write_list(out, [*split["labeled"]["ids"], *drawn])
    return out, drawn


def run_seed(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Give the scores of one seed: the first run, the suggested images, the random ones."""
    folder = options.out / f"seed{seed}"
    first = folder / "first"
    recipe = recipe_of(options, seed)
    scores = [{"arm": "first", "seed": seed, **finish(first, recipe)}]
    lists = []
    chosen_file = first / "suggest" / "suggest.json"
    if not chosen_file.exists():
        suggest(first, options.more, weights=Weights(*options.weights), measure=options.measure, quiet=True)
    lists.append(("suggest", first / "suggest" / "labeled.txt", json.loads(chosen_file.read_text())["chosen"]))
    for draw in range(options.draws):
        path, drawn = random_list(first, folder / f"random{draw}.txt", options.more, 1000 * seed + draw)
        lists.append(("random", path, drawn))
    for number, (arm, path, added) in enumerate(lists):
        listed = load(recipe.model_dump(mode="json"), {"data.labeled": str(path)})
        out = folder / (arm if arm == "suggest" else f"random{number - 1}")
        found = finish(out, listed, first if options.continue_ else None)
        scores.append({"arm": arm, "seed": seed, "added": added, **found})
    return scores


def table(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reduce to mean and sample standard deviation over seeds, and the difference within each seed."""
    seeds = sorted({score["seed"] for score in scores})
    by_seed = {
        arm: [statistics.mean(s["test_miou"] for s in scores if (s["arm"], s["seed"]) == (arm, seed)) for seed in seeds]
        for arm in ("first", "suggest", "random")
    }
    pairs = zip(by_seed["suggest"], by_seed["random"], strict=True)
    by_seed["suggest - random"] = [chosen - drawn for chosen, drawn in pairs]
    return [{"images": name, **over_seeds(values)} for name, values in by_seed.items()]


def options_of() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(__doc__, steps=400, model="small")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--resize", type=int, metavar="SIDE", help="squeeze all images to SIDE x SIDE pixels first")
    add_views(parser, scale=(0.2, 0.5))
    parser.add_argument("--eval-scale", type=float, default=0.3125, help="of the image, while testing")
    add_params(parser)
    parser.add_argument("--labeled", type=int, default=2, help="masks of the first run")
    parser.add_argument("--more", type=int, default=2, help="masks that are added")
    parser.add_argument("--draws", type=int, default=3, help="random lists per seed; their scores are averaged")
    parser.add_argument("--method", default="mean_teacher")
    parser.add_argument("--weights", nargs=4, type=float, default=[1, 1, 1, 1], metavar="X", help=str(Weights._fields))
    parser.add_argument("--measure", choices=("entropy", "margin"), default="entropy")
    parser.add_argument("--continue", dest="continue_", action="store_true", help="begin with the first run's weights")
    options = parser.parse_args()
    options.root = resized(options.data, options.resize, options.out) if options.resize else options.data
    return options


def main() -> None:
    """Run everything and write the JSON file."""
    options = options_of()
    scores: list[dict[str, Any]] = []
    for seed in options.seeds:
        for score in run_seed(options, seed):
            scores.append(score)
            print(json.dumps(score), flush=True)
    rows = table(scores)
    for row in rows:
        print(f"{row['images']:<18} {percent(row)}")
    write_json(options, options.data.name, rows, scores)


if __name__ == "__main__":
    main()
