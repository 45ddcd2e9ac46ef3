"""What evaluation and prediction need of a finished run or a bare bundle: folder, protocol, data."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from halfmask.errors import CheckpointError, OutOfMemoryError, RecipeError
from halfmask.recipe.read import DataRecipe, EvalRecipe, load
from halfmask.run.bundle import bundle_folder, domain_names, read_meta

_RESTORE = "Restore the file, or remove it to use the bundle alone."


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """The parts of a run that outlive its training.

    Args:
        folder: where model.json lies.
        protocol: how the run evaluates.
        data: its data section; the defaults for a bare bundle, or where the section was not asked for.
        recorded_val: ids of the validation images as written in split.json, or `None`.
    """

    folder: Path
    protocol: EvalRecipe
    data: DataRecipe
    recorded_val: list[str] | None


def open_run(run: str | Path, overrides: Sequence[str], sections: Sequence[str]) -> OpenedRun:
    """Read recipe and split of a run folder, or the protocol of a bare bundle, and apply overrides.

    Args:
        run: run folder, bundle folder or model.json.
        overrides: dotted keys.
        sections: recipe sections to read; overrides may change only them.

    Raises:
        CheckpointError: no bundle there.
        RecipeError: an override is wrong or of another section.
    """
    foreign = [text for text in overrides if text.partition(".")[0] not in sections]
    if foreign:
        allowed = " or ".join(f"{name}.*" for name in sections)
        raise RecipeError(
            f"{', '.join(foreign)}: the model is trained, only {allowed} can be changed now. "
            "Other keys belong to halfmask train."
        )
    folder = bundle_folder(run)
    # Only these sections: a method or dataset from someone's own file need not be importable to use its model.
    recipe = load(_stored_sections(folder, sections), overrides)
    return OpenedRun(folder, recipe.eval, recipe.data, _recorded_val(folder))


@dataclass(frozen=True, slots=True)
class Published:
    """A number from a paper, for the setting of a run's recipe.

    Args:
        metric: name of the score, as in `Scores.to_dict`.
        value: as a fraction.
        source: paper and table.
        split: which labels it was reached with.
        part: images it was computed on; where the recipe does not say, those the best checkpoint is selected on.
    """

    metric: str
    value: float
    source: str
    split: str | None
    part: str


def published(run: str | Path) -> Published | None:
    """Give the number that the run's recipe names for its split, or for the mean of its domains.

    It is `None` for a bare bundle, and where nothing is published.

    Raises:
        CheckpointError: no bundle there, or a damaged recipe.
    """
    several = bool(domain_names(run))
    recipe = load(_stored_sections(Path(run) if several else bundle_folder(run), ("data", "eval", "expected")))
    expected = recipe.expected.of_domain("mean") if several and recipe.expected else recipe.expected
    number = expected.number(recipe.data.split) if expected else None
    if expected is None or number is None:
        return None
    part = expected.part if isinstance(expected.part, str) else recipe.eval.select_on
    return Published(expected.metric, number, expected.source, recipe.data.split, part)


@contextmanager
def memory_cure(protocol: EvalRecipe) -> Iterator[None]:
    """Turn an out-of-memory error of the device into one that names the setting to change.

    Raises:
        OutOfMemoryError: the device has too little memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        if protocol.batch > 1:
            cure = "Use eval.batch=1."
        elif protocol.mode != "slide":
            cure = "Use windows: eval.mode=slide eval.window=512."
        else:
            cure = f"Use smaller windows than {protocol.window or 'the crop'}: eval.window=256; or --device cpu."
        raise OutOfMemoryError(f"the device has too little memory for evaluation ({error}). {cure}") from error


def _stored_sections(folder: Path, sections: Sequence[str]) -> dict[str, Any]:
    path = folder / "recipe.yaml"
    if not path.is_file():
        return {"eval": read_meta(folder / "model.json").get("eval") or {}}
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). {_RESTORE}", "H402") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: not a recipe. {_RESTORE}", "H402")
    return {name: raw[name] for name in sections if name in raw}


def _recorded_val(folder: Path) -> list[str] | None:
    path = folder / "split.json"
    if not path.is_file():
        return None
    try:
        return [str(id) for id in json.loads(path.read_text(encoding="utf-8"))["val"]["ids"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error!r}). {_RESTORE}", "H402") from error
