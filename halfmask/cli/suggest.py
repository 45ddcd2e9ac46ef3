"""`halfmask suggest`: which images to label next."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from halfmask.cli import flags

_WEIGHT = "Weight of this criterion; 0: leave it out."


@dataclass(frozen=True)
class Drafts:
    """Which images are ranked, and what is written for them."""

    n: Annotated[int, typer.Option("--n", "-n", metavar="N", min=1, help="How many images to choose.")] = 20
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR|FILE",
            help="Folder for the files; default RUN/suggest. Or X.csv: a table, and the files in X/.",
        ),
    ] = None
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Other images than the unlabeled ones of the run.")
    ] = None
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format", metavar="NAME", help="Drafts: png, labelme, label_studio, coco (CVAT), geojson; repeatable."
        ),
    ] = None
    overwrite: flags.Overwrite = False


@dataclass(frozen=True)
class Criteria:
    """What each criterion counts."""

    uncertainty: Annotated[float, typer.Option("--uncertainty", metavar="X", help=_WEIGHT)] = 1.0
    disagreement: Annotated[float, typer.Option("--disagreement", metavar="X", help=_WEIGHT)] = 1.0
    diversity: Annotated[float, typer.Option("--diversity", metavar="X", help=_WEIGHT)] = 1.0
    rare: Annotated[float, typer.Option("--rare", metavar="X", help=_WEIGHT)] = 1.0


def suggest(
    run: flags.Run,
    overrides: flags.Overrides = None,
    *,
    drafts: Drafts,
    criteria: Criteria,
    measure: Annotated[
        str, typer.Option("--measure", metavar="NAME", help="Of uncertainty: entropy or margin.")
    ] = "entropy",
    reading: flags.Reading,
    output: flags.Output,
) -> None:
    """Rank unlabeled images by what labeling them may bring, and draft their masks.

    The score is the weighted mean of ranks by uncertainty, disagreement of student and teacher, diversity, and hope for
    rare classes. Correct the drafts, put the masks beside the data, and go on: halfmask train --resume-from RUN.
    """
    flags.check_overrides(overrides or ())
    from halfmask.suggest.scores import Weights
    from halfmask.suggest.suggest import suggest as rank

    options = {**vars(drafts), **vars(reading), "formats": drafts.formats or ("png",)}
    weights = Weights(**vars(criteria))
    found = rank(run, weights=weights, measure=measure, overrides=overrides or (), quiet=output.quiet, **options)
    for remark in found.remarks:
        flags.say(f"note: {remark}", output.quiet)
    if output.as_json:
        print(json.dumps(dataclasses.asdict(found), default=str, indent=2))
        return
    for id, score in zip(found.ids, found.scores, strict=True):
        print(f"{score:.3f}  {id}")
    flags.say(
        f"{found.out}  {len(found.ids)} of {found.candidates} images; look at {found.out / 'index.html'}", output.quiet
    )
