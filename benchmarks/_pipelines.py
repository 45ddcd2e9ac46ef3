"""Rows of processes: `halfmask check`, start-up, and whole runs of `halfmask train`."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _loading import LOADING
from _pairs import Disagreement, Measure, Row, Setting
from PIL import Image

from halfmask.data.check import judge, take_fingerprint
from halfmask.data.folder.images.decode import stored_pixels
from halfmask.recipe.sections import DataRecipe
from halfmask.run.cost import max_resident_unit


def _wall(compute: Callable[[], Any]) -> float:
    began = time.perf_counter()
    compute()
    return time.perf_counter() - began


def _check(setting: Setting, suffix: str, threads: int = 2) -> list[Measure]:
    """Check a folder of images with masks: images per second by the clock, as several threads share the work."""
    images, side = setting.size(200, 4), setting.size(512, 64)
    with tempfile.TemporaryDirectory(prefix="halfmask-bench-") as folder:
        root = Path(folder)
        _write_dataset(root, suffix, (images, images), (side, side), classes=8)

        def plain() -> Counter[int]:
            """Decode all images and masks in full, one after the other; count the pixels per value of the masks."""
            pixels: Counter[int] = Counter()
            for path in sorted((root / "images").iterdir()):
                np.asarray(Image.open(path))
                counts = np.bincount(np.asarray(Image.open(root / "masks" / f"{path.stem}.png")).ravel())
                pixels.update({value: int(count) for value, count in enumerate(counts) if count})
            return pixels

        def fast() -> Any:
            seen = take_fingerprint(DataRecipe(root=folder), workers=threads)
            judge(folder, seen)
            return seen

        def decode(path: Path) -> None:
            """Decode what the check needs of a file: of JPEG an eighth of each side, in gray."""
            with Image.open(path) as image:
                image.draft("L", (64, 64))  # of JPEG only
                stored_pixels(image, path.read_bytes())

        def decode_all() -> None:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(decode, [*(root / "images").iterdir(), *(root / "masks").iterdir()]))

        _agree_on_check(plain(), fast(), images)
        times = [(_wall(plain), _wall(fast)) for _ in range(setting.rounds)]
        floor = statistics.median(_wall(decode_all) for _ in range(3))
    ratios, rates = [one / two for one, two in times], [images / two for _, two in times]
    rate = statistics.median(rates)
    share = {"share": floor * rate / images, "name": "decode"}
    wall = Measure("wall", statistics.median(ratios), min(ratios), max(ratios), fast=images / rate)
    wall.reference = statistics.median(one for one, _ in times)
    return [Measure("speed", rate, min(rates), max(rates), unit="images/s", limit=share), wall]


def _agree_on_check(pixels: Counter[int], seen: Any, images: int) -> None:
    found: Counter[int] = Counter()
    for facts in seen.masks.values():
        found.update(facts.values)
    if len(seen.images) != images or found != pixels:
        raise Disagreement(f"{len(seen.images)} of {images} images seen, pixels of the masks {found} against {pixels}")


def _write_dataset(root: Path, suffix: str, files: tuple[int, int], size: tuple[int, int], classes: int) -> None:
    """Render so many images and masks; files have about the size of photographs, masks consist of blocks."""
    rng, (width, height) = np.random.default_rng(0), size
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(files[0]):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)).resize(size)
        noisy = np.asarray(coarse).astype(np.int16) + rng.integers(-3, 4, (height, width, 1))
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        image.save(root / "images" / f"{number:03d}{suffix}", quality=92)  # which PNG ignores
        mask = np.kron(rng.integers(0, classes, (height // 16, width // 16), np.uint8), np.ones((16, 16), np.uint8))
        if number < files[1]:
            Image.fromarray(mask).save(root / "masks" / f"{number:03d}.png")


def _startup(setting: Setting) -> list[Measure]:
    """What a user waits for before anything happens: CPU seconds of a help screen, and of `import torch`."""

    def cpu_seconds(*arguments: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    imports, helps = [], []
    for _ in range(setting.rounds):
        imports.append(cpu_seconds("-c", "import torch"))
        helps += [cpu_seconds("-m", "halfmask", "--help"), cpu_seconds("-m", "halfmask", "train", "--help")]
    plain, fast = statistics.median(imports), statistics.median(helps)
    ratios = [one / fast for one in imports]
    return [
        Measure("time", plain / fast, min(ratios), max(ratios), reference=plain, fast=fast),
        Measure("seconds", fast, min(helps), max(helps), unit="s"),
    ]


WARM_UP = 2  # steps in which libraries set themselves up
SAME_LOSS = 1e-5  # relative; one and two processes sum the same float32 numbers in another order
# A process inherits the peak of the one that starts it, which here has run other rows: a small one stands between.
_PEAK = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
with open(sys.argv[1], "w") as file:
    file.write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def _train(arguments: list[str]) -> tuple[Any, int]:
    """Return what `halfmask train` prints, and the most memory it had."""
    command = [sys.executable, "-m", "halfmask", "train", *arguments]
    with tempfile.NamedTemporaryFile("r") as peak:
        watched = [sys.executable, "-c", _PEAK, peak.name, *command]
        done = subprocess.run(watched, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[2:])} exited with {done.returncode}: {done.stderr.strip()[-400:]}")
        return json.loads(done.stdout), int(peak.read()) * max_resident_unit()


def _records(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _trained_on(folder: str) -> list[str]:
    _write_dataset(Path(folder) / "data", ".jpg", (40, 20), (320, 240), classes=2)
    return ["--data", f"{folder}/data", "data.val=none", "data.workers=0", "--json", "--quiet"]


def _prediction(setting: Setting, recipe: str, batch: int, crop: int, network: Sequence[str]) -> list[Measure]:
    """Predict the memory of a run in one process, and measure it in another that trains."""
    batch, crop = setting.size(batch, 2), setting.size(crop, crop // 3)
    with tempfile.TemporaryDirectory(prefix="halfmask-bench-") as folder:
        common = [recipe, "--steps", "4", "--batch-size", f"{batch}+{batch}", f"data.crop={crop}"]
        common += [*_trained_on(folder), *network]
        common += [f"run.accelerator={'cpu' if setting.device.type == 'cpu' else 'gpu'}"]
        cost = _train([*common, "--out", f"{folder}/dry", "--dry-run"])[0]["cost"]
        guess = cost["fixed"] + cost["per_unit"] * (cost["labeled"] // cost["unit"][0])
        _, peak = _train([*common, "--out", f"{folder}/run"])
        if setting.device.type == "cuda":
            peak = max(int(line.get("sys/mem_gb", 0) * 2**30) for line in _records(Path(folder) / "run"))
    error = Measure("error", abs(guess / peak - 1), unit="", reference=float(peak), fast=float(guess), base_unit="B")
    return [error]


def _two_processes(setting: Setting) -> list[Measure]:
    """Train alike in one and in two processes: seconds per step of each, after the warm-up, by the clock.

    The network has no batch statistics, and crops lie inside the images, so that both average the same losses.
    """
    batch, steps = setting.size(8, 2), WARM_UP + setting.size(8, 1)
    width, heads, crop = (24, 2, 28) if setting.quick else (192, 3, 126)
    times: dict[int, list[float]] = {1: [], 2: []}
    losses: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="halfmask-bench-") as folder:
        common = ["supervised/folder", "--steps", str(steps), f"data.batch.labeled={batch}", f"data.crop={crop}"]
        common += [*_trained_on(folder), "data.scale=[1.0, 1.0]", "optim.name=sgd", "run.log_every=1"]
        common += [f"model.encoder={{name: dinov2, dim: {width}, heads: {heads}}}", "model.decoder={name: dpt}"]
        common += ["run.accelerator=cpu", "run.precision=32-true"]
        for number in range(1 if setting.quick else min(setting.rounds, 3)):
            for world in (1, 2) if number % 2 == 0 else (2, 1):
                out = Path(folder) / f"{number}-{world}"
                _train([*common, f"run.devices={world}", "--out", str(out)])
                records = [line for line in _records(out) if "train/loss" in line]
                losses[world] += [line["train/loss"] for line in records]
                times[world].append(statistics.mean(batch / line["train/img_per_s"] for line in records[WARM_UP:]))
    apart = max(abs(two / one - 1) for one, two in zip(losses[1], losses[2], strict=True))
    if apart > SAME_LOSS:
        raise Disagreement(f"losses of one and of two processes differ by {apart:.1e}, allowed {SAME_LOSS:g}")
    ratios = [one / two for one, two in zip(times[1], times[2], strict=True)]
    one, two, ratio = *(statistics.median(times[world]) for world in (1, 2)), statistics.median(ratios)
    share = {"share": ratio / 2, "name": "ideal"}
    return [
        Measure("wall", ratio, min(ratios), max(ratios), reference=one, fast=two, limit=share),
        Measure("1 process", batch / one, unit="images/s"),
        Measure("2 processes", batch / two, unit="images/s"),
        Measure("loss difference", apart, unit=""),
    ]


_DINOV2 = ("model.encoder={name: dinov2, size: small}", "model.decoder={name: dpt}")
_RESNET = (
    "model.encoder={name: resnet, depth: 18, stem: plain, output_stride: 32}",
    "model.decoder={name: deeplabv3plus, rates: [6, 12, 18], aspp: 64, low: 24, embedding: 64}",
    "run.passes=apart",
    "run.precise_bn=64",
    "run.channels_last=false",
)
_MIT = (
    "model.encoder={name: mit, size: b0, drop_path: 0.1}",
    "model.decoder={name: segformer, embedding: 128, dropout: 0.1}",
    "run.channels_last=false",
)
_PREDICTED = {  # size -> recipe, images of each stream, crop, network
    "fixmatch/folder, crop 192, batch 8+8": ("fixmatch/folder", 8, 192, _RESNET),
    "supervised/folder, crop 192, batch 8+8": ("supervised/folder", 8, 192, _RESNET),
    "unimatch_v2/folder, DINOv2-S, crop 126, batch 4+4": ("unimatch_v2/folder", 4, 126, _DINOV2),
    "allspark/folder, MiT-B0, crop 129, batch 4+4": ("allspark/folder", 4, 129, _MIT),
}

PIPELINES = [
    *LOADING,
    *(
        Row(
            "check",
            f"200 {form} images and PNG masks of 512x512, 2 threads",
            partial(_check, suffix=suffix),
            "by the clock: decode everything, one thread | halfmask check",
            {"speed": 200.0},
            devices=("cpu",),
        )
        for form, suffix in (("JPEG", ".jpg"), ("PNG", ".png"))
    ),
    Row("startup", "halfmask --help", _startup, "import torch | a help screen", *[{"time": 20.0, "seconds": 0.15}] * 2),
    *(
        Row(
            "prediction",
            size,
            partial(_prediction, recipe=recipe, batch=batch, crop=crop, network=network),
            "peak memory of a run: measured | predicted by --dry-run",
            *[{"error": 0.15}] * 2,
        )
        for size, (recipe, batch, crop, network) in _PREDICTED.items()
    ),
    Row(
        "ddp",
        "supervised/folder, DINOv2 of width 192, crop 126, batch 8",
        _two_processes,
        "training steps by the clock, equal losses: one process | two (gloo), a thread each",
        devices=("cpu",),
    ),
]
