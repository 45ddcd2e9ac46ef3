"""`halfmask import`: an official checkpoint becomes a bundle."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from halfmask.cli import flags
from halfmask.errors import RecipeError, nearest


@dataclass(frozen=True)
class SourceFlags:
    """What the file holds, as far as it does not tell itself."""

    format: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="Told by the file; halfmask list importers.")
    ] = None
    predictor: Annotated[
        str | None, typer.Option("--predictor", metavar="NAME", help="teacher or student, where the file has both.")
    ] = None
    task: Annotated[str, typer.Option("--task", metavar="KIND", help="segmentation or change.")] = "segmentation"
    classes: Annotated[
        str | None, typer.Option("--classes", metavar="A,B,...", help="Names of the classes, or a file of them.")
    ] = None
    data: Annotated[
        str | None, typer.Option("--data", metavar="DIR", help="Folder of a dataset that names the classes.")
    ] = None
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="NAME", help="Its layout; also chooses crop and protocol.")
    ] = None
    partial: Annotated[bool, typer.Option("--partial", help="Accept a file that can be read in part only.")] = False
    overwrite: flags.Overwrite = False


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The official checkpoint.", show_default=False)],
    overrides: flags.Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder of the bundle.")] = None,
    *,
    source: SourceFlags,
    output: flags.Output,
) -> None:
    """Turn an official checkpoint into a bundle.

    Published models of UniMatch V1 and V2, AllSpark and CCT can then be evaluated, used and exported like runs of
    halfmask. KEY=VALUE says what the file does not tell, for example model.encoder.output_stride=8.
    """
    flags.check_overrides(overrides or ())
    from halfmask.importers import import_checkpoint

    kinds = ("segmentation", "change")
    if source.task not in kinds:
        raise RecipeError(f"--task {source.task}: Allowed: {' or '.join(kinds)}.{nearest(source.task, kinds)}", "H303")
    given = dict(vars(source))
    if (folder := given.pop("data")) is not None and source.classes is None:
        given["classes"] = Path(folder)
    made = import_checkpoint(file, out or Path(file.stem), overrides=overrides or (), **given)
    if output.as_json:
        print(json.dumps(dataclasses.asdict(made) | {"path": str(made.path)}, indent=2))
        return
    network = f", {made.predictor}" if made.predictor else ""
    names = ", ".join(made.classes[:4]) + (", ..." if len(made.classes) > 4 else "")
    shown = f", {len(made.classes)} classes ({names})" if made.classes else ""
    print(f"{made.path}  {made.format}{network}, {made.parameters / 1e6:.2f} M parameters{shown}")
    if made.dropped:
        flags.say(
            f"left out, unused by the network: {len(made.dropped)} tensors ({made.dropped[0]}, ...)", output.quiet
        )
    flags.say(f"next: {made.use}", output.quiet)
