"""`halfmask convert`: masks from and to the formats of annotation tools."""

import json
from pathlib import Path
from typing import Annotated

import typer

from halfmask.cli import flags
from halfmask.errors import RecipeError


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="Folder with masks, or an export.", show_default=False)],
    overrides: flags.Overrides = None,
    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help="index, color, coco, labelme, label_studio or geojson.")
    ] = "index",
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for the result.")] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="DIR", help="Images of the masks, by name: for labelme, label_studio, coco."),
    ] = None,
    rle: Annotated[
        bool, typer.Option("--rle", help="COCO: run lengths for all regions, not only those with holes.")
    ] = False,
    limit: flags.Limit = None,
    overwrite: flags.Overwrite = False,
    *,
    output: flags.Output,
) -> None:
    """Convert masks.

    From any folder that trains, masks alone, or what annotation tools export (COCO json, Label Studio json, a folder of
    labelme json), to index or color PNG, COCO json, labelme, Label Studio or GeoJSON; exact to the pixel.
    """
    flags.check_overrides(overrides or (), folder="--out")
    if out is None:
        raise RecipeError("where to? Name a folder: --out DIR")
    from halfmask.data.convert.convert import convert as run

    count = run(
        source,
        out,
        to=to,
        geometry="rle" if rle else "polygon",
        images=images,
        overrides=overrides or (),
        overwrite=overwrite,
        limit=limit,
        quiet=output.quiet,
    )
    print(
        json.dumps({"masks": count, "out": str(out)}) if output.as_json else f"{out}  {count} mask{'s' * (count != 1)}"
    )
    flags.say(
        f"classes and colors: {out / 'halfmask.yaml'}; put it beside the data to read them with these ids", output.quiet
    )
