"""`halfmask evaluate`: score a run or a bundle on images with masks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from halfmask.cli import flags


def evaluate(
    run: flags.Run,
    overrides: flags.Overrides = None,
    data: flags.Data = None,
    part: Annotated[str, typer.Option("--part", metavar="NAME", help="val, test, train or all.")] = "val",
    device: flags.Device = "auto",
    workers: flags.Readers = 2,
    limit: flags.Limit = None,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = False,
    debug: flags.Debug = False,
) -> None:
    """Score a run on images with masks.

    The protocol is stored beside the number, in metrics.json. On the part of the published numbers (validation,
    mostly), the number that the run's recipe expects for its split is printed beside it. A run over several domains is
    scored on each; name RUN/DOMAIN for one.
    """
    flags.check_overrides(overrides or ())
    flags.set_verbosity(quiet, verbose)
    from halfmask.engine.bundle import domain_names
    from halfmask.engine.evaluate import evaluate as score
    from halfmask.engine.runs import published

    if domain_names(run):
        _evaluate_domains(run, data, part, overrides or (), device, workers, limit, as_json, quiet)
        return
    scores = score(
        run,
        data=None if data is None else Path(data),
        part=part,
        overrides=overrides or (),
        device=device,
        workers=workers,
        limit=limit,
        quiet=quiet,
    )
    if as_json:
        print(json.dumps(scores.to_dict(part), indent=2))
        return
    scores.print_table(title=f"{run} on {part}")
    same_images = limit is None and not any(text.startswith("data.") for text in overrides or ())
    found = published(run) if same_images else None
    ours = scores.to_dict().get(found.metric) if found and found.part == part else None
    if found is not None and ours is not None:
        split = f" with split {found.split}" if found.split else ""
        print(f"{found.metric} {100 * ours:.2f}   published{split}: {100 * found.value:.2f} ({found.source})")


def _evaluate_domains(
    run: Path,
    data: str | None,
    part: str,
    overrides: Sequence[str],
    device: str,
    workers: int,
    limit: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    from halfmask.engine.bundle import domain_names
    from halfmask.engine.evaluate_domains import combined, evaluate_domains
    from halfmask.errors import RecipeError

    if data is not None:
        names = ", ".join(str(Path(run) / name) for name in domain_names(run))
        raise RecipeError(f"--data is of one dataset, but {run} has several domains. Name one model: {names}.")
    scores = evaluate_domains(
        run, part=part, overrides=overrides, device=device, workers=workers, limit=limit, quiet=quiet
    )
    values = combined(scores, part)
    if as_json:
        print(json.dumps(values, indent=2))
        return
    for name, found in scores.items():
        found.print_table(title=f"{Path(run) / name} on {part}")
    metric = next(iter(scores.values())).main[0]
    each = ", ".join(f"{name} {100 * found.main[1]:.2f}" for name, found in scores.items())
    print(f"{metric} {100 * values[f'{part}/{metric}']:.2f} (mean of {each})")
