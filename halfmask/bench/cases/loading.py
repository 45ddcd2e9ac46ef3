"""From files to crops, and to batches: decode, cut, strong views.

One call loads one labeled and one unlabeled image. Row `data` is the work of a loader worker; row `data-chain` adds
what the device does with the bytes (floats, validity, two strong views), here on the CPU. The line drawn by physics is
the time to decode the files.
"""

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from halfmask.bench.row import Disagreement, Pair, Row, Setting, at_least
from halfmask.data.folder.images import read_image
from halfmask.data.folder.masks import read_stored
from halfmask.data.loading.loader import HostBatch, HostSamples, to_batch
from halfmask.errors import DataError
from halfmask.reference.loading import load_labeled, load_unlabeled, to_normalized
from halfmask.task import Task
from halfmask.views.strong import StrongAugment
from halfmask.views.weak import Geometry, Window, covered, cut_image, cut_target

_TASK = Task("segmentation", tuple(f"class {number}" for number in range(21)))
_FILL = np.array([124, 116, 104], np.uint8)


@dataclass(frozen=True)
class _Files:
    image: Path
    mask: Path
    window: Window
    crop: int


def _write_files(setting: Setting, width: int, height: int, suffix: str, crop: int) -> _Files:
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


def _window(width: int, height: int, crop: int) -> Window:
    # About the mean of scales from 0.5 to 2. At exactly 1.25, weights are tenths and many sums end in one half.
    return Geometry(crop, (1.237, 1.237), 0.0).sample(np.random.default_rng(0), width, height)


def _dataset_files(setting: Setting) -> _Files:
    from halfmask.data.splits.split import open_dataset
    from halfmask.recipe.sections import DataRecipe

    assert setting.data is not None
    dataset = open_dataset(DataRecipe(root=str(setting.data)))
    id = dataset.ids("train")[0]
    mask = dataset.mask_path(id)
    if mask is None:
        raise DataError(f"{setting.data}: {id} has no mask file of its own; the row `data` needs one.", "H210")
    image = dataset.root / id
    with Image.open(image) as opened:
        width, height = opened.size
    return _Files(image, mask, _window(width, height, min(320, width, height)), min(320, width, height))


class _Worker:
    """What a loader worker of ours does for the two images."""

    def __init__(self, files: _Files, *, cached: Path | None = None, lossy: bool = False) -> None:
        self.files, self.cached, self.lossy = files, cached, lossy

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        if self.cached is not None:
            mask = np.load(self.cached / "mask.npy", mmap_mode="r")
            if self.lossy:
                return read_image(self.cached / "image.jpg"), mask
            return np.load(self.cached / "image.npy", mmap_mode="r"), mask
        return read_image(self.files.image), read_stored(self.files.mask).values

    def decode_only(self) -> None:
        self.read()
        read_image(self.files.image)

    def __call__(self) -> HostBatch:
        files = self.files
        image, mask = self.read()
        other = self.read()[0] if self.cached is not None else read_image(files.image)
        target = torch.from_numpy(cut_target(mask, files.window, files.crop))[None]
        return HostBatch(0, (self._samples(image, target), self._samples(other, None)))

    def _samples(self, image: np.ndarray, target: Tensor | None) -> HostSamples:
        cut = cut_image(image, self.files.window, self.files.crop, fill=_FILL)
        extent = torch.tensor([covered(self.files.window, self.files.crop)], dtype=torch.int32)
        return HostSamples(torch.from_numpy(cut)[None], extent, torch.zeros(1, dtype=torch.int64), target)


def _plain(files: _Files, rng: random.Random) -> list[Tensor]:
    place = (files.window.size, files.window.corner, files.crop)
    return [*load_labeled(files.image, files.mask, *place), *load_unlabeled(files.image, *place, rng)]


def _agree(plain: list[Tensor], batch: HostBatch, *, lossy: bool = False) -> str:
    labeled, unlabeled = batch.streams
    assert labeled.target is not None
    if not torch.equal(plain[1], labeled.target[0].long()):
        raise Disagreement("the masks differ")
    share, mean = 0.0, 0.0
    for expected, samples in ((plain[0], labeled), (plain[2], unlabeled)):
        found = to_normalized(Image.fromarray(samples.image[0].permute(1, 2, 0).numpy()))
        levels = ((expected - found).abs() * 0.229 * 255).round()
        share, mean = max(share, (levels > 0).double().mean().item()), max(mean, levels.mean().item())
        if lossy:
            if mean > 2:
                raise Disagreement(f"images differ by {mean:.1f} levels on average")
            continue
        # Both round the same weighted sums, whose positions differ in the seventh digit: near a half, a level apart.
        if levels.max() > 2 or share > 0.02:
            raise Disagreement(f"{share:.2%} of the bytes differ, by up to {levels.max():.0f} levels")
    apart = f", by {mean:.2f} levels on average" if lossy else ""
    return f"masks equal, {share:.2%} of the image bytes differ{apart}"


def _worker(setting: Setting, files: Callable[[Setting], _Files], cached: bool = False, lossy: bool = False) -> Pair:
    found = files(setting)
    worker = _Worker(found, cached=_filled_cache(found) if cached else None, lossy=lossy)
    rng, agree = random.Random(setting.seed), partial(_agree, lossy=lossy)
    return Pair(lambda: _plain(found, rng), worker, agree, floor=None if cached else worker.decode_only)


def _chain(setting: Setting, files: Callable[[Setting], _Files]) -> Pair:
    found = files(setting)
    worker, strong, rng = _Worker(found), StrongAugment(), random.Random(setting.seed)

    def fast() -> list[Tensor]:
        batch = to_batch(worker(), setting.device, _TASK)
        weak = batch.draw(0).image
        return [batch.labeled.image, batch.labeled.labels, weak, strong(weak), strong(weak)]

    def agree(plain: list[Tensor], views: list[Tensor]) -> str:
        if [tuple(tensor.shape) for tensor in plain] != [tuple(tensor.shape[1:]) for tensor in views]:
            raise Disagreement("the views differ in shape")
        return _agree(plain, worker())

    return Pair(lambda: [view.to(setting.device) for view in _plain(found, rng)], fast, agree, floor=worker.decode_only)


def _filled_cache(files: _Files) -> Path:
    image = read_image(files.image)
    np.save(files.image.parent / "image.npy", image)
    Image.fromarray(image).save(files.image.parent / "image.jpg", quality=95, subsampling=0)
    np.save(files.image.parent / "mask.npy", np.array(Image.open(files.mask)))
    return files.image.parent


def _rendered(width: int, height: int, suffix: str, crop: int) -> Callable[[Setting], _Files]:
    return partial(_write_files, width=width, height=height, suffix=suffix, crop=crop)


_TITLE = "a loader worker's part: whole-image chain of Pillow with strong views | crop only, bytes out"
_CHAIN = "the whole chain on the CPU: strong views in the worker | on the device"
_SIZES = {  # file -> least ratio of the worker, least of the worker with a filled cache
    "480x360 PNG, crop 320": (_rendered(480, 360, ".png", 320), 3.0, None),
    "500x375 JPEG, crop 321": (_rendered(500, 375, ".jpg", 321), 8.0, None),
    "2048x1024 PNG, crop 801": (_rendered(2048, 1024, ".png", 801), 2.2, 8.0),
    "2048x1024 JPEG, crop 801": (_rendered(2048, 1024, ".jpg", 801), 6.0, None),
}

ROWS = [
    *(
        Row("data", size, partial(_worker, files=files), _TITLE, {"cpu": at_least(time=least)})
        for size, (files, least, _) in _SIZES.items()
    ),
    *(
        Row(
            "data", f"{size}, cached", partial(_worker, files=files, cached=True), _TITLE, {"cpu": at_least(time=least)}
        )
        for size, (files, _, least) in _SIZES.items()
        if least is not None
    ),
    Row(
        "data",
        "2048x1024 PNG, crop 801, cached as JPEG",
        partial(_worker, files=_rendered(2048, 1024, ".png", 801), cached=True, lossy=True),
        _TITLE,
        {"cpu": at_least(time=5.0)},
    ),
    *(
        Row("data-chain", size, partial(_chain, files=files), _CHAIN, {"cpu": at_least(time=2.0)})
        for size, (files, _, _) in _SIZES.items()
    ),
    Row(
        "data",
        "files of --data",
        partial(_worker, files=_dataset_files),
        _TITLE,
        {"cpu": at_least(time=2.0)},
        needs_data=True,
    ),
    Row(
        "data-chain",
        "files of --data",
        partial(_chain, files=_dataset_files),
        _CHAIN,
        {"cpu": at_least(time=2.0)},
        needs_data=True,
    ),
]
