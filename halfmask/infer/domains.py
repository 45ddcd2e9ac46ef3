"""Runs over several domains: each has a model of its own in a folder of its name.

Evaluation scores each model on its own images; the mean of the main scores stands for the run.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

from halfmask import __version__
from halfmask.atomic import write_json
from halfmask.errors import CheckpointError, DataError, RecipeError
from halfmask.infer.bundle import names_in
from halfmask.infer.devices import joined_ranks
from halfmask.infer.evaluate import evaluate
from halfmask.infer.inference import READERS
from halfmask.infer.metrics import Scores

DOMAINS = "domains.json"  # in the folder of a run over several domains: their names; each has a folder with a bundle


def domain_names(path: str | Path) -> tuple[str, ...]:
    """Return a run's domains in order; none of anything else. Raises CheckpointError: their list is damaged."""
    return names_in(Path(path) / DOMAINS)


def evaluate_domains(
    run: str | Path,
    *,
    part: str = "val",
    overrides: Sequence[str] = (),
    device: str = "auto",
    workers: int = READERS,
    limit: int | None = None,
    write: bool = True,
    quiet: bool = False,
) -> dict[str, Scores]:
    """Evaluate every domain of a run, and write `metrics.json` beside each bundle and one for all; see `evaluate`.

    Raises:
        CheckpointError: the run has no domains, or no bundles yet.
        DataError: a domain has no image with a mask in the part.
        RecipeError: an override that is of one domain only.
    """
    names = domain_names(run)
    if not names:
        raise CheckpointError(f"{run} is no run over several domains: evaluate(run) scores it.")
    if own := [text for text in overrides if text.startswith("data.")]:
        raise RecipeError(
            f"{', '.join(own)}: data differs by domain. Name one: halfmask evaluate {Path(run) / names[0]}"
        )
    scores: dict[str, Scores] = {}
    with joined_ranks(device) as ranks:
        for name in names:
            try:
                scores[name] = evaluate(
                    Path(run) / name,
                    part=part,
                    overrides=overrides,
                    device=device,
                    workers=workers,
                    limit=limit,
                    write=write,
                    quiet=quiet,
                )
            except DataError as error:
                raise DataError(f"domain {name}: {error}", error.code) from error
    if write and ranks.first:
        content = {"metrics": combined(scores, Path(part).stem), "part": part, "halfmask": __version__}
        write_json(Path(run) / "metrics.json", content)
    return scores


def combined(scores: dict[str, Scores], part: str) -> dict[str, float]:
    """Return the scores of all domains by `<part>/<domain>/<score>`, and the mean main score as `<part>/<score>`."""
    metric = next(iter(scores.values())).main[0]
    values = {f"{part}/{metric}": statistics.mean(found.main[1] for found in scores.values())}
    for name, found in scores.items():
        values |= {f"{part}/{name}/{key}": value for key, value in found.to_dict().items()}
    return values
