"""Write the files of predicted images: masks, or tables of labels.

    <out>/labels.csv     image, label, confidence                       for people and spreadsheets
    <out>/labels.json    {"classes": [...], "images": {image: {...}}}   for programs; with all probabilities, if asked

An image is named by its path below the input. Rows of an earlier call are kept, so an interrupted call continues where
it stopped.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from PIL import Image

from halfmask.data.convert.convert import describe, mask_image
from halfmask.data.folder.images.rasters import Reading, read_picture
from halfmask.data.folder.masks.ids import IdTable, id_meanings, id_meanings_in_png, write_geotiff
from halfmask.errors import DataError, gathered
from halfmask.infer.bundle import Bundle
from halfmask.infer.inference import probabilities as predict_probabilities
from halfmask.infer.inference import read_ahead
from halfmask.infer.predict.inputs import RECORD
from halfmask.infer.runs import memory_cure
from halfmask.palette import overlay, palette_of
from halfmask.progress import Bars
from halfmask.recipe.read import EvalRecipe
from halfmask.task import Task
from halfmask.written import Written

TABLE = "halfmask.yaml"  # beside the masks: what their ids mean


@dataclass(frozen=True, slots=True)
class Job:
    """One image and the files to write for it; those not asked for are `None`."""

    image: Path  # to predict; of a pair the later one
    mask: Path  # file of the class ids
    overlay: Path | None  # file of the image with the mask over it
    probabilities: Path | None  # file of the class probabilities
    before: Path | None = None  # the earlier image of a pair
    row: str = ""  # path below the input, which names the image in a table of labels
    georeferenced: bool = False  # a TIFF with coordinates; so is its mask

    @property
    def done(self) -> bool:
        """Whether all files of the job exist."""
        return all(path.exists() for path in self.files)

    @property
    def files(self) -> list[Path]:
        """Paths of the files that are written for the image."""
        return [path for path in (self.mask, self.overlay, self.probabilities) if path is not None]

    @property
    def dates(self) -> tuple[Path, ...]:
        """Paths of the files that the image is read from, one per date."""
        return (self.image,) if self.before is None else (self.before, self.image)


@dataclass(frozen=True, slots=True)
class Writing:
    """Where results go, and in which ids; what it writes raises a DataError where the disk is full or refuses."""

    files: Written  # of the folder of results
    task: Task  # classes and colors
    table: IdTable  # stored ids

    @classmethod
    def of(cls, bundle: Bundle, out: Path) -> "Writing":
        """Write the results of a bundle, in the ids of the masks that it was trained with."""
        return cls(Written(out), bundle.task, IdTable.of_meta(bundle.meta, bundle.task))

    def mask(self, job: Job, mask: Integer[np.ndarray, "H W"]) -> None:
        """Write class ids as a palette PNG, or as a GeoTIFF where the image is one."""
        if not job.georeferenced:
            self.picture(job.mask, mask)
            return
        with self.files.path(job.mask) as part:
            meanings = id_meanings(self.table, self.task)
            write_geotiff(part, mask, job.image, palette_of(self.task), self.table, meanings)

    def picture(self, path: Path, mask: Integer[np.ndarray, "H W"]) -> None:
        """Write class ids as a palette PNG."""
        with self.files.path(path) as part:
            picture = mask_image(mask, palette_of(self.task), self.table)
            picture.save(part, optimize=False, pnginfo=id_meanings_in_png(self.table, self.task))

    def overlay(self, path: Path, image: UInt8[np.ndarray, "H W C"], mask: Integer[np.ndarray, "H W"]) -> None:
        """Write an image with its mask over it."""
        with self.files.path(path) as part:
            Image.fromarray(overlay(image, mask, palette_of(self.task))).save(part, quality=90)


def record_model(files: Written, bundle: Bundle, *, overwrite: bool) -> None:
    """Record which model the results in a folder are of; not where earlier results have no such record.

    Raises:
        DataError: they are another model's, and not to be overwritten; or the folder cannot be written.
    """
    out = files.folder
    path = out / RECORD
    if path.is_file() and not overwrite:
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            weights, run = told["sha256"], told["run"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            text = f"{path}: cannot be read ({error!r}). Use --overwrite, or another --out."
            raise DataError(text, "H408") from error
        if weights != bundle.meta["sha256"]:
            raise DataError(
                f"{out} holds results of another model ({run}; here {bundle.folder}). Replace them with --overwrite, "
                "or choose another --out.",
                "H408",
            )
    elif overwrite or not any(path.is_file() for path in map(out.joinpath, files.listed())):
        files.json(path, {"run": bundle.folder.as_posix(), "sha256": bundle.meta["sha256"]})
    if bundle.task.kind != "classification":
        table = describe(bundle.task, IdTable.of_meta(bundle.meta, bundle.task))
        if overwrite or not (out / TABLE).is_file():
            files.text(out / TABLE, table)


Row = dict[str, Any]


def predict_labels(
    bundle: Bundle,
    images: Sequence[tuple[str, Path]],
    files: Written,
    protocol: EvalRecipe,
    device: torch.device,
    *,
    probabilities: bool,
    overwrite: bool,
    workers: int,
    quiet: bool,
) -> int:
    """Label every image that has no row yet; gives the number of images labeled by this call.

    Raises:
        DataError: a table of other classes is there; or, after all others are done, images that could not be read.
    """
    out = files.folder
    files.require_unchanged([out / "labels.csv", out / "labels.json"])
    rows = {} if overwrite else _known_rows(out, bundle)
    wanted = [
        (name, path)
        for name, path in images
        if name not in rows or (probabilities and "probabilities" not in rows[name])
    ]
    failed: list[DataError] = []
    with Bars(quiet) as bars:
        count = bars.counter("predict", len(images), len(images) - len(wanted))
        try:
            for name, image in read_ahead(partial(_read, bundle=bundle), wanted, workers):
                if isinstance(image, DataError):
                    failed.append(image)
                else:
                    with memory_cure(protocol):
                        rows[name] = _row(image, bundle, protocol, device, probabilities=probabilities)
                count(1)
        finally:
            _write(files, bundle, rows)
    if failed:
        raise gathered(
            f"{len(failed)} of {len(images)} images could not be read; the labels of the others are in {out}. Mend or "
            "remove these and call again, finished images are skipped:",
            failed,
        )
    return len(wanted)


def reading_of(bundle: Bundle) -> Reading:
    """Return the bands, the range of values and the value without data that a model was trained with."""
    limits, nodata = bundle.meta.get("range"), bundle.meta.get("nodata")
    return Reading(
        channels=bundle.model.mean.numel(),
        value_range=None if limits is None else (float(limits[0]), float(limits[1])),
        nodata=None if nodata is None else float(nodata),
    )


def _read(wanted: tuple[str, Path], bundle: Bundle) -> tuple[str, UInt8[np.ndarray, "H W C"] | DataError]:
    name, path = wanted
    try:
        return name, read_picture(path, reading_of(bundle)).pixels
    except DataError as error:
        return name, error


def _row(
    image: UInt8[np.ndarray, "H W C"],
    bundle: Bundle,
    protocol: EvalRecipe,
    device: torch.device,
    *,
    probabilities: bool,
) -> Row:
    pixels = torch.from_numpy(np.moveaxis(image, -1, -3).copy())[None].to(device).to(bundle.model.mean.dtype) / 255
    shares = predict_probabilities(bundle.model, pixels, protocol, bundle.crop)[0].tolist()
    best = max(range(len(shares)), key=shares.__getitem__)
    row: Row = {"label": bundle.task.classes[best], "confidence": round(shares[best], 6)}
    return row | ({"probabilities": [round(share, 6) for share in shares]} if probabilities else {})


def _known_rows(out: Path, bundle: Bundle) -> dict[str, Row]:
    path = out / "labels.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        classes, rows = content["classes"], dict(content["images"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: cannot be continued ({error!r}). Use --overwrite, or another --out.", "H408"
        ) from error
    if classes != list(bundle.task.classes):
        raise DataError(f"{path} holds labels of other classes. Use --overwrite, or another --out.", "H408")
    return rows


def _write(files: Written, bundle: Bundle, rows: dict[str, Row]) -> None:
    ordered = {name: rows[name] for name in sorted(rows)}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("image", "label", "confidence"))
    table.writerows((name, row["label"], row["confidence"]) for name, row in ordered.items())
    files.text(files.folder / "labels.csv", text.getvalue())
    files.json(files.folder / "labels.json", {"classes": list(bundle.task.classes), "images": ordered})
