"""`halfmask evaluate`: score a run or a bundle on images with masks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfmask.cli import flags
from halfmask.errors import RecipeError

if TYPE_CHECKING:
    from halfmask.infer.runs import Published


def evaluate(
    run: flags.Run,
    overrides: flags.Overrides = None,
    data: flags.Data = None,
    part: Annotated[str, typer.Option("--part", metavar="NAME", help="val, test, train or all.")] = "val",
    predictor: flags.Predictor = None,
    *,
    reading: flags.Reading,
    output: flags.Output,
) -> None:
    """Score a run on images with masks.

    The protocol is stored beside the number, in metrics.json. On the part of the published numbers (validation,
    mostly), the number that the run's recipe expects for its split is printed beside it. A run over several domains is
    scored on each; name RUN/DOMAIN for one.
    """
    flags.check_overrides(overrides or ())
    run = flags.chosen(run, predictor, output.quiet)
    from halfmask.infer.bundle import shipped_folder
    from halfmask.infer.devices import is_first_rank
    from halfmask.infer.domains import domain_names
    from halfmask.infer.evaluate import evaluate as score
    from halfmask.infer.runs import published

    if domain_names(run):
        _evaluate_domains(run, data, part, overrides or (), reading, output)
        return
    folder = None if data is None else Path(data)
    options = {"part": part, "overrides": overrides or (), "quiet": output.quiet, **vars(reading)}
    scores = score(run, data=folder, **options)
    if not is_first_rank():
        return
    ours = scores.to_dict()
    found = _comparable(published(run), ours, part, overrides or (), reading.limit)
    if output.as_json:
        print(json.dumps(scores.to_dict(part) | ({"published": _plain(found)} if found else {}), indent=2))
        return
    scores.print_table(title=f"{shipped_folder(run)} on {part}")
    if found is not None:
        print(_beside(found, ours))


def _evaluate_domains(
    run: Path, data: str | None, part: str, overrides: Sequence[str], reading: flags.Reading, output: flags.Output
) -> None:
    from halfmask.infer.devices import is_first_rank
    from halfmask.infer.domains import combined, domain_names, evaluate_domains
    from halfmask.infer.runs import published

    if data is not None:
        names = ", ".join(str(Path(run) / name) for name in domain_names(run))
        raise RecipeError(f"--data is of one dataset, but {run} has several domains. Name one model: {names}.")
    scores = evaluate_domains(run, part=part, overrides=overrides, quiet=output.quiet, **vars(reading))
    if not is_first_rank():
        return
    values = combined(scores, part)
    metric = next(iter(scores.values())).main[0]
    mean = {metric: values[f"{part}/{metric}"]}
    ours = {name: found.to_dict() for name, found in scores.items()} | {"mean": mean}
    numbers = {name: published(Path(run) / name) for name in scores} | {"mean": published(run)}
    known = {
        name: found
        for name, number in numbers.items()
        if (found := _comparable(number, ours[name], part, overrides, reading.limit)) is not None
    }
    if output.as_json:
        beside = {name: _plain(found) for name, found in known.items()}
        print(json.dumps(values | ({"published": beside} if beside else {}), indent=2))
        return
    for name, scored in scores.items():
        scored.print_table(title=f"{Path(run) / name} on {part}")
    each = ", ".join(f"{name} {100 * found.main[1]:.2f}" for name, found in scores.items())
    print(f"{metric} {100 * mean[metric]:.2f} (mean of {each})")
    for name, found in known.items():
        print(f"{name}: {_beside(found, ours[name])}")


def _comparable(
    number: "Published | None", ours: dict[str, float], part: str, overrides: Sequence[str], limit: int | None
) -> "Published | None":
    """Return the published number if it is of the same score on the same images."""
    same_images = limit is None and not any(text.startswith("data.") for text in overrides)
    return number if number and same_images and number.part == part and number.metric in ours else None


def _beside(found: "Published", ours: dict[str, float]) -> str:
    split = f" with split {found.split}" if found.split else ""
    score = f"{found.metric} {100 * ours[found.metric]:.2f}"
    return f"{score}   published{split}: {100 * found.value:.2f} ({found.source})"


def _plain(found: "Published") -> dict[str, Any]:
    return {"metric": found.metric, "value": found.value, "split": found.split, "source": found.source}
