"""`halfmask export`: one file that runs without halfmask."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from halfmask.cli import flags
from halfmask.errors import RecipeError


def export(
    run: flags.Run,
    format: Annotated[
        str, typer.Option("--format", metavar="NAME", help="onnx, or torch (a program of torch.export).")
    ] = "onnx",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Default: model.onnx or model.pt2 in RUN.")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="HxW", help="Of the trial input; default: the training crop.")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--input", metavar="DIR|IMAGE", help="Images to compare on; default: the run's.")
    ] = None,
    images: Annotated[int, typer.Option("--images", metavar="N", min=1, help="How many to compare.")] = 8,
    overwrite: flags.Overwrite = False,
    predictor: flags.Predictor = None,
    *,
    output: flags.Output,
) -> None:
    """Write the model as ONNX or torch.export file, and compare it with the original on real images.

    Exit code 1 when fewer than 99.9 % of the pixels get the same class.
    """
    height_width = None if size is None else _size(size)
    run = flags.chosen(run, predictor, output.quiet)
    from halfmask.infer.export import export as write

    flags.say(f"tracing {run}; this takes up to a minute ...", output.quiet)
    report = write(run, out, format=format, size=height_width, input=source, images=images, overwrite=overwrite)
    if output.as_json:
        print(json.dumps(asdict(report) | {"file": str(report.file)}, indent=2))
        return
    print(f"{report.file}  {report.file.stat().st_size / 1e6:.1f} MB")
    free = {
        "batch and size": f"any batch; height and width: any multiple of {report.multiple}",
        "batch": f"any batch; images of {report.size[0]}x{report.size[1]} (height x width) only",
        "fixed": f"2 images of {report.size[0]}x{report.size[1]} (height x width) in each call",
    }
    print(f"  takes       {free[report.shapes]}")
    print(f"  same class  {report.agreement:.3%} of the pixels of {report.images} images")
    print(f"  logits      differ by at most {report.largest_difference:.1e}")


def _size(text: str) -> tuple[int, int]:
    """Read `512x640`.

    >>> _size("512x640")
    (512, 640)
    """
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) > 0 and int(width) > 0):
        raise RecipeError(f"--size {text}: expected height x width, such as 512x640.", "H303")
    return int(height), int(width)
