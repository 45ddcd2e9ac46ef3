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
from pathlib import Path
from typing import Any

from _runs import MODELS, add_views, parser_of, percent, resized, run_all, run_once, table, training, views, write_json
from PIL import Image

from halfmask.infer.evaluate import evaluate
from halfmask.recipe.read import Recipe, load
from halfmask.run.train import train

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
            **views(options),
        },
        **training(options, seed),
    }
    if form != "supervised":
        base["method"] |= {"heads": "lite", "unlabeled_weight": options.unlabeled_weight}
    if form == "cct+tags":
        base["method"]["term_weights"] = {"weak": options.weak_weight}
        base["data"]["weak"] = {"tags": "tags_weak.csv", "stage": stage}
    return load(base, options.set)


def run_one(options: argparse.Namespace, form: str, seed: int) -> dict[str, Any]:
    """Train one run and score it on the test part."""
    out = options.out / f"{form}_{options.labeled}_{seed}"

    def score(minutes: float) -> dict[str, Any]:
        found = evaluate(out, part="test", quiet=True)
        by_class = {name: iou if iou == iou else None for name, iou in zip(found.classes, found.iou, strict=True)}
        named = {"form": form, "labeled": options.labeled, "seed": seed}
        return {**named, "test_miou": found.miou, "minutes": minutes, "test_iou": by_class}

    return run_once(out, lambda: train(recipe_of(options, form, seed), out, overwrite=True, quiet=True), score)


def options_of() -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(__doc__, steps=1000, model="small")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--labeled", type=int, default=60)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--cam-steps", type=int, default=500)
    parser.add_argument("--side", type=int, default=128, help="images are squeezed to SIDE x SIDE pixels first")
    add_views(parser, scale=(0.75, 1.5))
    parser.add_argument("--cam-crop", type=int, default=128, help="of the classifier: tags are of whole images")
    parser.add_argument("--unlabeled-weight", type=float, default=10.0)
    parser.add_argument("--weak-weight", type=float, default=0.4)
    parser.add_argument(
        "--foreground", nargs="+", default=["bag", "hair", "footwear", "accessory", "top", "outerwear", "trousers"]
    )
    parser.add_argument("--stage", nargs="*", default=[], metavar="KEY=JSON", help="of the stage that learns the tags")
    options = parser.parse_args()
    options.stage = [tuple(item.split("=", 1)) for item in options.stage]
    options.root = resized_with_tags(options.data, options.side, options.out)
    return options


def main() -> None:
    """Run everything and write the JSON file."""
    options = options_of()
    scores = run_all(lambda seed, form: run_one(options, form, seed), options.seeds, options.forms)
    rows = table(scores, "form")
    for row in rows:
        print(f"{row['form']:<12} {percent(row)}  {row['minutes']:.1f} min")
    write_json(options, options.data.name, rows, scores)


if __name__ == "__main__":
    main()
