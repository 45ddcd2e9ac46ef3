"""Rows of files and processes: loading, `halfmask check`, start-up, and whole runs of `halfmask train`."""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _oracles import loading
from _pairs import Disagreement, Measure, Pair, Row, Setting
from PIL import Image
from torch import Tensor

from halfmask.data.check import judge, take_fingerprint
from halfmask.data.folder.images.decode import read_image, stored_pixels
from halfmask.data.folder.masks.decode import read_stored
from halfmask.data.loading.loader import HostBatch, HostSamples, to_batch
from halfmask.data.splits.split import open_dataset
from halfmask.errors import DataError
from halfmask.recipe.sections import DataRecipe
from halfmask.run.cost import max_resident_unit
from halfmask.task import Task
from halfmask.views.strong import StrongAugment
from halfmask.views.weak import Geometry, Window, covered, cut_image, cut_target

# --- loading: one labeled and one unlabeled image, from files to crops and to batches ----------------------------


@dataclass(frozen=True)
class _Files:
    image: Path
    mask: Path
    window: Window
    crop: int


def _rendered(setting: Setting, width: int, height: int, suffix: str, crop: int) -> _Files:
    """Render an image whose files have about the size of photographs: smooth structures and some noise."""
    if setting.quick:
        width, height, crop = width // 8, height // 8, crop // 8
    rng = np.random.default_rng(setting.seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)).resize((width, height))
    noisy = np.array(coarse).astype(np.int16) + rng.integers(-3, 4, (height, width, 1))
    cells = rng.integers(0, 21, (height // 24 + 1, width // 24 + 1), np.uint8)
    mask = np.kron(cells, np.ones((24, 24), np.uint8))[:height, :width]
    folder = Path(tempfile.gettempdir()) / f"halfmask-bench-{width}x{height}{suffix}"
    folder.mkdir(exist_ok=True)
    files = _Files(folder / f"image{suffix}", folder / "mask.png", _window(width, height, crop), crop)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(files.image, quality=92)  # which PNG ignores
    Image.fromarray(mask).save(files.mask)
    return files


def _of_dataset(setting: Setting) -> _Files:
    assert setting.data is not None
    dataset = open_dataset(DataRecipe(root=str(setting.data)))
    id = dataset.ids("train")[0]
    mask = dataset.mask_path(id)
    if mask is None:
        raise DataError(f"{setting.data}: {id} has no mask file of its own; the row `data` needs one.", "H210")
    with Image.open(dataset.root / id) as opened:
        width, height = opened.size
    crop = min(320, width, height)
    return _Files(dataset.root / id, mask, _window(width, height, crop), crop)


def _window(width: int, height: int, crop: int) -> Window:
    # About the mean of scales from 0.5 to 2. At exactly 1.25, weights are tenths and many sums end in one half.
    return Geometry(crop, (1.237, 1.237), 0.0).sample(np.random.default_rng(0), width, height)


class _Worker:
    """What a loader worker does for the two images; `cache` holds them decoded, or as JPEG."""

    def __init__(self, files: _Files, cache: str = "none") -> None:
        self.files, self.cache, folder = files, cache, files.image.parent
        if cache == "arrays":
            np.save(folder / "image.npy", read_image(files.image))
        if cache == "jpeg":
            Image.fromarray(read_image(files.image)).save(folder / "image.jpg", quality=95, subsampling=0)
        if cache != "none":
            np.save(folder / "mask.npy", np.array(Image.open(files.mask)))

    def image(self) -> np.ndarray:
        folder = self.files.image.parent
        if self.cache == "arrays":
            return np.load(folder / "image.npy", mmap_mode="r")  # type: ignore[no-any-return]
        return read_image(folder / "image.jpg" if self.cache == "jpeg" else self.files.image)

    def mask(self) -> np.ndarray:
        if self.cache != "none":
            return np.load(self.files.image.parent / "mask.npy", mmap_mode="r")  # type: ignore[no-any-return]
        return read_stored(self.files.mask).values

    def decode_only(self) -> None:
        self.image(), self.mask(), self.image()

    def __call__(self) -> HostBatch:
        target = torch.from_numpy(cut_target(self.mask(), self.files.window, self.files.crop))[None]
        return HostBatch(0, (self._samples(target), self._samples(None)))

    def _samples(self, target: Tensor | None) -> HostSamples:
        files, fill = self.files, np.array([124, 116, 104], np.uint8)
        cut = torch.from_numpy(cut_image(self.image(), files.window, files.crop, fill=fill))[None]
        extent = torch.tensor([covered(files.window, files.crop)], dtype=torch.int32)
        return HostSamples(cut, extent, torch.zeros(1, dtype=torch.int64), target)


def _plain(files: _Files, rng: random.Random) -> list[Tensor]:
    place = (files.window.size, files.window.corner, files.crop)
    return [*loading.load_labeled(files.image, files.mask, *place), *loading.load_unlabeled(files.image, *place, rng)]


def _agree(plain: list[Tensor], batch: HostBatch, *, lossy: bool = False) -> str:
    labeled, unlabeled = batch.streams
    assert labeled.target is not None
    if not torch.equal(plain[1], labeled.target[0].long()):
        raise Disagreement("the masks differ")
    share = mean = 0.0
    for expected, samples in ((plain[0], labeled), (plain[2], unlabeled)):
        found = loading.to_normalized(Image.fromarray(samples.image[0].permute(1, 2, 0).numpy()))
        levels = ((expected - found).abs() * 0.229 * 255).round()
        share, mean = max(share, (levels > 0).double().mean().item()), max(mean, levels.mean().item())
        # Both round the same weighted sums, whose positions differ in the seventh digit: near a half, a level apart.
        if mean > 2 if lossy else levels.max() > 2 or share > 0.02:
            most = levels.max().item()
            raise Disagreement(f"{share:.2%} of the bytes differ, by up to {most:.0f} levels, {mean:.1f} on average")
    return f"masks equal, {share:.2%} of the image bytes differ" + f", by {mean:.2f} levels on average" * lossy


def _data(setting: Setting, files: Callable[[Setting], _Files], cache: str = "none") -> Pair:
    found = files(setting)
    worker, rng = _Worker(found, cache), random.Random(setting.seed)
    agree = partial(_agree, lossy=cache == "jpeg")
    return Pair(lambda: _plain(found, rng), worker, agree, floor=worker.decode_only if cache == "none" else None)


def _data_chain(setting: Setting, files: Callable[[Setting], _Files]) -> Pair:
    """As `_data`, and what the device does with the bytes: floats, validity, two strong views."""
    found = files(setting)
    worker, strong, rng = _Worker(found), StrongAugment(), random.Random(setting.seed)
    task = Task("segmentation", tuple(f"class {number}" for number in range(21)))

    def fast() -> list[Tensor]:
        batch = to_batch(worker(), setting.device, task)
        weak = batch.draw(0).image
        return [batch.labeled.image, batch.labeled.labels, weak, strong(weak), strong(weak)]

    def agree(plain: list[Tensor], views: list[Tensor]) -> str:
        if [tuple(tensor.shape) for tensor in plain] != [tuple(tensor.shape[1:]) for tensor in views]:
            raise Disagreement("the views differ in shape")
        return _agree([view.cpu() for view in plain], worker())

    return Pair(lambda: [view.to(setting.device) for view in _plain(found, rng)], fast, agree, floor=worker.decode_only)


_WORK = "a loader worker's part: whole-image chain of Pillow with strong views | crop only, bytes out"
_CHAIN = "the whole chain: strong views in the worker | on the device"
_SIZES: dict[str, tuple[Callable[[Setting], _Files], float]] = {  # with the least ratio of the worker
    "480x360 PNG, crop 320": (partial(_rendered, width=480, height=360, suffix=".png", crop=320), 3.0),
    "500x375 JPEG, crop 321": (partial(_rendered, width=500, height=375, suffix=".jpg", crop=321), 8.0),
    "2048x1024 PNG, crop 801": (partial(_rendered, width=2048, height=1024, suffix=".png", crop=801), 2.2),
    "2048x1024 JPEG, crop 801": (partial(_rendered, width=2048, height=1024, suffix=".jpg", crop=801), 6.0),
}
_LARGE = _SIZES["2048x1024 PNG, crop 801"][0]


# --- processes: check, start-up, whole runs --------------------------------------------------------------------


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
    *(
        Row("data", size, partial(_data, files=files), _WORK, {"time": least})
        for size, (files, least) in _SIZES.items()
    ),
    *(
        Row(
            "data",
            f"2048x1024 PNG, crop 801, {name}",
            partial(_data, files=_LARGE, cache=cache),
            _WORK,
            {"time": least},
        )
        for name, cache, least in (("cached", "arrays", 8.0), ("cached as JPEG", "jpeg", 5.0))
    ),
    *(
        Row("data-chain", size, partial(_data_chain, files=files), _CHAIN, {"time": 2.0})
        for size, (files, _) in _SIZES.items()
    ),
    Row("data", "files of --data", partial(_data, files=_of_dataset), _WORK, {"time": 2.0}, needs_data=True),
    Row(
        "data-chain", "files of --data", partial(_data_chain, files=_of_dataset), _CHAIN, {"time": 2.0}, needs_data=True
    ),
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
