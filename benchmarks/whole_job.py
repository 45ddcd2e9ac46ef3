"""Time a step of whole trainings, loading included, and compare with another command.

python benchmarks/whole_job.py fixmatch/folder data.root=field data.crop=160
python benchmarks/whole_job.py cct/folder data.root=field --against 'python train.py --steps {steps}'
python benchmarks/whole_job.py cct/folder data.root=field --against-keys run.precision=32-true

Every command is run as a process of its own with a short and a long number of steps, and what the long one takes more
is divided by the steps it makes more: imports, checks and the first step drop out. Commands take turns, so that a
machine that slows down hits both. CPU seconds are those of the process and of all it started. A published script is
compared by `--against`: a shell command in which {steps} stands for the number of steps.

python benchmarks/whole_job.py --jobs --out results.json
python benchmarks/whole_job.py --jobs cct-160 evaluate-whole --rounds 3 --memory --out results.json

`--jobs` measures whole jobs beside published.py, which trains and evaluates as published scripts do: float32, views
made in the dataset, separate passes, torch's default optimizer. Both take turns in one process (see _turns.py), after
their losses and gradients have been compared on one batch. `--out` is written after each job; a second call with the
same file measures only what is missing. bfloat16 is left out on a CPU without instructions for it, where nothing is
trained in it. `--memory` adds the peak of a process of its own for each form, also to jobs that the file has.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from _processes import Taken, heading, run, take_earlier
from _turns import JOBS, agreement, evaluate_once, make_folder, measure
from published import FOLDER

FORMAT = 1
PRECISIONS = ("32-true", "bf16-mixed")


def per_step(command: list[str], short: int, long: int) -> Taken:
    """Return what one step takes, by two runs of different length; the peak is that of the long one."""
    few, many = (run([word.replace("{steps}", str(steps)) for word in command]) for steps in (short, long))
    return Taken((many.cpu - few.cpu) / (long - short), (many.wall - few.wall) / (long - short), many.peak)


def ours(recipe: str, keys: list[str], folder: str) -> list[str]:
    """Return the command that trains a recipe without validation; {steps} stands for the number of steps."""
    fixed = ["data.val=none", "run.logger=none", "run.steps={steps}", f"run.log_every={10**6}"]
    place = ["--out", folder, "--overwrite", "--quiet"]
    return [sys.executable, "-m", "halfmask", "train", recipe, *keys, *fixed, *place]


def summary(taken: list[Taken]) -> dict[str, Any]:
    """Return medians, and the range of the CPU seconds."""
    cpu = [one.cpu for one in taken]
    return {
        "cpu_seconds": statistics.median(cpu),
        "cpu_range": [min(cpu), max(cpu)],
        "wall_seconds": statistics.median(one.wall for one in taken),
        "peak_bytes": max(one.peak for one in taken),
    }


def measure_jobs(names: list[str], rounds: int, memory: bool, out: Path | None) -> None:
    """Measure jobs in both precisions, write and print what was found."""
    content: dict[str, Any] = heading(FORMAT)
    take_earlier(out, content, "jobs")
    known = {(row["job"], row["precision"]): row for row in content["jobs"]}
    with tempfile.TemporaryDirectory(prefix="halfmask-whole-job-") as scratch:
        folder = make_folder(Path(scratch) / "data")
        for name in names:
            for precision in PRECISIONS if torch.cpu._is_avx512_bf16_supported() else PRECISIONS[:1]:
                row = known.get((name, precision))
                if row is not None and (not memory or "peak_bytes" in row):
                    continue
                if row is None:
                    row = _measured(name, folder, precision, rounds)
                    content["jobs"].append(row)
                if memory:
                    row["peak_bytes"] = peaks = _peaks(name, folder, precision, Path(scratch))
                    shown = ", ".join(f"{form} {peak / 2**20:.0f} MiB" for form, peak in peaks.items())
                    print(f"{name:<18} {precision:<10} {shown}", flush=True)
                if out is not None:
                    out.parent.mkdir(parents=True, exist_ok=True)
                    out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _measured(name: str, folder: Path, precision: str, rounds: int) -> dict[str, Any]:
    """Compare both forms of a job, time them, and print the ratio."""
    job, target = JOBS[name], JOBS[name].target[PRECISIONS.index(precision)]
    row: dict[str, Any] = {"job": name, "precision": precision, "target": target}
    row |= {"agreement": agreement(job, folder), "load_average": list(os.getloadavg())}
    row |= measure(job, folder, precision, rounds)
    row["reached"] = row["ratio"]["median"] >= target
    median, (low, high) = row["ratio"]["median"], row["ratio"]["range"]
    print(f"{name:<18} {precision:<10} {median:.2f} ({low:.2f}-{high:.2f}), target {target}", flush=True)
    return row


def _peaks(name: str, folder: Path, precision: str, scratch: Path) -> dict[str, int]:
    """Return the bytes at the peak of three steps, or of a block of images, each form in a process of its own."""
    job, script = JOBS[name], str(Path(__file__).with_name("published.py"))
    if job.method == "evaluate":
        alone = [sys.executable, __file__, name, str(folder), precision, "--evaluate"]
        return {"halfmask": run([*alone, "own"]).peak, "published": run([*alone, "theirs"]).peak}
    theirs = [sys.executable, script, job.method, str(folder), *job.keys, "--steps", "3"]
    keys = [*FOLDER, *job.keys, f"data.root={folder}", f"run.precision={precision}"]
    own = [word.replace("{steps}", "3") for word in ours(f"{job.method}/pascal", keys, str(scratch / "run"))]
    return {"halfmask": run(own).peak, "published": run(theirs).peak}


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", help="a recipe file, or the name of a shipped one")
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE", help="any key of the recipe")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--against", metavar="COMMAND", help="shell command; {steps} is the number of steps")
    other.add_argument("--against-keys", nargs="+", metavar="KEY=VALUE", help="the same recipe with other values")
    parser.add_argument("--steps", nargs=2, type=int, default=[2, 8], metavar=("SHORT", "LONG"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, metavar="FILE", help="file of the results")
    parser.add_argument("--jobs", nargs="*", choices=JOBS, metavar="NAME", help=f"all, or some of: {', '.join(JOBS)}")
    parser.add_argument("--memory", action="store_true", help="with --jobs: also the peak memory of each form")
    parser.add_argument("--evaluate", choices=("own", "theirs"), help=argparse.SUPPRESS)  # one form, for its memory
    options = parser.parse_intermixed_args()
    if options.evaluate:
        folder, precision = options.keys
        evaluate_once(JOBS[options.recipe], Path(folder), precision, options.evaluate)
        return
    if options.jobs is not None:
        measure_jobs(options.jobs or list(JOBS), options.rounds, options.memory, options.out)
        return
    if options.recipe is None:
        parser.error("name a recipe, or --jobs")
    short, long = options.steps
    if not 0 < short < long:
        raise SystemExit("--steps SHORT LONG: two different lengths, the shorter first.")
    with tempfile.TemporaryDirectory(prefix="halfmask-whole-job-") as folder:
        commands = {"halfmask": ours(options.recipe, options.keys, f"{folder}/run")}
        if options.against:
            commands["other"] = ["/bin/sh", "-c", f"exec {options.against}"]
        elif options.against_keys:
            commands["other"] = ours(options.recipe, [*options.keys, *options.against_keys], f"{folder}/other")
        found: dict[str, list[Taken]] = {name: [] for name in commands}
        for number in range(options.rounds):
            for name in list(commands)[:: 1 if number % 2 == 0 else -1]:
                found[name].append(per_step(commands[name], short, long))
                print(f"round {number + 1}  {name:<9} {found[name][-1].cpu:.3f} CPU s per step", flush=True)
    content: dict[str, Any] = {
        **heading(FORMAT),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "load_average": list(os.getloadavg()),
        "recipe": options.recipe,
        "keys": [key for key in options.keys if not key.startswith("data.root=")],
        "against": options.against or options.against_keys,
        "steps": [short, long],
        "jobs": {name: summary(taken) for name, taken in found.items()},
    }
    if len(found) == 2:
        ratios = [b.cpu / a.cpu for a, b in zip(found["halfmask"], found["other"], strict=True)]
        content["ratio"] = {"median": statistics.median(ratios), "range": [min(ratios), max(ratios)]}
    print(json.dumps({key: content[key] for key in ("jobs", "ratio") if key in content}, indent=2))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
