r"""Train several methods with few masks of one dataset, over seeds, with equal steps; test once at the end.

    python benchmarks/few_masks.py --data DIR --labeled 2 4 --methods supervised mean_teacher fixmatch \
        --controls --seeds 0 1 2 --steps 400 --out runs/facades --json benchmarks/results/facades.json

Every run shares network, crop, batch, optimizer and the choice of labeled images of its seed; only the method differs,
and of a control (`--controls`) only the weight of the unlabeled images' loss. There is no validation set: the last
weights are scored, once, on the test part. Finished runs are kept and not repeated, an interrupted one is resumed.
"""

import argparse
from pathlib import Path
from typing import Any

from _runs import (
    MODELS,
    add_method_options,
    add_views,
    forms_of,
    label_and_method,
    overrides_of,
    parser_of,
    percent,
    resized,
    run_all,
    run_once,
    table,
    training,
    views,
    write_json,
)

from halfmask.infer.evaluate import evaluate
from halfmask.recipe.read import Recipe, load
from halfmask.run.train import train


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `recipe_of` reads, besides those of every benchmark and --params."""
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--resize", type=int, metavar="SIDE", help="squeeze all images to SIDE x SIDE pixels first")
    add_views(parser, scale=(0.2, 0.5))
    parser.add_argument("--eval-scale", type=float, default=0.3125, help="of the image, while testing")


def root_of(options: argparse.Namespace) -> Path:
    """Give the folder of the images, squeezed if that is asked for."""
    return resized(options.data, options.resize, options.out) if options.resize else options.data  # type: ignore[no-any-return]


def recipe_of(options: argparse.Namespace, form: str, labeled: int, seed: int) -> Recipe:
    """Give the recipe of one run; small images suit a CPU."""
    label, method = label_and_method(form)
    base: dict[str, Any] = {
        "method": {"name": method},
        "model": MODELS[options.model],
        "data": {
            "root": str(options.root),
            "labeled": labeled,
            "labeled_seed": seed,
            "val": "none",
            **views(options),
        },
        "eval": {"scales": [options.eval_scale]},
        **training(options, seed),
    }
    return load(base, [*options.set, *overrides_of(options, label, method)])


def run_one(options: argparse.Namespace, form: str, labeled: int, seed: int) -> dict[str, Any]:
    """Train one run and score it on the test part."""
    label, _ = label_and_method(form)
    out = options.out / f"{label}_{labeled}_{seed}"
    return run_once(
        out,
        lambda: train(recipe_of(options, form, labeled, seed), out, overwrite=True, quiet=True),
        lambda minutes: {
            "method": label,
            "labeled": labeled,
            "seed": seed,
            "test_miou": evaluate(out, part="test", quiet=True).miou,
            "minutes": minutes,
        },
    )


def main() -> None:
    """Run everything and write the JSON file."""
    parser = parser_of(__doc__, steps=400, model="linknet")
    add_recipe_options(parser)
    parser.add_argument("--labeled", nargs="+", type=int, default=[2, 4])
    add_method_options(parser, default=["supervised", "mean_teacher", "fixmatch"])
    options = parser.parse_args()
    options.root = root_of(options)
    scores = run_all(
        lambda labeled, seed, form: run_one(options, form, labeled, seed),
        options.labeled,
        options.seeds,
        forms_of(options),
    )
    rows = table(scores, "labeled", "method")
    for row in rows:
        print(f"{row['labeled']:>4} labeled  {row['method']:<14} {percent(row)}  {row['minutes']:.1f} min")
    write_json(options, options.data.name, rows, scores)


if __name__ == "__main__":
    main()
