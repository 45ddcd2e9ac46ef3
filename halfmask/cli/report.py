"""`halfmask report`: one page about a run, or about several."""

import json
from pathlib import Path
from typing import Annotated

import typer

from halfmask.cli import flags


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Run folders; several are compared.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR|FILE", help="Default: report.html in RUN; of several runs: here."),
    ] = None,
    twin: Annotated[
        Path | None,
        typer.Option("--twin", metavar="RUN", help="Run to compare with; default: RUN/control, else RUN/twin."),
    ] = None,
    data: flags.Data = None,
    part: Annotated[
        str | None, typer.Option("--part", metavar="NAME", help="Judge by val, test, train or all; default: the run's.")
    ] = None,
    *,
    reading: flags.Reading,
    output: flags.Output,
) -> None:
    """Write a page about a run.

    Curves, scores with intervals, images, pseudo-labels, data, cost and recipe in one HTML file that opens offline. Of
    several runs, or seeds, one table with plots, and table.md, table.tex, table.json beside it.
    """
    from halfmask.report.make import report as write

    result = write(*runs, out=out, data=data, part=part, twin=twin, quiet=output.quiet, **vars(reading))
    if output.as_json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    print(result.heading)
    for file in result.files:
        print(f"  {file}")
