"""Whole runs of `halfmask train`: the memory that a dry run predicts, and two processes against one."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from halfmask.bench.row import Disagreement, Measure, Row, Setting, Target
from halfmask.run.cost import max_resident_unit

_WARM_UP = 2  # steps in which libraries set themselves up
_SAME_LOSS = 1e-5  # relative; both sum the same float32 numbers in another order
# A process inherits the peak of the one that starts it, which here has run other rows: a small one stands between.
_WATCH = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
with open(sys.argv[1], "w") as file:
    file.write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def _prediction(setting: Setting, recipe: str, batch: int, crop: int, network: Sequence[str]) -> list[Measure]:
    """Predict the memory of a run in one process, and measure it in another that trains."""
    batch, crop = setting.size(batch, 2), setting.size(crop, crop // 3)
    with tempfile.TemporaryDirectory(prefix="halfmask-bench-") as folder:
        common = [recipe, "--steps", "4", "--batch-size", f"{batch}+{batch}", f"data.crop={crop}"]
        common += [*_data(Path(folder), setting), *network]
        common += [f"run.accelerator={'cpu' if setting.device.type == 'cpu' else 'gpu'}"]
        predicted, _ = _train([*common, "--out", f"{folder}/dry", "--dry-run"])
        cost = predicted["cost"]
        guess = cost["fixed"] + cost["per_unit"] * (cost["labeled"] // cost["unit"][0])
        _, peak = _train([*common, "--out", f"{folder}/run"])
        if setting.device.type == "cuda":
            peak = max(int(line.get("sys/mem_gb", 0) * 2**30) for line in _records(Path(folder) / "run"))
    return [
        Measure("error", abs(guess / peak - 1), unit="", reference=float(peak), fast=float(guess), base_unit="B"),
    ]


def _two_processes(setting: Setting) -> list[Measure]:
    """Train alike in one and in two processes: seconds per step of each, after the warm-up, by the clock.

    The network has no batch statistics, and crops lie inside the images, so that both average the same losses.
    """
    batch, steps = setting.size(8, 2), _WARM_UP + setting.size(8, 1)
    width, heads, crop = (24, 2, 28) if setting.quick else (192, 3, 126)
    times: dict[int, list[float]] = {1: [], 2: []}
    losses: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="halfmask-bench-") as folder:
        common = ["supervised/folder", "--steps", str(steps), f"data.batch.labeled={batch}", f"data.crop={crop}"]
        common += [*_data(Path(folder), setting), "data.scale=[1.0, 1.0]", "optim.name=sgd", "run.log_every=1"]
        common += [f"model.encoder={{name: dinov2, dim: {width}, heads: {heads}}}", "model.decoder={name: dpt}"]
        common += ["run.accelerator=cpu", "run.precision=32-true"]
        for number in range(1 if setting.quick else min(setting.rounds, 3)):
            for world in (1, 2) if number % 2 == 0 else (2, 1):
                out = Path(folder) / f"{number}-{world}"
                _train([*common, f"run.devices={world}", "--out", str(out)], OMP_NUM_THREADS="1")
                records = [line for line in _records(out) if "train/loss" in line]
                losses[world] += [line["train/loss"] for line in records]
                times[world].append(statistics.mean(batch / line["train/img_per_s"] for line in records[_WARM_UP:]))
    apart = max(abs(two / one - 1) for one, two in zip(losses[1], losses[2], strict=True))
    if apart > _SAME_LOSS:
        raise Disagreement(f"losses of one and of two processes differ by {apart:.1e}, allowed {_SAME_LOSS:g}")
    ratios = [one / two for one, two in zip(times[1], times[2], strict=True)]
    one, two = (statistics.median(times[world]) for world in (1, 2))
    ratio = statistics.median(ratios)
    return [
        Measure("wall", ratio, min(ratios), max(ratios), reference=one, fast=two, limit=(ratio / 2, "ideal")),
        Measure("1 process", batch / one, unit="images/s"),
        Measure("2 processes", batch / two, unit="images/s"),
        Measure("loss difference", apart, unit=""),
    ]


def _data(folder: Path, setting: Setting) -> list[str]:
    root = folder / "data"
    if not root.exists():
        _write_dataset(root, setting)
    return ["--data", str(root), "data.val=none", "data.workers=0", "--json", "--quiet"]


def _train(arguments: list[str], **environment: str) -> tuple[Any, int]:
    """Return what `halfmask train` prints, and the most memory it had."""
    command = [sys.executable, "-m", "halfmask", "train", *arguments]
    with tempfile.NamedTemporaryFile("r") as peak:
        watched = [sys.executable, "-c", _WATCH, peak.name, *command]
        done = subprocess.run(watched, capture_output=True, text=True, env={**os.environ, **environment})
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[2:])} exited with {done.returncode}: {done.stderr.strip()[-400:]}")
        return json.loads(done.stdout), int(peak.read()) * max_resident_unit()


def _records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _write_dataset(root: Path, setting: Setting) -> None:
    rng = np.random.default_rng(setting.seed)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(40):
        mask = np.zeros((240, 320), np.uint8)
        top, left = rng.integers(0, 120, 2)
        mask[top : top + 100, left : left + 100] = 1
        image = rng.integers(0, 90, (240, 320, 3)) + 120 * mask[..., None]
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{number:02d}.jpg")
        if number < 20:
            Image.fromarray(mask).save(root / "masks" / f"{number:02d}.png")


_DINOV2 = ("model.encoder={name: dinov2, size: small}", "model.decoder={name: dpt}")
_PREDICTED = {  # size -> recipe, images of each stream, crop, network
    "fixmatch/folder, crop 192, batch 8+8": ("fixmatch/folder", 8, 192, ()),
    "supervised/folder, crop 192, batch 8+8": ("supervised/folder", 8, 192, ()),
    "unimatch_v2/folder, DINOv2-S, crop 126, batch 4+4": ("unimatch_v2/folder", 4, 126, _DINOV2),
    "allspark/folder, MiT-B0, crop 129, batch 4+4": ("allspark/folder", 4, 129, ()),
}

ROWS = [
    *(
        Row(
            "prediction",
            size,
            partial(_prediction, recipe=recipe, batch=batch, crop=crop, network=network),
            "peak memory of a run: measured | predicted by --dry-run",
            {"cpu": {"error": Target(most=0.15)}, "cuda": {"error": Target(most=0.15)}},
        )
        for size, (recipe, batch, crop, network) in _PREDICTED.items()
    ),
    Row(
        "ddp",
        "supervised/folder, DINOv2 of width 192, crop 126, batch 8",
        _two_processes,
        "training steps by the wall clock, equal losses: one process | two (gloo), a thread each",
        devices=("cpu",),
    ),
]
