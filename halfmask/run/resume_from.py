"""Begin a new run with the weights of an earlier one: after more masks were drawn.

The recipe is the earlier run's, with what the user changes. Images that it validated on stay validation images, and
where it had none, none are held out: the weights have seen the masks it trained on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halfmask.data.splits.split import write_list
from halfmask.errors import CheckpointError, RecipeError
from halfmask.recipe.read import Recipe, load, parse_override
from halfmask.run.bundle import STAGES
from halfmask.run.folder import RunDir
from halfmask.run.networks import load_networks, weights_of
from halfmask.run.prepare import Prepared


@dataclass(frozen=True)
class Beginning:
    """Where a new run begins.

    Args:
        run: the earlier run.
        checkpoint: of its networks.
        recipe: of the new run.
        labeled: what the earlier run learned from.
    """

    run: Path
    checkpoint: Path
    recipe: Recipe
    labeled: frozenset[str]

    def load_into(self, prepared: Prepared) -> str:
        """Give the networks of a new run the weights, and say what changed.

        Raises:
            CheckpointError: other networks or classes.
        """
        step = load_networks(prepared.method, self.checkpoint)
        now = prepared.split.labeled
        new = len(set(now) - self.labeled)
        left = len(self.labeled - set(now))
        gone = f", {left} no longer used" if left else ""
        return (
            f"from     {self.run} at step {step}, the weights of all its networks; labeled images: {len(self.labeled)} "
            f"then, {len(now)} now ({new} new{gone})"
        )


def begin_from(run: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Beginning:
    """Prepare a run that begins with the weights of another.

    Args:
        run: the earlier run.
        overrides: what changes in its recipe.

    Raises:
        CheckpointError: it has no checkpoint, or several stages.
        RecipeError: its recipe says how many masks to draw, and no list says which now; or a twin is asked for.
    """
    folder = RunDir(run)
    changed = dict(overrides) if isinstance(overrides, Mapping) else dict(map(parse_override, overrides))
    if (folder.path / STAGES).is_file():
        raise CheckpointError(f"{run} was trained in stages: a new run cannot begin with its weights. Train it anew.")
    before = folder.load_recipe()
    if before.data.domains:
        raise RecipeError(
            f"{run} learned from several domains: a new run cannot begin with its weights. Train it anew."
        )
    checkpoint = weights_of(folder.path)
    if checkpoint is None:
        raise CheckpointError(
            f"{run}: no checkpoint. A bundle alone holds one network; give the folder of the run.", "H407"
        )
    if changed.get("run.twin"):
        raise RecipeError(
            "--twin trains both from their start; a run that begins with weights would win. Leave it out."
        )
    lists = _lists(folder)
    new: dict[str, Any] = {"run.twin": False}
    fixed = (
        f"data.split={before.data.split}" if before.data.split is not None else f"data.labeled={before.data.labeled}"
    )
    listed = isinstance(before.data.labeled, str) or "data.labeled" in changed
    if not listed and (before.data.split is not None or before.data.labeled is not None):
        written = folder.path / "suggest" / "labeled.txt"
        raise RecipeError(
            f"{run} used only some masks ({fixed}): say which to use now, --labeled LIST"
            + (f", for example {written}." if written.is_file() else " (halfmask suggest writes one: labeled.txt).")
        )
    if before.data.val == "auto" and "data.val" not in changed:
        new["data.val"] = "none"
        if lists["val"]:
            new["data.val"] = str(folder.path / "val.txt")
            write_list(folder.path / "val.txt", lists["val"])
    recipe = load(folder.recipe, {**new, **changed})
    return Beginning(folder.path, checkpoint, recipe, frozenset(lists["labeled"]))


def _lists(folder: RunDir) -> dict[str, list[str]]:
    try:
        content = json.loads(folder.split.read_text(encoding="utf-8"))
        return {name: [str(id) for id in content[name]["ids"]] for name in ("labeled", "val")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder.split}: cannot be read ({error!r}). Restore it from the run.", "H402"
        ) from error
