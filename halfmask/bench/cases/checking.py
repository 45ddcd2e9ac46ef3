"""`halfmask check` on a folder of images with masks: images per second, by the clock, in two threads."""

import statistics
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from halfmask.bench.row import Disagreement, Measure, Row, Setting, at_least
from halfmask.bench.timing import interleave, measure
from halfmask.data.check import Fingerprint, judge, take_fingerprint
from halfmask.data.folder.images import stored_pixels
from halfmask.recipe.sections import DataRecipe

_THREADS = 2
_FORMS = {"JPEG": ".jpg", "PNG": ".png"}


def _check(setting: Setting, suffix: str) -> list[Measure]:
    images, side = setting.size(200, 4), setting.size(512, 64)
    with tempfile.TemporaryDirectory(prefix="halfmask-bench-") as folder:
        root = Path(folder)
        _write_dataset(root, suffix, images, side, np.random.default_rng(setting.seed))

        def plain() -> dict[int, int]:
            return _decode_everything(root)

        def fast() -> Fingerprint:
            seen = take_fingerprint(DataRecipe(root=folder), workers=_THREADS)
            judge(folder, seen)
            return seen

        _compare(plain(), fast(), images)
        timing = interleave(plain, fast, setting)
        floor = statistics.median(measure(lambda: _decode_only(root), setting.device).wall for _ in range(3))
    ratios = timing.ratios(lambda duration: duration.wall)
    rates = [images / duration.wall for duration in timing.fast]
    plain_seconds = statistics.median(duration.wall for duration in timing.reference)
    rate = statistics.median(rates)
    return [
        Measure("speed", rate, min(rates), max(rates), unit="images/s", limit=(floor * rate / images, "decode")),
        Measure(
            "wall", statistics.median(ratios), min(ratios), max(ratios), reference=plain_seconds, fast=images / rate
        ),
    ]


def _decode_everything(root: Path) -> dict[int, int]:
    """Decode all images and masks in full, one after the other; pixels per value of the masks."""
    pixels: Counter[int] = Counter()
    for path in sorted((root / "images").iterdir()):
        np.asarray(Image.open(path))
        counts = np.bincount(np.asarray(Image.open(root / "masks" / f"{path.stem}.png")).ravel())
        pixels.update({value: int(count) for value, count in enumerate(counts) if count})
    return dict(pixels)


def _decode_only(root: Path) -> None:
    """Decode in as many threads what the check needs of each file: of JPEG an eighth of each side, in gray."""

    def load(path: Path) -> None:
        with Image.open(path) as image:
            image.draft("L", (64, 64))  # of JPEG only
            stored_pixels(image, path.read_bytes())

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(load, [*(root / "images").iterdir(), *(root / "masks").iterdir()]))


def _compare(pixels: dict[int, int], seen: Fingerprint, images: int) -> None:
    found: Counter[int] = Counter()
    for facts in seen.masks.values():
        found.update(facts.values)
    if len(seen.images) != images or dict(found) != pixels:
        raise Disagreement(f"{len(seen.images)} of {images} images seen, pixels of the masks {found} against {pixels}")


def _write_dataset(root: Path, suffix: str, images: int, side: int, rng: np.random.Generator) -> None:
    """Render images whose files have about the size of photographs, and masks of blocks."""
    for name in ("images", "masks"):
        (root / name).mkdir()
    for number in range(images):
        coarse = Image.fromarray(rng.integers(0, 256, (side // 16, side // 16, 3), np.uint8)).resize((side, side))
        noisy = np.asarray(coarse).astype(np.int16) + rng.integers(-3, 4, (side, side, 1))
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        image.save(root / "images" / f"{number:03d}{suffix}", quality=92)  # which PNG ignores
        cells = rng.integers(0, 8, (side // 32, side // 32), np.uint8)
        Image.fromarray(np.kron(cells, np.ones((32, 32), np.uint8))).save(root / "masks" / f"{number:03d}.png")


ROWS = [
    Row(
        "check",
        f"200 {form} images and PNG masks of 512x512, {_THREADS} threads",
        partial(_check, suffix=suffix),
        "by the wall clock: decode everything, one thread | halfmask check",
        {"cpu": at_least(speed=200.0)},
        devices=("cpu",),
    )
    for form, suffix in _FORMS.items()
]
