"""`halfmask demo`: see what unlabeled images are worth, on data rendered on the spot."""

import json
from pathlib import Path
from typing import Annotated

import typer

from halfmask.cli import flags


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for data, runs and page.")] = Path(
        "halfmask-demo"
    ),
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", min=1, help="Steps of each of the two runs.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the scenes and of training.")] = 0,
    pretrained: Annotated[
        bool,
        typer.Option("--pretrained/--random", help="The ImageNet weights that are installed with halfmask, or none."),
    ] = True,
    overwrite: flags.Overwrite = False,
    *,
    output: flags.Output,
) -> None:
    """See what unlabeled images are worth.

    Renders a small dataset, trains with and without the loss of its unlabeled images, and compares: minutes on a CPU.
    """
    from halfmask.demo.run import run_demo

    result = run_demo(out, steps=steps, seed=seed, pretrained=pretrained, overwrite=overwrite, quiet=output.quiet)
    print(json.dumps(result.to_dict(), indent=2) if output.as_json else result.table())
