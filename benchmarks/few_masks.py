r"""Train several methods with few masks of one dataset, over seeds, with equal steps; test once at the end.

    python benchmarks/few_masks.py --data DIR --labeled 2 4 --methods supervised mean_teacher fixmatch \
        --seeds 0 1 2 --steps 400 --out runs/facades --json benchmarks/results/facades.json

Every run shares network, crop, batch, optimizer and the choice of labeled images of its seed; only the method
differs. There is no validation set: the last weights are scored, once, on the test part. Finished runs are kept and
not repeated, an interrupted one is resumed.
"""

import argparse
import json
import shlex
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from halfmask.data.splits import open_dataset
from halfmask.engine.evaluate import evaluate
from halfmask.engine.rundir import environment
from halfmask.engine.train import train
from halfmask.recipe import DataRecipe, Recipe, load

MODELS: dict[str, dict[str, Any]] = {
    "linknet": {"name": "smp", "arch": "linknet", "encoder": {"name": "resnet18"}},
    # A ResNet-18 at a quarter of its width: four times faster on a CPU.
    "small": {
        "encoder": {"name": "resnet", "depth": 18, "width": 16, "stem": "plain", "output_stride": 16},
        "decoder": {"name": "deeplabv3plus", "rates": [2, 4, 6], "aspp": 48, "low": 16, "embedding": 48},
    },
    "mit": {"encoder": {"name": "mit", "size": "b0"}, "decoder": {"name": "segformer", "embedding": 128}},
}


def resized(source: Path, side: int, out: Path) -> Path:
    """Write a copy of a dataset with all images squeezed to `side` x `side` pixels (masks by nearest neighbor)."""
    target = out / f"{source.name}_{side}"
    if target.exists():
        return target
    dataset = open_dataset(DataRecipe(root=str(source)))
    part_folder = target.with_suffix(".part")
    for part in ("train", "val", "test"):
        for id in dataset.ids(part):
            pairs = (
                ("images", dataset.read_image(id), Image.Resampling.BILINEAR),
                ("masks", dataset.read_target(id), Image.Resampling.NEAREST),
            )
            for folder, pixels, filter in pairs:
                path = part_folder / folder / part / f"{Path(id).stem}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).resize((side, side), filter).save(path)
    shutil.copy(source / "classes.txt", part_folder / "classes.txt")
    part_folder.rename(target)
    return target


def recipe_of(options: argparse.Namespace, method: str, labeled: int, seed: int) -> Recipe:
    """Give the recipe of one run; small images suit a CPU."""
    label, _, name = method.partition("=")
    params = [item.partition(".")[2] for item in options.params if item.startswith(f"{label}.")]
    base: dict[str, Any] = {
        "method": {"name": name or label},
        "model": MODELS[options.model],
        "data": {
            "root": str(options.root),
            "labeled": labeled,
            "labeled_seed": seed,
            "val": "none",
            "crop": options.crop,
            "batch": {"labeled": options.batch, "unlabeled": options.batch},
            "scale": list(options.scale),
            "workers": 0,
        },
        "optim": {"name": "adamw", "lr": 1e-3},
        "eval": {"scales": [options.eval_scale]},
        "run": {"steps": options.steps, "seed": seed, "accelerator": options.accelerator, "logger": "none"},
    }
    return load(base, [*options.set, *(p if p.startswith("model.") else f"method.{p}" for p in params)])


def run_one(options: argparse.Namespace, method: str, labeled: int, seed: int) -> dict[str, Any]:
    """Train (or resume, or skip) one run and score it on the test part."""
    name = method.partition("=")[0]
    out = Path(options.out) / f"{name}_{labeled}_{seed}"
    score_file = out / "score.json"
    if score_file.exists():
        return json.loads(score_file.read_text())  # type: ignore[no-any-return]
    began = time.monotonic()
    if (out / "recipe.yaml").exists() and (out / "checkpoints" / "last.ckpt").exists():
        train(None, out, resume=True, quiet=True)
    else:
        train(recipe_of(options, method, labeled, seed), out, overwrite=True, quiet=True)
    minutes = (time.monotonic() - began) / 60
    scores = evaluate(out, part="test")
    score = {"method": name, "labeled": labeled, "seed": seed, "test_miou": scores.miou, "minutes": minutes}
    score_file.write_text(json.dumps(score))
    return score


def table(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reduce the seeds of each method and label count to mean and sample standard deviation."""
    rows = []
    for labeled, method in dict.fromkeys((score["labeled"], score["method"]) for score in scores):
        group = [score for score in scores if (score["labeled"], score["method"]) == (labeled, method)]
        values = [score["test_miou"] for score in group]
        rows.append(
            {
                "labeled": labeled,
                "method": method,
                "mean": statistics.mean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else None,
                "values": values,
                "minutes": statistics.mean(score["minutes"] for score in group),
            }
        )
    return rows


def command_line() -> str:
    """Give the command that was typed, without this machine's folders."""
    words, place = [], {"--data": "DIR", "--out": "runs/few_masks"}
    previous = ""
    for word in sys.argv[1:]:
        shown = f"{place[previous]}/{Path(word).name}" if previous == "--data" else place.get(previous, word)
        words.append(shlex.quote(shown))
        previous = word
    return " ".join(["python benchmarks/few_masks.py", *words])


def main() -> None:
    """Run everything and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--labeled", nargs="+", type=int, default=[2, 4])
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["supervised", "mean_teacher", "fixmatch"],
        help="names, or LABEL=NAME for a second form of a method, whose --params then start with the label",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8, help="labeled and as many unlabeled images per step")
    parser.add_argument("--model", choices=MODELS, default="linknet")
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--scale", nargs=2, type=float, default=[0.2, 0.5], help="of the long side, while training")
    parser.add_argument("--eval-scale", type=float, default=0.3125, help="of the image, while testing")
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--out", required=True, help="folder of the runs")
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe overrides for every run")
    parser.add_argument(
        "--params",
        nargs="*",
        default=[],
        metavar="METHOD.KEY=VALUE",
        help="of one method's runs (model.KEY: its network)",
    )
    parser.add_argument("--resize", type=int, metavar="SIDE", help="squeeze all images to SIDE x SIDE pixels first")
    options = parser.parse_args()
    options.root = resized(options.data, options.resize, Path(options.out)) if options.resize else options.data
    scores = []
    for labeled in options.labeled:
        for seed in options.seeds:
            for method in options.methods:
                scores.append(run_one(options, method, labeled, seed))
                print(json.dumps(scores[-1]), flush=True)
    rows = table(scores)
    for row in rows:
        spread = "" if row["sd"] is None else f" ± {row['sd']:.1%}"
        print(f"{row['labeled']:>4} labeled  {row['method']:<14} {row['mean']:.1%}{spread}  {row['minutes']:.1f} min")
    if options.json:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
        settings["data"] = options.data.name
        settings.pop("out")
        settings.pop("root")
        settings.pop("json")
        state = environment()
        kept = {name: state[name] for name in ("python", "cpu_cores", "devices", "packages")}
        content = {"command": command_line(), "settings": settings, "environment": kept, "rows": rows, "runs": scores}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
