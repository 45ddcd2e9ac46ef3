"""Measure images per second and memory of each recipe for one's own folder: `halfmask bench`, one after another.

python benchmarks/recipes.py --data field --out recipes.json
python benchmarks/recipes.py --data field --recipes fixmatch/folder cct/folder data.crop=96 --out recipes.json

All recipes get the same data and the same overrides. A recipe that cannot be trained on them says why. `--out` is
written after each recipe; a second call with the same file measures only what is missing.

A recipe with a warm-up passes through it in so few steps: those with loading are of labels alone, those without
loading of all images. `--recipes fixmatch/folder method.warmup=0` measures it without.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from _processes import heading, take_earlier

from halfmask.recipe.shipped import recipe_names

FORMAT = 1


def measure(recipe: str, data: Path, steps: int, keys: list[str]) -> dict[str, Any]:
    """Return what `halfmask bench` prints, or the reason why it ended early."""
    command = [sys.executable, "-m", "halfmask", "bench", recipe, *keys, "--data", str(data), "--steps", str(steps)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout) if done.returncode == 0 else {"failed": done.stderr.strip().splitlines()[-1:]}
    return {"recipe": recipe, **found, "load_average": list(os.getloadavg())}


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [name for name in recipe_names() if name.endswith("/folder")]
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--recipes", nargs="+", default=every, metavar="NAME", help="else all for one's own folder")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="timed with loading, and as many without")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file of the results")
    options, keys = parser.parse_known_args()
    names = [name for name in options.recipes if "=" not in name]
    keys += [name for name in options.recipes if "=" in name]
    content: dict[str, Any] = {**heading(FORMAT), "data": options.data.name, "keys": keys}
    take_earlier(options.out, content, "rows")
    done = {row["recipe"] for row in content["rows"]}
    for name in names:
        if name in done:
            continue
        row = measure(name, options.data, options.steps, keys)
        content["rows"].append(row)
        rate = row["images_per_second"]["with_loading"] if "failed" not in row else 0.0
        print(
            f"{name:<28} {rate:8.1f} images/s {row.get('memory', 0) / 2**20:8.0f} MiB",
            *row.get("failed", []),
            flush=True,
        )
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
