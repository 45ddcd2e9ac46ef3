"""Predict masks for a folder, a pattern or one file; for change detection, for a folder with A/ and B/.

    <out>/<path below the input>.png                palette mask: pixel value = class id (of a pair: path below B/)
    <out>/halfmask.yaml                             what the ids mean: they are those of the masks trained on
    <out>/overlays/<path below the input>.jpg       the image with the mask over it
    <out>/probabilities/<path below the input>.npy  float16 (K, H, W)
    <out>/labelme/..., label_studio/..., ...        outlines, see `halfmask.data.convert.convert`
    <out>/predict.json                              which model wrote them
    <out>/written.sha256                            the files written: no others are ever replaced

Masks have the size of the upright image (EXIF orientation applied). Each file appears only when it is complete,
and the mask last: an interrupted call continues where it stopped, and a broken image costs nothing but itself.

Pixels without data (`nodata` of the data or the file) have the ignored id. The mask of a TIFF with coordinates is a
GeoTIFF, `.tif`, at the same place. Images of more than 30 million pixels are predicted in overlapping tiles, see
`halfmask.infer.predict.tiles`; the order of frames is that of the numbers in their names.

Models of classification write tables of labels instead, see `halfmask.infer.predict.outputs`.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import torch
from PIL import Image

from halfmask.atomic import require_writable
from halfmask.data.convert.convert import outline_files, require_outlines, write_outlines
from halfmask.data.convert.mask_source import OVERLAYS, PROBABILITIES
from halfmask.data.folder.files import date_sizes_differ
from halfmask.data.folder.images.ground import is_georeferenced
from halfmask.data.folder.images.rasters import Picture, Reading, image_size, read_picture
from halfmask.errors import DataError, RecipeError, bullet_list, gathered
from halfmask.infer.bundle import Bundle, bundle_folder, load_bundle, own_bundle, read_meta
from halfmask.infer.devices import joined_ranks
from halfmask.infer.inference import READERS, class_map, probabilities, read_ahead
from halfmask.infer.predict.inputs import RECORD, Input, find_input
from halfmask.infer.predict.outputs import TABLE, Job, Writing, predict_labels, reading_of, record_model
from halfmask.infer.predict.tiled import Predictor, predict_tiled, without_data
from halfmask.infer.predict.tiles import choose_tiling
from halfmask.infer.runs import memory_cure, open_run
from halfmask.progress import Bars
from halfmask.recipe.read import EvalRecipe
from halfmask.task import Kind
from halfmask.written import Written

# Images of more pixels are predicted in tiles, unless the user decides.
LARGE = 30_000_000


class PredictOptions(TypedDict, total=False):
    """How images are read and predicted.

    Args:
        device: `auto` (the default), `cpu`, `cuda`, `cuda:1`, `mps`.
        workers: threads that read images ahead; 2 by default.
        limit: take only the first so many images.
        tile: predict every image in overlapping tiles of this side; 0: none. By default those of more than 30 million
            pixels, in tiles of two training crops, but at least 512 pixels (with `eval.mode=slide`: the window).
        overlap: of neighboring tiles; by default a quarter of the tile.
        nodata: value of pixels without data, instead of the one of the training data.
    """

    device: str
    workers: int
    limit: int | None
    tile: int | None
    overlap: int | None
    nodata: float | None


def predict(
    run: str | Path,
    input: str | Path,
    out: str | Path,
    *,
    overlay: bool = False,
    probabilities: bool = False,
    outlines: str | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    quiet: bool = False,
    on_found: Callable[[int], object] | None = None,
    **options: Unpack[PredictOptions],
) -> int:
    """Write a mask (or label) for every image; images that already have theirs are skipped.

    The processes of torchrun share the images (labels are all written by the first one).

    Args:
        run: run folder, bundle folder or model.json.
        input: folder (searched with its sub-folders), pattern such as `photos/*.jpg`, or one file; for change
            detection a folder with A/ and B/.
        out: folder for the results; created if missing.
        overlay: also write each image with its mask over it.
        probabilities: also write class probabilities; 2 * K * H * W bytes per image.
        outlines: also write the masks as outlines, for correction in annotation tools: `labelme`,
            `label_studio`, `geojson` or `coco`.
        overrides: dotted `eval.*` keys, for example `["eval.flip=true"]`.
        overwrite: predict images again that have their files, unless somebody changed these since.
        quiet: show no progress.
        on_found: called with the number of images of the input.
        **options: device, workers, limit, tile, overlap and nodata, see `PredictOptions`.

    Returns:
        Number of images predicted by this call, in all processes.

    Raises:
        CheckpointError: no bundle, or a damaged one.
        DataError: no image, two images for one mask, results of another model in `out` without `overwrite`, files in
            `out` that halfmask did not write or that somebody changed since, a full disk; or, after all others are
            done, images that could not be read.
        RecipeError: an override is wrong, or `out` is where the images are.
    """
    opened, out = open_run(run, overrides, sections=("eval",)), Path(out)
    require_writable(out)
    kind = predicted_kind(opened.folder)
    require_outlines(outlines, kind)
    found = find_input(Path(input), out, pairs=kind == "change")
    jobs = _jobs(found, out, overlay=overlay, probabilities=probabilities, kind=kind)[: options.get("limit")]
    written, workers = Written(out), options.get("workers", READERS)
    _require_unchanged(written, jobs, overwrite)
    if on_found is not None:
        on_found(len(jobs))
    with joined_ranks(options.get("device", "auto")) as ranks:
        quiet = quiet or not ranks.first
        if not quiet and found.left_out:
            print(f"note: {found.left_out_text()}.", file=sys.stderr)
        bundle = load_bundle(own_bundle(opened.folder), ranks.device)
        if outlines is not None:
            there = outline_files((job.row for job in jobs), out, outlines, bundle.task)
            Written(out / outlines).require_unchanged(there)
        if kind == "classification" and overlay:
            raise RecipeError(f"{opened.folder} gives labels, no masks: leave out --overlay. See labels.csv.")
        record_model(written, bundle, overwrite=overwrite)
        if kind == "classification":
            if not ranks.first:  # one table, one writer
                return 0
            return predict_labels(
                bundle, [(job.row, job.image) for job in jobs], written, opened.protocol, ranks.device,
                probabilities=probabilities, overwrite=overwrite, workers=workers, quiet=quiet,
            )  # fmt: skip
        predictor = _predictor(bundle, opened.protocol, ranks.device, out, options)
        # Shared out before anything is skipped: what another process has finished by now must not move the shares.
        mine = jobs[ranks.rank :: ranks.world]
        open_jobs = [job for job in mine if overwrite or not job.done]
        tile = options.get("tile")
        whole = LARGE if tile is None else sys.maxsize if tile == 0 else 0  # pixels that are predicted at once
        failed = _predict_all(mine, open_jobs, predictor, workers, whole, quiet)
        failed, count = ranks.lists(failed), sum(ranks.lists([len(open_jobs)]))
    if outlines is not None and ranks.first:
        done = [(job.row, job.image, job.mask) for job in jobs if job.mask.exists()]
        write_outlines(done, out, outlines, bundle.task, predictor.writing.table)
    if failed:
        raise gathered(
            f"{len(failed)} of {len(jobs)} images could not be read; the masks of the others are in {out}. Mend or "
            "remove these and call again, finished images are skipped:",
            failed,
        )
    return count


def _require_unchanged(written: Written, jobs: list[Job], overwrite: bool) -> None:
    """Refuse to replace files of others; also without `overwrite` an image that lacks one file is predicted anew."""
    written.require_alone()
    again = [path for job in jobs if overwrite or not job.done for path in job.files]
    written.require_unchanged([*again, *((written.folder / name for name in (TABLE, RECORD)) if overwrite else ())])


def _predictor(
    bundle: Bundle, protocol: EvalRecipe, device: torch.device, out: Path, options: PredictOptions
) -> Predictor:
    reading, nodata = reading_of(bundle), options.get("nodata")
    tiling = choose_tiling(bundle.model, protocol, bundle.crop, options.get("tile") or None, options.get("overlap"))
    reading = reading if nodata is None else replace(reading, nodata=nodata)
    return Predictor(bundle, protocol, device, reading, tiling, Writing.of(bundle, out))


def _predict_all(
    jobs: list[Job], open_jobs: list[Job], predictor: Predictor, workers: int, whole: int, quiet: bool
) -> list[DataError]:
    """Predict images; gives what is wrong with those that could not be read."""
    failed: list[DataError] = []
    with Bars(quiet) as bars, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large images are what tiles are for
        count = bars.counter("predict", len(jobs), len(jobs) - len(open_jobs))
        for job, read in read_ahead(partial(_read, reading=predictor.reading, whole=whole), open_jobs, workers):
            if isinstance(read, DataError):
                failed.append(read)
            else:
                with memory_cure(predictor.protocol):
                    if read is None:
                        failed += _predict_large(job, predictor, bars)
                    else:
                        _predict_one(job, read, predictor)
            count(1)
    return failed


def predicted_kind(run: str | Path) -> Kind:
    """Return the kind of task a run or bundle predicts, without loading its weights."""
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
        RecipeError: `out` is where the images are.
    """
    found = find_input(Path(input), Path(out), pairs=kind == "change")
    return _jobs(found, Path(out), overlay=overlay, probabilities=probabilities, kind=kind)


def _jobs(given: Input, out: Path, *, overlay: bool, probabilities: bool, kind: Kind) -> list[Job]:
    found = given.images
    geo = [kind != "classification" and is_georeferenced(image) for _, image, _ in found]
    jobs = [
        Job(
            image,
            _with_suffix(out / name, ".tif" if tied else ".png"),
            _with_suffix(out / OVERLAYS / name, ".jpg") if overlay else None,
            _with_suffix(out / PROBABILITIES / name, ".npy") if probabilities else None,
            before,
            _with_suffix(name, image.suffix).as_posix(),
            tied,
        )
        for (name, image, before), tied in zip(found, geo, strict=True)
    ]
    if kind == "classification":
        return jobs  # rows of a table, not files
    by_name: dict[Path, Path] = {}
    clashes = [f"{by_name[name]} and {image}" for name, image, _ in found if by_name.setdefault(name, image) != image]
    if clashes:
        raise DataError(
            "these images would share a mask, because only their suffix differs; rename them, or predict them into "
            f"different folders:\n{bullet_list(clashes)}",
            "H208",
        )
    return jobs


def _with_suffix(path: Path, suffix: str) -> Path:
    # Path.with_suffix would cut names that hold dots.
    return path.with_name(path.name + suffix)


def _read(job: Job, reading: Reading, whole: int) -> tuple[Job, tuple[Picture, ...] | DataError | None]:
    """Decode an image or a pair, `None` for one to be read in bands; an unreadable one comes as its error."""
    try:
        sizes = [image_size(path) for path in job.dates]
        if len(set(sizes)) > 1:
            return job, date_sizes_differ(job.dates, sizes)
        if sizes[0][0] * sizes[0][1] > whole:
            return job, None
        return job, tuple(read_picture(path, reading, georeferenced=job.georeferenced) for path in job.dates)
    except DataError as error:
        return job, error


def _predict_large(job: Job, predictor: Predictor, bars: Bars) -> list[DataError]:
    rows = f"rows of {job.image.name}"
    try:
        predict_tiled(job, predictor, lambda done, of: bars.show(rows, done, of))
    except DataError as error:
        if error.code == "H502":  # of the place that is written to, not of the image
            raise
        return [error]
    finally:
        bars.hide(rows)
    return []


def _predict_one(job: Job, dates: tuple[Picture, ...], predictor: Predictor) -> None:
    bundle, protocol = predictor.bundle, predictor.protocol
    image = dates[0].pixels if len(dates) == 1 else np.stack([date.pixels for date in dates])
    empty = without_data(dates)
    pixels = predictor.pixels(image[None])
    if job.probabilities is None:
        classes = class_map(bundle.model, pixels, protocol, bundle.crop)
    else:
        shares = probabilities(bundle.model, pixels, protocol, bundle.crop)
        classes = shares.max(1).indices
        kept = shares[0].half().cpu().numpy()
        with predictor.writing.files.path(job.probabilities) as part, part.open("wb") as file:
            np.save(file, kept if empty is None else np.where(empty, np.float16(0), kept))
    mask = np.asarray(classes[0].cpu().numpy())
    if empty is not None:
        mask = np.where(empty, np.asarray(bundle.task.ignore_index, mask.dtype), mask)
    if job.overlay is not None:
        predictor.writing.overlay(job.overlay, dates[-1].pixels, mask)
    predictor.writing.mask(job, mask)
