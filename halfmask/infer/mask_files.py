"""The files of predicted images: which there are, how they are written, and by which model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from halfmask.atomic import atomic_path, write_json
from halfmask.data.folder.geotiff import write_mask as write_geotiff
from halfmask.errors import DataError
from halfmask.palette import Color, overlay, palette_of
from halfmask.run.bundle import Bundle
from halfmask.task import Task

RECORD = "predict.json"  # in the folder of the results: the model they are of


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
        georeferenced: a TIFF with coordinates; so is its mask.
    """

    image: Path
    mask: Path
    overlay: Path | None
    probabilities: Path | None
    before: Path | None = None
    row: str = ""
    georeferenced: bool = False

    @property
    def done(self) -> bool:
        """All its files exist."""
        return all(path is None or path.exists() for path in (self.mask, self.overlay, self.probabilities))

    @property
    def dates(self) -> tuple[Path, ...]:
        """The files it is read from."""
        return (self.image,) if self.before is None else (self.before, self.image)


def record_model(out: Path, bundle: Bundle, jobs: Sequence[Job], *, overwrite: bool) -> None:
    """Note which model the results in a folder are of; not where some lie there already and nothing tells of which.

    Raises:
        DataError: they are another model's, and not to be overwritten; or the folder cannot be written.
    """
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
    elif overwrite or not ((out / "labels.json").exists() or any(job.mask.exists() for job in jobs)):
        write_json(path, {"run": bundle.folder.as_posix(), "sha256": bundle.meta["sha256"]}, error=DataError)


def write_mask(job: Job, mask: Integer[np.ndarray, "H W"], task: Task) -> None:
    """Write class ids as a palette PNG, or as a GeoTIFF where the image is one.

    Raises:
        DataError: the disk is full, or the folder cannot be written.
    """
    colors = palette_of(task)
    with atomic_path(job.mask, error=DataError) as part:
        if job.georeferenced:
            write_geotiff(part, mask, job.image, colors, task.ignore_index)
        else:
            mask_image(mask, colors).save(part, optimize=False)


def write_overlay(path: Path, image: UInt8[np.ndarray, "H W C"], mask: Integer[np.ndarray, "H W"], task: Task) -> None:
    """Write an image with its mask over it.

    Raises:
        DataError: the disk is full, or the folder cannot be written.
    """
    with atomic_path(path, error=DataError) as part:
        Image.fromarray(overlay(image, mask, palette_of(task))).save(part, quality=90)


def mask_image(mask: Integer[np.ndarray, "H W"], palette: tuple[Color, ...]) -> Image.Image:
    """Palette image, ignored pixels white; 16 bits without colors for more classes than a palette has room for."""
    if len(palette) > 256:
        return Image.fromarray(mask.astype(np.uint16, copy=False))
    image = Image.fromarray(mask.astype(np.uint8, copy=False))
    table = [*palette, *[(0, 0, 0)] * (255 - len(palette)), (255, 255, 255)] if _has_ignored(mask, palette) else palette
    image.putpalette([value for color in table for value in color])
    return image


def _has_ignored(mask: Integer[np.ndarray, "H W"], palette: tuple[Color, ...]) -> bool:
    return len(palette) < 256 and bool(mask.size) and int(mask.max()) >= len(palette)
