"""`halfmask compare`: methods on one data set, at equal steps, over seeds, each beside its control."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from halfmask.cli import flags
from halfmask.cli.recipe_flags import batch_keys, number_or_text
from halfmask.errors import RecipeError


@dataclass(frozen=True)
class Shared:
    """Keys of the recipe that all runs share."""

    data: flags.Data = None
    labeled: Annotated[
        str | None, typer.Option("--labeled", metavar="N|LIST", help="Masks of each run: a count or share is drawn.")
    ] = None
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", min=1, help="Of every run [run.steps].")] = None
    crop: Annotated[int | None, typer.Option("--crop", metavar="N", help="Side in pixels [data.crop].")] = None
    batch_size: Annotated[
        str | None, typer.Option("--batch-size", metavar="N|N+N", help="Labeled+unlabeled images per step.")
    ] = None

    def keys(self) -> dict[str, Any]:
        """Return dotted keys with their values."""
        labeled = None if self.labeled is None else number_or_text(self.labeled)
        found = {"data.root": self.data, "data.labeled": labeled, "run.steps": self.steps, "data.crop": self.crop}
        given = {key: value for key, value in found.items() if value is not None}
        return given | (batch_keys(self.batch_size) if self.batch_size is not None else {})


@dataclass(frozen=True)
class Rows:
    """Which runs there are."""

    methods: Annotated[
        str | None,
        typer.Option(
            "--methods", metavar="NAME,...", help="Default: all. LABEL=NAME, or package.module:Class, is a row too."
        ),
    ] = None
    seeds: Annotated[str, typer.Option("--seeds", metavar="N,N,...", help="Each draws its own masks.")] = "0,1,2"
    against: Annotated[
        str, typer.Option("--against", metavar="NAME", help="control: each row's own; or supervised, half the runs.")
    ] = "control"
    part: Annotated[str, typer.Option("--part", metavar="NAME", help="Images that are scored once, at the end.")] = (
        "test"
    )


def compare(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE KEY=VALUE",
            help="What all runs share: a recipe (default fixmatch/folder), then any key; LABEL:KEY=VALUE of one row.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder of the runs and tables.")] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", metavar="N", min=1, help="Runs at a time; default: one per GPU.")
    ] = None,
    overwrite: flags.Overwrite = False,
    *,
    shared: Shared,
    rows: Rows,
    output: flags.Output,
) -> None:
    """Compare methods on one data set.

    All methods, or those named, with the same network, masks and steps, over seeds, each beside its control (the same
    without the loss of unlabeled images), scored once on the test part. The same command goes on where it was stopped.
    """
    source, overrides = flags.split_arguments(arguments)
    if out is None:
        raise RecipeError("where to? Name a folder: --out runs/compared")
    if rows.against not in ("control", "supervised"):
        raise RecipeError(f"--against {rows.against}: expected control or supervised.", "H303")
    keys = shared.keys()
    if source is None and "data.root" not in keys and not any(item.startswith("data.root=") for item in overrides):
        raise RecipeError("compare on what? Name the images: --data DIR")
    seeds = tuple(flags.numbers(rows.seeds, "--seeds"))
    from halfmask.compare.compare import compare as run
    from halfmask.compare.forms import Settings

    settings = Settings(
        base=source,
        methods=tuple(name.strip() for name in rows.methods.split(",")) if rows.methods else (),
        seeds=seeds,
        overrides=(*(f"{key}={json.dumps(value)}" for key, value in keys.items()), *overrides),
        against=rows.against,  # type: ignore[arg-type]  # checked above
        part=rows.part,
    )
    board = run(settings, out, jobs=jobs, overwrite=overwrite, quiet=output.quiet)
    print(
        json.dumps(board.to_dict(), indent=2) if output.as_json else board.markdown(),
        end="\n" if output.as_json else "",
    )
    if not board.complete:
        raise typer.Exit(1)
