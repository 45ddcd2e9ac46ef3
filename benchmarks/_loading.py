"""Rows of loading: one labeled and one unlabeled image, from files to crops and to batches."""

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _oracles import loading
from _pairs import Disagreement, Pair, Row, Setting
from PIL import Image
from torch import Tensor

from halfmask.data.folder.images.decode import read_image
from halfmask.data.folder.masks.decode import read_stored
from halfmask.data.loading.loader import HostBatch, HostSamples, to_batch
from halfmask.data.splits.split import open_dataset
from halfmask.errors import DataError
from halfmask.recipe.sections import DataRecipe
from halfmask.task import Task
from halfmask.views.strong import StrongAugment
from halfmask.views.weak import Geometry, Window, covered, cut_image, cut_target


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


LOADING = [
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
]
