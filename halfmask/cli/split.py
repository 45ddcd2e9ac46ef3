"""`halfmask split`: draw which images are labeled, and write the lists."""

import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfmask.cli import flags
from halfmask.errors import RecipeError

if TYPE_CHECKING:
    from halfmask.data.splits.split import NewSplit


def split(
    dataset: Annotated[
        str, typer.Argument(metavar="[DATASET]", help="folder, pascal, cityscapes, ... (halfmask list datasets).")
    ] = "folder",
    overrides: flags.Overrides = None,
    data: flags.Data = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where the lists go; DATA/splits by default.")
    ] = None,
    count: Annotated[int | None, typer.Option("--count", metavar="N", min=1, help="Labeled images.")] = None,
    fraction: Annotated[
        str | None, typer.Option("--fraction", metavar="1/8", help="Or a share of the images with masks.")
    ] = None,
    val: Annotated[
        int | None, typer.Option("--val", metavar="N", min=1, help="Masks to hold out for validation.")
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", "--seed", metavar="N,N,...", help="One split per seed.")] = "0",
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="By default the count or 1_8.")] = None,
    as_json: flags.Json = False,
) -> None:
    """Draw and write lists of labeled images.

    Every class occurs in them, where that is possible.
    """
    flags.check_overrides(overrides or ())
    if (count is None) == (fraction is None):
        raise RecipeError("how many labeled images? Give --count N or --fraction 1/8.")
    if data is None:
        raise RecipeError("of which images? Name their folder: --data DIR")
    share = None if fraction is None else _share(fraction)
    numbers = flags.numbers(seeds, "--seeds")
    from halfmask.data.splits.split import make_split, open_dataset
    from halfmask.recipe.read import load

    recipe = load(None, flags.merge({"data.root": data, "data.dataset": dataset}, overrides or ()))
    made = make_split(
        open_dataset(recipe.data),
        out=out or Path(data) / "splits",
        count=count,
        fraction=share,
        seeds=numbers,
        val=val,
        name=name,
    )
    _report(made, as_json)


def _share(text: str) -> float:
    try:
        share = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise RecipeError(f"--fraction {text}: expected 1/8 or 0.125.", "H303") from None
    if not 0 < share <= 1:
        raise RecipeError(f"--fraction {text}: expected a share in (0, 1].", "H303")
    return share


def _report(made: "list[NewSplit]", as_json: bool) -> None:
    for new in made:
        if new.missing:
            print(f"warning: {new.folder.name}: no labeled image shows {', '.join(new.missing)}", file=sys.stderr)
    rows = [
        {
            "folder": str(new.folder),
            "labeled": len(new.labeled),
            "unlabeled": len(new.unlabeled),
            "missing": list(new.missing),
        }
        for new in made
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['folder']}  {row['labeled']} labeled, {row['unlabeled']} unlabeled")
