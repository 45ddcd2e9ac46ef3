"""Read the small files of a run: recipe, curves, lists, versions, warnings. No image, no network."""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from halfmask.errors import CheckpointError, RecipeError
from halfmask.infer.bundle import STAGES, names_in, read_meta
from halfmask.models.build import read_task
from halfmask.recipe.read import load, missing_sections
from halfmask.run.folder import RunDir, fold_name
from halfmask.task import Task

Points = list[tuple[int, float]]

_PREDICTOR = re.compile(r"([^/]+)/val/")
_SEED = re.compile(r"seed-\d+")


class Setting(NamedTuple):
    """One value of the resolved recipe and where it came from."""

    key: str
    value: str
    origin: str


@dataclass(frozen=True)
class Run:
    """The small files of one run."""

    path: Path  # its folder
    recipe: dict[str, Any]  # recipe.yaml as plain data
    settings: tuple[Setting, ...]  # every value with its origin
    records: tuple[dict[str, Any], ...]  # lines of metrics.jsonl
    split: dict[str, Any]  # split.json; empty if there is none
    environment: dict[str, Any]  # environment.json; empty if there is none
    meta: dict[str, Any] | None  # model.json; `None` before the first validation
    warnings: tuple[str, ...]  # messages of log.txt
    seconds: float  # training time by log.txt, without the pauses between a stop and the next resume

    @property
    def name(self) -> str:
        """Name of the folder, with the parent's name for a seed, a control or a twin."""
        parent = self.path.resolve().parent
        own = self.path.resolve().name
        return f"{parent.name}/{own}" if _SEED.fullmatch(own) or own in {"twin", "control"} else own

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.recipe["method"]["name"])

    @cached_property
    def task(self) -> Task | None:
        """Task of the model; `None` before the first validation."""
        if self.meta is None:
            return None
        return read_task(self.meta["task"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; none before the first validation."""
        return self.task.classes if self.task else ()

    @property
    def metric(self) -> str:
        """Score that checkpoints are chosen by."""
        return self.task.main_metric if self.task else "miou"

    @property
    def steps(self) -> int:
        """Steps done, as far as they are recorded."""
        return int(max((record["step"] for record in self.records), default=0))

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.recipe.get("run", {}).get("seed", 0))

    @cached_property
    def predictors(self) -> tuple[str, ...]:
        """Networks that were evaluated; the shipped one first."""
        found = (_PREDICTOR.match(name) for record in self.records for name in record)
        names = dict.fromkeys(match[1] for match in found if match)
        return tuple(sorted(names, key=lambda name: name != (self.meta or {}).get("predictor")))

    def curve(self, key: str) -> Points:
        """Return the steps and values of one recorded name."""
        return [(int(record["step"]), float(record[key])) for record in self.records if key in record]

    def family(self, prefix: str) -> dict[str, Points]:
        """Return the curves of all names below `prefix/`, by the rest of the name."""
        names = dict.fromkeys(name for record in self.records for name in record if name.startswith(f"{prefix}/"))
        return {name.removeprefix(f"{prefix}/"): self.curve(name) for name in names}

    def count(self, part: str) -> int | None:
        """Return the number of images in a part of the split: `labeled`, `unlabeled` or `val`."""
        entry = self.split.get(part)
        return None if entry is None else int(entry["count"])

    @property
    def device_count(self) -> int:
        """Devices that trained together."""
        settings = self.recipe.get("run", {})
        return int(settings.get("devices", 1)) * int(settings.get("nodes", 1))


def read_run(path: str | Path) -> Run:
    """Read the small files of a run folder; only recipe.yaml is required.

    Raises:
        CheckpointError: the folder is no run, or one of its files is damaged.
    """
    folder = RunDir(path)
    if not folder.recipe.is_file():
        raise CheckpointError(
            f"{path} is not a run folder: {folder.recipe.name} is missing. Name the folder given to "
            "halfmask train --out.",
            "H407",
        )
    recipe, text = _recipe(folder.recipe)
    meta = folder.path / "model.json"
    return Run(
        path=folder.path,
        recipe=recipe,
        settings=tuple(_settings(text)),
        records=tuple(_records(folder.metrics)),
        split=_split(folder.split),
        environment=_json(folder.environment),
        meta=read_meta(meta) if meta.is_file() else None,
        warnings=tuple(_warnings(folder.log)),
        seconds=_seconds(folder.log),
    )


def members(path: str | Path) -> list[tuple[Run, ...]]:
    """Find the runs in a folder: one entry per seed; each entry lists the stages of that run, the last one its result.

    Raises:
        CheckpointError: the folder holds no run, or its list of stages is damaged.
    """
    folder = Path(path)
    begun = [folder / name for name in names_in(folder / STAGES)]
    if stages := tuple(read_run(stage) for stage in begun if (stage / "recipe.yaml").is_file()):
        return [stages]
    if (folder / "recipe.yaml").is_file():
        return [(read_run(folder),)]
    seeds = sorted(
        (entry for entry in folder.glob("seed-*") if entry.is_dir() and _SEED.fullmatch(entry.name)),
        key=lambda entry: int(entry.name.removeprefix("seed-")),
    )
    if not seeds:
        raise CheckpointError(
            f"{path} is not a run folder: it holds no recipe.yaml, and no folders seed-N. Name the folder given to "
            "halfmask train --out.",
            "H407",
        )
    return [stages for seed in seeds for stages in members(seed)]


def _recipe(path: Path) -> tuple[dict[str, Any], str]:
    """Read recipe.yaml as plain data, and as text."""
    try:
        text = path.read_text(encoding="utf-8")
        recipe = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). Restore the file.", "H402") from None
    if not isinstance(recipe, dict) or not isinstance(recipe.get("method"), dict) or missing_sections(recipe):
        raise CheckpointError(f"{path}: not a resolved recipe, or cut short. Restore the file.", "H402")
    try:
        # The method may be of a file that is not here; the numbers that a page shows are of these sections.
        load({name: recipe[name] for name in ("optim", "eval", "run")})
    except RecipeError as error:
        raise CheckpointError(f"{path}: damaged. Restore the file. {error}", "H402") from None
    return recipe, text


def _split(path: Path) -> dict[str, Any]:
    split = _json(path)
    if not all(isinstance(entry, dict) and isinstance(entry.get("count"), int) for entry in split.values()):
        raise CheckpointError(f"{path}: not the lists of a run. Restore the file, or remove it.", "H402")
    return split


def _settings(text: str) -> list[Setting]:
    """Read the lines `key: value  # origin` that `Recipe.to_yaml` writes."""
    found: list[Setting] = []
    parents: list[str] = []
    for line in text.splitlines():
        match = re.match(r"( *)([^:#]+):(.*)$", line)
        if match is None:
            continue
        depth = len(match[1]) // 2
        parents = [*parents[:depth], match[2].strip()]
        value, mark, origin = match[3].strip().rpartition("  # ")
        if mark or match[3].strip():
            found.append(Setting(".".join(parents), value if mark else match[3].strip(), origin if mark else ""))
    return found


def _records(path: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl; a killed run may have left half a last line. Raises CheckpointError: no line is a record."""
    found: list[dict[str, Any]] = []
    if not path.is_file():
        return found
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            found.append({name: value for name, value in record.items() if isinstance(value, int | float)})
    if lines and not found:
        raise CheckpointError(f"{path}: holds no records. Restore the file, or remove it.", "H402")
    return found


def fold_seconds(run: Path) -> float:
    """Return the training time of all folds of a run, with what each was compared with; 0 without folds."""
    return sum((_seconds(log) for log in run.glob(f"{fold_name('*')}/**/log.txt")), 0.0)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{path}: cannot be read as JSON ({error}). Restore the file, or remove it.", "H402"
        ) from None
    return value if isinstance(value, dict) else {}


def _log_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def _warnings(path: Path) -> list[str]:
    lines = (re.sub(r"^\S+T\S+  ", "", line) for line in _log_lines(path))
    return list(dict.fromkeys(line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")))


def _seconds(path: Path) -> float:
    """Sum the seconds between start and stop; every start, also a resumed one, logs a line `data ...` first."""
    total, began, last = 0.0, None, None
    for line in _log_lines(path):
        stamp, _, text = line.partition("  ")
        try:
            now = datetime.fromisoformat(stamp)
        except ValueError:
            continue  # a line without time belongs to the one above
        if began is None or text.startswith("data "):
            total += (last - began).total_seconds() if began is not None and last is not None else 0.0
            began = now
        last = now
    return total + ((last - began).total_seconds() if began is not None and last is not None else 0.0)
