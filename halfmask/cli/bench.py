"""`halfmask bench`: how fast a recipe trains on this machine, and where a step waits."""

import json
from pathlib import Path
from typing import Annotated

import typer

from halfmask.cli import flags
from halfmask.errors import RecipeError


def bench(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file or a shipped recipe.")],
    overrides: flags.Overrides = None,
    data: flags.Data = None,
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", min=2, help="Steps to time with loading, and as many without.")
    ] = 10,
    trace: Annotated[
        Path | None, typer.Option("--trace", metavar="FILE", help="Write the profiled steps, for ui.perfetto.dev.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write the JSON here.")] = None,
    as_json: flags.Json = False,
) -> None:
    """Measure how fast a recipe trains on this machine.

    Trains some steps and throws them away. Prints images per second with and without loading, peak memory, and the
    shares of the parts of a step.
    """
    flags.check_overrides(overrides or [])
    loaded = flags.load_recipe(recipe, {"data.root": data}, overrides or [])
    if not loaded.data.root:
        raise RecipeError("measure the recipe on which data? Add --data DIR.")
    from halfmask.bench.speed import measure_recipe

    speed = measure_recipe(loaded, steps, trace)
    plain = json.dumps(speed.to_dict(), indent=2)
    print(plain if as_json else speed.table())
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(plain + "\n", encoding="utf-8")
