r"""What do image-level tags of unlabeled images add? Supervised, CCT, and CCT with tags; test once at the end.

    python benchmarks/weak_tags.py --data DIR/clothing_weak --labeled 60 --seeds 0 1 2 --steps 1000 \
        --out runs/tags --json benchmarks/results/weak_tags.json

All three see the same masks, CCT also the images without one, CCT with tags what people say these show
(`tags_weak.csv`). Runs of one seed share network, crop, batch, optimizer and steps; the classifier that turns tags into
pseudo-masks takes `--cam-steps` of its own. There is no validation set: the last weights are scored, once, on the test
part. Images are squeezed to 128 x 128 pixels. Finished runs are kept and not repeated, an interrupted one is resumed.
"""

import argparse
import csv
import json
import statistics
import time
from pathlib import Path
from typing import Any

from few_masks import MODELS, resized
from PIL import Image

from halfmask.engine.evaluate import evaluate
from halfmask.engine.rundir import environment
from halfmask.engine.train import train
from halfmask.recipe import Recipe, load

FORMS = ("supervised", "cct", "cct+tags")


def resized_with_tags(source: Path, side: int, out: Path) -> Path:
    """Write a small copy of the dataset, and of the tagged images with their tag file."""
    root = resized(source, side, out)
    target = root / "tags_weak.csv"
    if target.exists():
        return root
    with (source / "tags_weak.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    lines = [",".join(header)]
    for name, classes in rows:
        path = root / "images" / "weak" / f"{Path(name).stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(source / name) as image:
            image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR).save(path)
        lines.append(f"{path.relative_to(root).as_posix()},{classes}")
    (root / "weak.txt").write_text("".join(f"{line.partition(',')[0]}\n" for line in lines[1:]))
    target.write_text("\n".join(lines) + "\n")
    return root


def recipe_of(options: argparse.Namespace, form: str, seed: int) -> Recipe:
    """Give the recipe of one run."""
    stage = {"optim.name": "adamw", "optim.lr": 1e-3, "optim.decoder_lr_scale": 1.0, "optim.weight_decay": 0.01}
    stage |= {"run.epochs": None, "run.steps": options.cam_steps, "data.crop": options.cam_crop}
    stage |= {"data.scale": [1.0, 1.25], **{key: json.loads(value) for key, value in options.stage}}
    base: dict[str, Any] = {
        "method": {"name": form.partition("+")[0]},
        "model": MODELS[options.model],
        "data": {
            "root": str(options.root),
            "dataset": {"name": "folder", "foreground": options.foreground},
            "labeled": options.labeled,
            "labeled_seed": seed,
            "unlabeled": "weak.txt",
            "val": "none",
            "crop": options.crop,
            "batch": {"labeled": options.batch, "unlabeled": options.batch},
            "scale": list(options.scale),
            "workers": 0,
        },
        "optim": {"name": "adamw", "lr": 1e-3},
        "run": {"steps": options.steps, "seed": seed, "accelerator": options.accelerator, "logger": "none"},
    }
    if form != "supervised":
        base["method"] |= {"heads": "lite", "unlabeled_weight": options.unlabeled_weight}
    if form == "cct+tags":
        base["method"]["term_weights"] = {"weak": options.weak_weight}
        base["data"]["weak"] = {"tags": "tags_weak.csv", "stage": stage}
    return load(base, options.set)


def run_one(options: argparse.Namespace, form: str, seed: int) -> dict[str, Any]:
    """Train (or resume, or skip) one run and score it on the test part."""
    out = Path(options.out) / f"{form}_{options.labeled}_{seed}"
    score_file = out / "score.json"
    if score_file.exists():
        return json.loads(score_file.read_text())  # type: ignore[no-any-return]
    began = time.monotonic()
    if (out / "recipe.yaml").exists() and any(out.rglob("last.ckpt")):
        train(None, out, resume=True, quiet=True)
    else:
        train(recipe_of(options, form, seed), out, overwrite=True, quiet=True)
    minutes = (time.monotonic() - began) / 60
    scores = evaluate(out, part="test", quiet=True)
    by_class = {name: iou if iou == iou else None for name, iou in zip(scores.classes, scores.iou, strict=True)}
    score = {"form": form, "labeled": options.labeled, "seed": seed, "test_miou": scores.miou, "minutes": minutes}
    score["test_iou"] = by_class
    score_file.write_text(json.dumps(score))
    return score


def table(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reduce the seeds of each form to mean and sample standard deviation."""
    rows = []
    for form in dict.fromkeys(score["form"] for score in scores):
        group = [score for score in scores if score["form"] == form]
        values = [score["test_miou"] for score in group]
        sd = statistics.stdev(values) if len(values) > 1 else None
        minutes = statistics.mean(score["minutes"] for score in group)
        rows.append({"form": form, "mean": statistics.mean(values), "sd": sd, "values": values, "minutes": minutes})
    return rows


def options_of() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--labeled", type=int, default=60)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--cam-steps", type=int, default=500)
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--side", type=int, default=128, help="images are squeezed to SIDE x SIDE pixels first")
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--cam-crop", type=int, default=128, help="of the classifier: tags are of whole images")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--scale", nargs=2, type=float, default=[0.75, 1.5])
    parser.add_argument("--unlabeled-weight", type=float, default=10.0)
    parser.add_argument("--weak-weight", type=float, default=0.4)
    parser.add_argument(
        "--foreground", nargs="+", default=["bag", "hair", "footwear", "accessory", "top", "outerwear", "trousers"]
    )
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--out", required=True, help="folder of the runs")
    parser.add_argument("--json", type=Path, help="file of the results")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe overrides for every run")
    parser.add_argument("--stage", nargs="*", default=[], metavar="KEY=JSON", help="of the stage that learns the tags")
    options = parser.parse_args()
    options.stage = [tuple(item.split("=", 1)) for item in options.stage]
    options.root = resized_with_tags(options.data, options.side, Path(options.out))
    return options


def main() -> None:
    """Run everything and write the JSON file."""
    options = options_of()
    scores = []
    for seed in options.seeds:
        for form in options.forms:
            scores.append(run_one(options, form, seed))
            print(json.dumps(scores[-1]), flush=True)
    rows = table(scores)
    for row in rows:
        spread = "" if row["sd"] is None else f" ± {row['sd']:.1%}"
        print(f"{row['form']:<12} {row['mean']:.1%}{spread}  {row['minutes']:.1f} min")
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name not in {"out", "root", "json"}}
        settings["data"] = options.data.name
        state = environment()
        kept = {name: state[name] for name in ("python", "cpu_cores", "devices", "packages")}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"settings": settings, "environment": kept, "rows": rows, "runs": scores}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
