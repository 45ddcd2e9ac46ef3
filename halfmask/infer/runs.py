"""Open a finished run or a bundle: its folder, protocol and data, the images of a part, and whether classes match."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from halfmask.data.contract import Dataset
from halfmask.data.folder.lists import Finder
from halfmask.data.splits.split import open_dataset, part_ids, recorded_lists, resolve_split
from halfmask.errors import CheckpointError, DataError, OutOfMemoryError, RecipeError, bullet_list, first_few, nearest
from halfmask.infer.bundle import FOLDS, PREDICTORS, Bundle, bundle_folder, read_meta
from halfmask.recipe.read import DataRecipe, EvalRecipe, load, missing_sections

_RESTORE = "Restore the file, or remove it to use the bundle alone."


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """The parts of a run that outlive its training."""

    folder: Path  # where model.json lies
    protocol: EvalRecipe  # how the run evaluates
    data: DataRecipe  # its data section; the defaults for a bare bundle, or where the section was not asked for
    recorded_val: list[str] | None  # ids of the validation images as written in split.json, or `None`
    lists: Path  # split.json, which may not be there


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
    lists = _home(folder) / "split.json"
    val = recorded_lists(lists, "val", cure=_RESTORE)["val"] if lists.is_file() else None
    return OpenedRun(folder, recipe.eval, recipe.data, val, lists)


@dataclass(frozen=True, slots=True)
class Published:
    """A number from a paper, for the setting of a run's recipe."""

    metric: str  # name of the score, as in `Scores.to_dict`
    value: float  # as a fraction
    source: str  # paper and table
    split: str | None  # which labels it was reached with
    part: str  # images it was computed on; where the recipe does not say, those the best checkpoint is selected on


def published(run: str | Path) -> Published | None:
    """Return the number that the run's recipe names for its split, or for the mean of its domains.

    It is `None` for a bare bundle, and where nothing is published.

    Raises:
        CheckpointError: no bundle there, or a damaged recipe.
    """
    asked, several = ("data", "eval", "expected"), False
    if (Path(run) / "recipe.yaml").is_file():
        several = bool((_stored_sections(Path(run), asked).get("data") or {}).get("domains"))
    recipe = load(_stored_sections(Path(run) if several else bundle_folder(run), asked))
    expected = recipe.expected.of_domain("mean") if several and recipe.expected else recipe.expected
    number = expected.number(recipe.data.split) if expected else None
    if expected is None or number is None:
        return None
    part = expected.part if isinstance(expected.part, str) else recipe.eval.select_on
    return Published(expected.metric, number, expected.source, recipe.data.split, part)


@contextmanager
def memory_cure(protocol: EvalRecipe) -> Iterator[None]:
    """Turn an out-of-memory error of the device into an OutOfMemoryError that names the setting to change."""
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


def _home(folder: Path) -> Path:
    """Return the folder that recipe and lists lie in: that of the run, also of a predictor that was not shipped."""
    run = folder.resolve().parent.parent
    return run if folder.resolve().parent.name == PREDICTORS and (run / "recipe.yaml").is_file() else folder


def _stored_sections(folder: Path, sections: Sequence[str]) -> dict[str, Any]:
    path = _home(folder) / "recipe.yaml"
    if not path.is_file():
        return {"eval": read_meta(folder / "model.json").get("eval") or {}}
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). {_RESTORE}", "H402") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: not a recipe. {_RESTORE}", "H402")
    if absent := missing_sections(raw):
        raise CheckpointError(f"{path}: cut short, {', '.join(absent)} is missing. {_RESTORE}", "H402")
    return {name: raw[name] for name in sections if name in raw}


def cross_validated(run: Path) -> dict[str, Any] | None:
    """Return what `folds.json` says of a run with cross-validation: the estimate of its score, and from what."""
    try:
        found = json.loads((run / FOLDS).read_text(encoding="utf-8"))["result"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) else None


def open_part_of(
    opened: OpenedRun, data: str | Path | None, part: str, recorded_val: list[str] | None
) -> tuple[Dataset, list[str]]:
    """Open a dataset and give the ids to evaluate a run on: see `open_part`.

    Raises:
        DataError: also with the score of cross-validation, where that leaves no mask to evaluate on.
    """
    try:
        return open_part(opened.data, data, part, recorded_val)
    except DataError as error:
        if error.code != "H210" or part != "val" or data is not None or not (opened.folder / FOLDS).is_file():
            raise
    found, text = cross_validated(opened.folder), f"its folds are not finished: halfmask train --resume {opened.folder}"
    if found is not None:
        score = found["other" if found["ships"] == "other" else "score"]
        low, high = score["low"], score["high"]
        interval = "" if low is None else f", 95 % interval {100 * low:.1f} to {100 * high:.1f}"
        text = (
            f"how good it is, its folds tell: {found['metric']} {100 * (score['value'] or 0.0):.1f} %{interval}, each "
            f"of the {found['images']} masks predicted by networks that have not seen it ({opened.folder / FOLDS})"
        )
    raise DataError(
        f"{opened.folder} learned from all masks, so no validation image is left to score it on; {text}. To score it "
        "on other images with masks: --data DIR, or --part test or a list file.",
        "H210",
    )


_PARTS = ("val", "test", "train", "all")


def open_part(
    recipe: DataRecipe, data: str | Path | None, part: str, recorded_val: list[str] | None
) -> tuple[Dataset, list[str]]:
    """Open a dataset and give the ids to evaluate.

    Args:
        recipe: data section of the run.
        data: folder of the dataset; `None` takes the run's.
        part: `val`, `test`, `train`, `all`, or a list file.
        recorded_val: validation ids that the run recorded.

    Raises:
        DataError: a list that names other images, or no image with a mask in the part.
        RecipeError: no folder, or an unknown part.
    """
    if part not in _PARTS and not Path(part).is_file():
        raise RecipeError(
            f"part {part!r} is unknown.{nearest(part, _PARTS)} Known: {', '.join(_PARTS)}, or a list file that exists.",
            "H303",
        )
    here = recipe if data is None else recipe.model_copy(update={"root": str(data)})
    if here.root is None:
        raise RecipeError("the bundle does not say where data is. Give the folder: --data DIR.")
    # Without the lists of training: they name images of the training data, and other data has none of them.
    dataset = open_dataset(here.model_copy(update={"split": None, "labeled": None, "unlabeled": None, "val": "auto"}))
    held_out = recorded_val if recorded_val and all(map(dataset.mask_path, recorded_val)) else None
    if part == "val" and (data is None or held_out):
        # Opened as in training, the same masks are sealed and the classes are found in the same files.
        dataset = open_dataset(here)
        resolved = list(resolve_split(here, dataset).val)
        # A part held out anew, after images were added, could hold images of the training. Without any (data.val=none)
        # the data's own part is taken, which never trains.
        ids = recorded_val or resolved or dataset.ids("val")
    elif part == "all":
        ids = sorted({id for name in ("train", "val", "test") for id in dataset.ids(name)})
    elif part == "test" and data is None and here.split is not None:
        ids = list(part_ids(here, dataset, part))  # published splits bring their own list
    elif part in _PARTS:
        ids = dataset.ids(part)
    else:
        ids = _listed(Path(part), dataset)
    ids = [id for id in ids if dataset.mask_path(id) is not None]
    if not ids:
        raise DataError(
            f"{dataset.root}: the part {part!r} has no image with a mask. {_others(dataset, held_out)}",
            "H210",
        )
    dataset.sealed -= frozenset(ids)
    return dataset, ids


def _others(dataset: Dataset, held_out: Sequence[str] | None) -> str:
    """List the parts that can be evaluated instead; `held_out` of the training part validates where no part does."""
    counts = {part: sum(dataset.mask_path(id) is not None for id in dataset.ids(part)) for part in _PARTS[:3]}
    whole = sum(counts.values())
    counts["val"] = counts["val"] or len(held_out or ())
    there = [f"--part {part} ({count})" for part, count in counts.items() if count]
    if not there:
        return "No part has one: give a folder with masks (--data DIR)."
    return f"What there is: {', '.join(there)}, --part all ({whole}); or name a list file."


def check_classes(bundle: Bundle, dataset: Dataset) -> None:
    """Refuse data whose classes are not the model's: another number, order or kind of them (CheckpointError)."""
    if bundle.task.kind != dataset.task.kind:
        raise CheckpointError(
            f"{bundle.folder} was trained for {bundle.task.kind}, {dataset.root} is {dataset.task.kind} data. "
            "Give matching data with --data.",
            "H405",
        )
    model, data = bundle.task.classes, dataset.task.classes
    if len(model) != len(data):
        raise CheckpointError(
            f"{bundle.folder} predicts {len(model)} classes ({first_few(model, 4)}), but the masks in {dataset.root} "
            f"have {len(data)} ({first_few(data, 4)}). Evaluate on data of the same classes (--data), name the "
            "classes in halfmask.yaml as in training, or train a model for these.",
            "H405",
        )
    if model != data and sorted(model) == sorted(data):
        raise CheckpointError(
            f"{bundle.folder} has the classes of {dataset.root} in another order: ({first_few(model, 4)}) against "
            f"({first_few(data, 4)}). Use the order of training in the data's halfmask.yaml.",
            "H405",
        )


def _listed(path: Path, dataset: Dataset) -> list[str]:
    """Return ids of a list file; masks of a second column are taken over."""
    ids, absent = Finder(dataset).take_list(path, masks=True)
    if absent:
        raise DataError(
            f"{path}: {len(absent)} images are not below {dataset.root}. Give the folder they lie in with --data, or "
            f"take them off the list:\n{bullet_list(absent)}",
            "H211",
        )
    return ids
