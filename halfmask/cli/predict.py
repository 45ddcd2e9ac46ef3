"""`halfmask predict`: write a mask for every image of a folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from halfmask.cli import flags


@dataclass(frozen=True)
class WrittenFlags:
    """What is written beside the masks, and how large images are cut."""

    overlay: Annotated[bool, typer.Option("--overlay", help="Also write the masks drawn over the images.")] = False
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write class probabilities.")] = False
    outlines: Annotated[
        str | None,
        typer.Option("--format", metavar="NAME", help="Also as outlines: labelme, label_studio, geojson or coco."),
    ] = None
    tile: Annotated[
        int | None,
        typer.Option("--tile", metavar="N", min=0, help="Tiles of this side for every image; 0: never any."),
    ] = None
    overlap: Annotated[
        int | None, typer.Option("--overlap", metavar="N", min=0, help="Pixels that neighboring tiles share.")
    ] = None
    nodata: Annotated[float | None, typer.Option("--nodata", metavar="VALUE", help="Value of pixels without data.")] = (
        None
    )
    overwrite: flags.Overwrite = False


def predict(
    run: flags.Run,
    source: Annotated[
        str,
        typer.Option(
            "--input",
            metavar="DIR|IMAGE",
            help="Folder (also of frames), file or pattern 'photos/*.jpg'.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the masks.", show_default=False)],
    overrides: flags.Overrides = None,
    predictor: flags.Predictor = None,
    *,
    written: WrittenFlags,
    reading: flags.Reading,
    output: flags.Output,
) -> None:
    """Write masks for images.

    Palette PNGs (of a GeoTIFF, a GeoTIFF) of the size of the images; images that have theirs already are skipped. Large
    images are predicted in overlapping tiles. For change detection the input is a folder with A/ and B/; classification
    writes labels.csv and labels.json.
    """
    flags.check_overrides(overrides or (), folder="--input")
    run = flags.chosen(run, predictor, output.quiet)
    from halfmask.infer.devices import is_first_rank
    from halfmask.infer.predict.predict import predict as write
    from halfmask.infer.predict.predict import predicted_kind

    found: list[int] = []
    options = {**vars(written), **vars(reading)}
    count = write(run, source, out, overrides=overrides or (), quiet=output.quiet, on_found=found.append, **options)
    if not is_first_rank():
        return
    what = ("label" if predicted_kind(run) == "classification" else "mask") + "s" * (count != 1)
    kept = found[0] - count
    if output.as_json:
        print(json.dumps({"images": count, "kept": kept, "out": str(out)}))
    elif kept:
        print(f"{out}  {count} {what} written, {kept} already there (--overwrite replaces them)")
    else:
        print(f"{out}  {count} {what}")
