"""`halfmask check`: look at every image and mask before anything is trained."""

import itertools
import json
from typing import Annotated

import typer

from halfmask.cli import flags
from halfmask.errors import RecipeError


def check(
    overrides: flags.Overrides = None,
    data: flags.Data = None,
    unlabeled: Annotated[
        str | None, typer.Option("--unlabeled", metavar="DIR", help="Look at unlabeled images of this folder, too.")
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Write halfmask.yaml as far as the files tell; images are never changed.")
    ] = False,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Only N images per part.")] = None,
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=0, help="Threads; 0: one per core.")] = 0,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Look for what is wrong with a dataset.

    Layout, sizes, masks, classes, leakage between parts, validation; each finding says what mends it. Exit code 1
    if something has to be mended before training.
    """
    flags.check_overrides(overrides or ())
    if data is None and not any(item.startswith("data.root=") for item in overrides or ()):
        raise RecipeError("of which images? Name their folder: --data DIR")
    from halfmask.data.check.check import check as look
    from halfmask.progress import Bars

    if unlabeled is not None:
        overrides = [*(overrides or ()), f"data.unlabeled.root={unlabeled}"]
    seen = itertools.count(1)
    with Bars(quiet) as bars:

        def tick(total: int) -> None:
            bars.show("check", next(seen), total)

        report = look(data, overrides=overrides or (), fix=fix, limit=limit, workers=workers, tick=tick)
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print(report)
    if report.wrote:
        path, *keys = report.wrote
        flags.say(f"wrote {path}: {', '.join(keys)}", quiet)
    elif fix:
        flags.say("nothing to write: the files tell nothing that halfmask.yaml does not say already", quiet)
    if not report.usable:
        raise typer.Exit(1)
