"""`halfmask doctor`: what this machine has for training, and what is missing for which feature."""

import json
from pathlib import Path
from typing import Annotated

import typer

from halfmask.cli import flags


def doctor(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder that runs would go to.")] = Path("."),
    as_json: flags.Json = False,
) -> None:
    """Look at this machine.

    Versions, devices, decoding speed, folders, free disk, shared memory, optional packages. Exit code 1 if
    something will hurt.
    """
    from halfmask.plan.machine import examine

    found = examine(out)
    print(json.dumps(found.to_dict(), indent=2) if as_json else found)
    if found.problems:
        raise typer.Exit(1)
