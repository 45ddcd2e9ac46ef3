"""Predict masks for a folder, a pattern or one file; for change detection, for a folder with A/ and B/.

    <out>/<path below the input>.png                palette mask: pixel value = class id (of a pair: path below B/)
    <out>/overlays/<path below the input>.jpg       the image with the mask over it
    <out>/probabilities/<path below the input>.npy  float16 (K, H, W)
    <out>/labelme/..., geojson/..., coco/...        outlines, see `halfmask.engine.convert`

Masks have the size of the upright image (EXIF orientation applied). Each file appears only when it is complete,
and the mask last: an interrupted call continues where it stopped, and a broken image costs nothing but itself.

Models of classification write tables of labels instead, see `halfmask.engine.predict_labels`.
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

from halfmask.data._files import date_sizes_differ
from halfmask.data._pairs import find_pairs
from halfmask.data._places import require_writable
from halfmask.data.images import is_image
from halfmask.engine.atomic import atomic_path
from halfmask.engine.bundle import Bundle, bundle_folder, load_bundle, read_meta
from halfmask.engine.convert import require_outlines, write_outlines
from halfmask.engine.device import pick_device
from halfmask.engine.inference import class_map, probabilities
from halfmask.engine.predict_labels import predict_labels, read_for
from halfmask.engine.read_ahead import read_ahead
from halfmask.engine.runs import memory_cure, open_run
from halfmask.errors import DataError, RecipeError, bullet_list
from halfmask.palette import Color, overlay, palette_of
from halfmask.recipe import EvalRecipe
from halfmask.task import Kind


@dataclass(frozen=True, slots=True)
class Job:
    """One image and the files to write for it; those not asked for are `None`.

    Args:
        image: to predict; of a pair the later one.
        mask: file of the class ids.
        overlay: file of the image with the mask over it.
        probabilities: file of the class probabilities.
        before: the earlier image of a pair.
        row: path below the input, which names the image in a table of labels.
    """

    image: Path
    mask: Path
    overlay: Path | None
    probabilities: Path | None
    before: Path | None = None
    row: str = ""

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
    outlines: str | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    overwrite: bool = False,
    limit: int | None = None,
    workers: int = 2,
    quiet: bool = False,
) -> int:
    """Write a mask (or label) for every image; images that already have theirs are skipped.

    Args:
        run: run folder, bundle folder or model.json.
        input: folder (searched with its sub-folders), pattern such as `photos/*.jpg`, or one file; for change
            detection a folder with A/ and B/.
        out: folder for the results; created if missing.
        overlay: also write each image with its mask over it.
        probabilities: also write class probabilities; 2 * K * H * W bytes per image.
        outlines: also write the masks as outlines, for correction in annotation tools: `labelme`, `geojson` or `coco`.
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
    require_writable(Path(out))
    kind = predicted_kind(opened.folder)
    require_outlines(outlines, kind)
    jobs = plan(input, out, overlay=overlay, probabilities=probabilities, kind=kind)[:limit]
    bundle = load_bundle(opened.folder, where)
    if kind == "classification":
        if overlay:
            raise RecipeError(f"{opened.folder} gives labels, no masks: leave out --overlay. See labels.csv.")
        return predict_labels(
            bundle, [(job.row, job.image) for job in jobs], Path(out), opened.protocol, where,
            probabilities=probabilities, overwrite=overwrite, workers=workers, quiet=quiet,
        )  # fmt: skip
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
    if outlines is not None:
        done = [(job.row, job.image, job.mask) for job in jobs if job.mask.exists()]
        write_outlines(done, Path(out), outlines, bundle.task)
    if failed:
        raise DataError(
            f"{len(failed)} of {len(jobs)} images could not be read; the masks of the others are in {out}. Mend or "
            f"remove these and call again, finished images are skipped:\n{bullet_list(failed)}"
        )
    return len(open_jobs)


def predicted_kind(run: str | Path) -> Kind:
    """Give the kind of task a run or bundle predicts, without loading its weights."""
    kind: Kind = read_meta(bundle_folder(run) / "model.json")["task"]["kind"]
    return kind


def plan(
    input: str | Path,
    out: str | Path,
    *,
    overlay: bool = False,
    probabilities: bool = False,
    kind: Kind = "segmentation",
) -> list[Job]:
    """List the images of an input and where their results go.

    Raises:
        DataError: no image (or no pair), or two images would share a mask.
    """
    out = Path(out)
    found = _pairs(Path(input), out) if kind == "change" else _singles(Path(input), out)
    jobs = [
        Job(
            image,
            _with_suffix(out / name, ".png"),
            _with_suffix(out / "overlays" / name, ".jpg") if overlay else None,
            _with_suffix(out / "probabilities" / name, ".npy") if probabilities else None,
            before,
            _with_suffix(name, image.suffix).as_posix(),
        )
        for name, image, before in found
    ]
    if kind == "classification":
        return jobs  # rows of a table, not files
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


def _singles(source: Path, out: Path) -> list[tuple[Path, Path, None]]:
    base, images = _find(source, out)
    return [(image.relative_to(base).with_suffix(""), image, None) for image in images]


def _pairs(source: Path, out: Path) -> list[tuple[Path, Path, Path]]:
    if not source.is_dir():
        raise DataError(f"{source}: change detection compares two dates. Give a folder that holds A/ and B/.")
    pairs = find_pairs(source)
    found = [(Path(pairs.names[id]), *reversed(pairs.files(id, None))) for id in sorted(pairs.names)]
    if found[0][1].resolve().is_relative_to(out.resolve()):
        raise DataError(f"--out {out} holds the images themselves: masks would mix with them. Choose another folder.")
    return [(name, after, before) for name, after, before in found]


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


def _read(job: Job, bundle: Bundle) -> tuple[Job, UInt8[np.ndarray, "*T H W C"] | DataError]:
    """Decode an image or a pair; an unreadable one comes as its error, so that the others go on."""
    try:
        image = read_for(bundle, job.image)
        if job.before is None:
            return job, image
        before = read_for(bundle, job.before)
        if before.shape != image.shape:
            sizes = [(one.shape[0], one.shape[1]) for one in (before, image)]
            return job, date_sizes_differ((job.before, job.image), sizes)
        return job, np.stack((before, image))
    except DataError as error:
        return job, error


def _predict_one(
    job: Job, image: UInt8[np.ndarray, "*T H W C"], bundle: Bundle, protocol: EvalRecipe, device: torch.device
) -> None:
    pixels = torch.from_numpy(np.moveaxis(image, -1, -3).copy())[None].to(device).to(bundle.model.mean.dtype) / 255
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
            Image.fromarray(overlay(image if image.ndim == 3 else image[-1], mask, colors)).save(part, quality=90)
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
