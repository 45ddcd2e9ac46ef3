"""Predict masks for a folder, a pattern or one file.

    <out>/<path below the input>.png                palette mask: pixel value = class id
    <out>/overlays/<path below the input>.jpg       the image with the mask over it
    <out>/probabilities/<path below the input>.npy  float16 (K, H, W)

Masks have the size of the upright image (EXIF orientation applied). Each file appears only when it is complete,
and the mask last: an interrupted call continues where it stopped, and a broken image costs nothing but itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from glob import glob, has_magic
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from halfmask.data.images import is_image, read_image
from halfmask.engine.atomic import atomic_path
from halfmask.engine.bundle import Bundle, load_bundle
from halfmask.engine.device import pick_device
from halfmask.engine.inference import class_map, probabilities
from halfmask.engine.read_ahead import read_ahead
from halfmask.engine.runs import memory_cure, open_run
from halfmask.errors import DataError, RecipeError, bullet_list
from halfmask.palette import Color, overlay, palette_of
from halfmask.recipe import EvalRecipe


@dataclass(frozen=True, slots=True)
class Job:
    """One image and the files to write for it; those not asked for are `None`."""

    image: Path
    mask: Path
    overlay: Path | None
    probabilities: Path | None

    @property
    def done(self) -> bool:
        """All its files exist."""
        return all(path is None or path.exists() for path in (self.mask, self.overlay, self.probabilities))


def predict(
    run: str | Path,
    input: str | Path,
    out: str | Path,
    *,
    overlay: bool = False,
    probabilities: bool = False,
    overrides: Sequence[str] = (),
    device: str = "auto",
    overwrite: bool = False,
    limit: int | None = None,
    workers: int = 2,
    quiet: bool = False,
) -> int:
    """Write a mask for every image; images that already have theirs are skipped.

    Args:
        run: run folder, bundle folder or model.json.
        input: folder (searched with its sub-folders), pattern such as `photos/*.jpg`, or one file.
        out: folder for the results; created if missing.
        overlay: also write each image with its mask over it.
        probabilities: also write class probabilities; 2 * K * H * W bytes per image.
        overrides: dotted `eval.*` keys, for example `["eval.flip=true"]`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        overwrite: predict images again that have their files.
        limit: take only the first so many images.
        workers: threads that read images ahead.
        quiet: show no progress.

    Returns:
        Number of images predicted by this call.

    Raises:
        CheckpointError: no bundle, or a damaged one.
        DataError: no image, two images for one mask, a full disk; or, after all others are done, images that
            could not be read.
        RecipeError: an override is wrong.
    """
    where = pick_device(device)
    opened = open_run(run, overrides, sections=("eval",))
    jobs = plan(input, out, overlay=overlay, probabilities=probabilities)[:limit]
    bundle = load_bundle(opened.folder, where)
    if bundle.task.kind != "segmentation":
        raise RecipeError(f"{opened.folder} was trained for {bundle.task.kind}; predict writes masks of single images.")
    open_jobs = [job for job in jobs if overwrite or not job.done]
    failed: list[str] = []
    with _bar(quiet) as progress:
        task = progress.add_task("predict", total=len(jobs), completed=len(jobs) - len(open_jobs))
        for job, image in read_ahead(partial(_read, bundle=bundle), open_jobs, workers):
            if isinstance(image, DataError):
                failed.append(str(image))
            else:
                with memory_cure(opened.protocol):
                    _predict_one(job, image, bundle, opened.protocol, where)
            progress.advance(task)
    if failed:
        raise DataError(
            f"{len(failed)} of {len(jobs)} images could not be read; the masks of the others are in {out}. Mend or "
            f"remove these and call again, finished images are skipped:\n{bullet_list(failed)}"
        )
    return len(open_jobs)


def plan(input: str | Path, out: str | Path, *, overlay: bool = False, probabilities: bool = False) -> list[Job]:
    """List the images of an input and where their results go.

    Raises:
        DataError: no image, or two images would share a mask.
    """
    out = Path(out)
    base, images = _find(Path(input), out)
    jobs = []
    for image in images:
        name = image.relative_to(base).with_suffix("")
        jobs.append(
            Job(
                image,
                _with_suffix(out / name, ".png"),
                _with_suffix(out / "overlays" / name, ".jpg") if overlay else None,
                _with_suffix(out / "probabilities" / name, ".npy") if probabilities else None,
            )
        )
    by_mask: dict[Path, Path] = {}
    clashes = [
        f"{by_mask[job.mask]} and {job.image}" for job in jobs if by_mask.setdefault(job.mask, job.image) != job.image
    ]
    if clashes:
        raise DataError(
            "these images would share a mask, because only their suffix differs; rename them, or predict them into "
            f"different folders:\n{bullet_list(clashes)}"
        )
    return jobs


def _with_suffix(path: Path, suffix: str) -> Path:
    # Path.with_suffix would cut names that hold dots.
    return path.with_name(path.name + suffix)


def _find(source: Path, out: Path) -> tuple[Path, list[Path]]:
    """Give the folder that result paths are relative to, and the images in order."""
    if source.is_file():
        return source.parent, [source]
    if source.is_dir():
        # Results of an earlier call below the input are no images to predict.
        inside, target = source.resolve(), out.resolve()
        images = [
            path
            for path in sorted(source.rglob("*"))
            if path.is_file() and is_image(path) and not _hidden(path.relative_to(source))
        ]
        if target != inside and target.is_relative_to(inside):
            images = [path for path in images if not path.resolve().is_relative_to(target)]
        if target == inside:
            raise DataError(f"--out {out} is the input folder itself: masks would mix with images. Choose another.")
        if not images:
            raise DataError(f"{source}: no image in this folder or below. Give a folder with JPEG, PNG, TIFF, ...")
        return source, images
    if has_magic(str(source)):
        images = [Path(name) for name in sorted(glob(str(source), recursive=True))]
        images = [path for path in images if path.is_file() and is_image(path)]
        if not images:
            raise DataError(f"{source}: no image matches this pattern. Put it in quotes, and check it with ls.")
        return _fixed_part(source), images
    raise DataError(f"{source} does not exist. Give a folder, an image file or a pattern such as 'photos/*.jpg'.")


def _fixed_part(pattern: Path) -> Path:
    """The folders in front of the first wildcard."""
    for parent in pattern.parents:
        if not has_magic(str(parent)):
            return parent
    return Path()


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _read(job: Job, bundle: Bundle) -> tuple[Job, UInt8[np.ndarray, "H W C"] | DataError]:
    """Decode an image; an unreadable one comes as its error, so that the others go on."""
    value_range = bundle.meta.get("range")
    try:
        limits = None if value_range is None else (float(value_range[0]), float(value_range[1]))
        return job, read_image(job.image, channels=bundle.model.mean.numel(), value_range=limits)
    except DataError as error:
        return job, error


def _predict_one(
    job: Job, image: UInt8[np.ndarray, "H W C"], bundle: Bundle, protocol: EvalRecipe, device: torch.device
) -> None:
    pixels = torch.from_numpy(np.moveaxis(image, 2, 0).copy())[None].to(device).to(bundle.model.mean.dtype) / 255
    if job.probabilities is None:
        classes = class_map(bundle.model, pixels, protocol, bundle.crop)
    else:
        shares = probabilities(bundle.model, pixels, protocol, bundle.crop)
        classes = shares.max(1).indices
        with atomic_path(job.probabilities, error=DataError) as part, part.open("wb") as file:
            np.save(file, shares[0].half().cpu().numpy())
    mask = _to_numpy(classes[0])
    colors = palette_of(bundle.task)
    if job.overlay is not None:
        with atomic_path(job.overlay, error=DataError) as part:
            Image.fromarray(overlay(image, mask, colors)).save(part, quality=90)
    with atomic_path(job.mask, error=DataError) as part:
        _mask_image(mask, colors).save(part, optimize=False)


def _mask_image(mask: Integer[np.ndarray, "H W"], palette: tuple[Color, ...]) -> Image.Image:
    """Palette image; 16 bits without colors for more classes than a palette has room for."""
    if len(palette) > 256:
        return Image.fromarray(mask.astype(np.uint16))
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette([value for color in palette for value in color])
    return image


def _to_numpy(classes: Tensor) -> Integer[np.ndarray, "H W"]:
    return np.asarray(classes.cpu().numpy())


def _bar(quiet: bool) -> Progress:
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(bar_width=24), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True)
