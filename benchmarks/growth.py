"""Measure how commands grow with the number of images: seconds and memory of check, train, predict, suggest, report.

python benchmarks/growth.py --out growth.json
python benchmarks/growth.py --counts 100 1000 --commands check train --out growth.json

For each count a folder of small drawn images is made, a tenth of them with masks. `train` is the way to the first step
of `fixmatch/folder` (--limit 1); the other commands use its run. Each command is a process of its own. `--out` is
written after each command; a second call with the same file measures only what is missing, and trains anew what it
needs.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _processes import heading, run, take_earlier
from PIL import Image

FORMAT = 1
SIDE, CLASSES = 64, 3
COMMANDS = ("check", "train", "predict", "suggest", "report")


def make_folder(folder: Path, count: int) -> Path:
    """Write `count` different JPEG images of 64 x 64, and PNG masks of every tenth."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        cells = rng.integers(0, CLASSES, (4, 4), np.uint8)
        mask = np.kron(cells, np.ones((SIDE // 4, SIDE // 4), np.uint8))
        colors = rng.integers(60, 90, 3, np.uint8) + 40 * mask[..., None]
        image = colors + rng.integers(0, 30, (SIDE, SIDE, 1), np.uint8)
        Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"{number:05}.jpg")
        if number % 10 == 0:
            Image.fromarray(mask).save(folder / "masks" / f"{number:05}.png")
    return folder


def commands(data: Path, out: Path) -> dict[str, list[str]]:
    """Return the command lines; all but the first two need the run of the second."""
    keys = ["data.crop=64", "data.workers=0", "data.batch={labeled: 2, unlabeled: 2}", "run.logger=none"]
    arguments = {
        "check": ["check", "--data", str(data)],
        "train": ["train", "fixmatch/folder", "--data", str(data), *keys, "--limit", "1", "--out", str(out / "run"),
                  "--overwrite", "--quiet"],
        "predict": ["predict", str(out / "run"), "--input", str(data / "images"), "--out", str(out / "masks"),
                    "--quiet"],
        "suggest": ["suggest", str(out / "run"), "--n", "20", "--out", str(out / "suggested"), "--quiet"],
        "report": ["report", str(out / "run")],
    }  # fmt: skip
    return {name: [sys.executable, "-m", "halfmask", *words] for name, words in arguments.items()}


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", nargs="+", type=int, default=[100, 1000, 10_000], metavar="N")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS), metavar="NAME")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file of the results")
    options = parser.parse_args()
    content: dict[str, Any] = heading(FORMAT)
    take_earlier(options.out, content, "rows")
    done = {(row["command"], row["images"]) for row in content["rows"]}
    for count in options.counts:
        missing = [name for name in COMMANDS if name in options.commands and (name, count) not in done]
        if not missing:
            continue
        with tempfile.TemporaryDirectory(prefix="halfmask-growth-") as scratch:
            lines = commands(make_folder(Path(scratch) / "data", count), Path(scratch))
            if "train" not in missing and missing != ["check"]:
                run(lines["train"])
            for name in missing:
                taken = run(lines[name])
                row = {"command": name, "images": count, "cpu_seconds": taken.cpu, "wall_seconds": taken.wall}
                content["rows"].append({**row, "peak_bytes": taken.peak, "load_average": list(os.getloadavg())})
                print(f"{name:<8} {count:>6} images {taken.cpu:8.1f} CPU s {taken.peak / 2**20:8.0f} MiB", flush=True)
                if options.out is not None:
                    options.out.parent.mkdir(parents=True, exist_ok=True)
                    options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
