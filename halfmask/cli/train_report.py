"""What `halfmask train` prints at its end, on stdout as results, or with the error that ended it."""

import dataclasses
import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halfmask.errors import Interrupted
from halfmask.task import METRIC_NAMES

if TYPE_CHECKING:
    from halfmask.recipe.read import Recipe
    from halfmask.run.fit import TrainResult


@contextmanager
def naming_other_seeds(others: list[tuple[Path, dict[str, Any]]]) -> Iterator[None]:
    """Say with an interruption which seeds have not begun: no `--resume` begins them.

    Raises:
        Interrupted: with that sentence.
    """
    try:
        yield
    except Interrupted as stopped:
        if not others:
            raise
        seeds = ",".join(str(key["run.seed"]) for _, key in others)
        text = f"{stopped}\n  For the seeds that have not begun, give this command again with: --seeds {seeds}"
        raise Interrupted(text, stopped.exit_code, stopped.result) from None


def smaller(recipe: "Recipe", out: Path, error: Exception) -> str:
    """Say what to try next: smaller batches cost time only, a smaller crop costs accuracy."""
    batch, crop = recipe.data.batch, recipe.data.crop
    tries = []
    if batch.labeled > 2 or batch.unlabeled > 2:
        tries.append(
            f"data.batch.labeled={max(batch.labeled // 2, 2)} data.batch.unlabeled={batch.unlabeled // 2 or 1}"
        )
    tries.append(f"data.crop={max(crop * 3 // 4 // 32 * 32, 32)}")
    first = str(error).partition("\n")[0]
    return (
        f"{first}\n  The run used batch {batch.labeled}+{batch.unlabeled} at crop {crop}. Next to try: "
        f"{', then '.join(tries)} (with --overwrite for {out})."
    )


def report_dry_run(results: "list[TrainResult]", bytes_limit: int | None, folds: int | None) -> None:
    """Print what a dry run found out."""
    for result in results:
        if folds is not None and result.cost is not None:
            print(f"folds    {folds} such runs, then one on all masks; with --twin one more for each fold")
        if bytes_limit is not None and result.cost is not None:
            print(result.cost.describe_limit(bytes_limit))
    print("dry run: recipe, data and model fit.")


def report(results: "list[TrainResult]", as_json: bool) -> None:
    """Print what each run scored and ships, and what can be done with it."""
    if as_json:
        rows = [json.loads(json.dumps(dataclasses.asdict(result), default=str)) for result in results]
        print(json.dumps(rows[0] if len(rows) == 1 else rows, indent=2))
        return
    for result in results:
        print(f"{result.out}  {result.steps} steps{_scores(result)}")
        for comparison in (result.twin, result.plain):
            if comparison is not None:
                print(comparison.describe())
        if result.folds is not None:
            print(result.folds.describe())
    runs = [shlex.quote(str(result.out)) for result in results]
    predict = f"halfmask predict {runs[0]} --input DIR --out masks; " if len(runs) == 1 else ""
    print(f"next     {predict}halfmask report {' '.join(runs)}")


def _scores(result: "TrainResult") -> str:
    """Say what chose the network that is shipped, with the validation scores, or that nothing could."""
    metric = METRIC_NAMES[result.metric]
    if result.folds is not None:
        return f" on all {result.folds.images} masks; its model is shipped"
    if not result.shipped:
        return "".join(f"  best {name} val {metric} {value:.1%}" for name, value in result.best.items())
    last = result.best.get(result.shipped.partition(",")[0])  # of that network: others would look better by chance
    return f". Shipped: {result.shipped}" + ("" if last is None else f" (val {metric} at the end {last:.1%})")
