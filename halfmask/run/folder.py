"""The folder of a run: what lies in it, how it is created, and how a resumed run finds its place.

recipe.yaml (resolved, with the origin of each value), environment.json, split.json, metrics.jsonl, log.txt,
tb/, checkpoints/{last,previous,best-<predictor>}.ckpt, model.safetensors + model.json (the bundle), metrics.json
(last `evaluate`), predictions/, control/, twin/ and twin.json (the run without the loss of the unlabeled images, the
supervised twin, and the comparison with them), predictors/ (bundles of networks that were asked for by name)

A run with cross-validation has folds.json, lists/, and a run folder fold-K of each fold: `halfmask.run.folds`.

A run of several stages has stages.json (their names, in order) and a run folder of each stage: `halfmask.run.stages`.

A run over several domains has domains.json (their names), and recipe.yaml, split.json and bundle of each in a folder
of its name.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from halfmask.atomic import atomic_path, flush, require_writable, write_json, write_text
from halfmask.data.splits.split import Split, recorded_lists
from halfmask.errors import CheckpointError, DataError, Interrupted
from halfmask.infer.bundle import FOLDS, STAGES
from halfmask.infer.domains import DOMAINS, domain_names
from halfmask.recipe.read import Recipe, load

Overwrite = bool | Literal["but_folds"]  # whether a new run removes what an earlier one left in its folder
PREVIOUS = "previous.ckpt"  # the checkpoint before the last one, for the case that a crash damages that
# What a run writes, and a new one in its place removes.
_FILES = """recipe.yaml environment.json split.json metrics.jsonl log.txt metrics.json model.safetensors model.json
report.html twin.json artifacts.json""".split()
_FOLDERS = ("tb", "checkpoints", "predictions", "predictors", "cache", "report")
_PACKAGES = ("halfmask", "torch", "torchvision", "timm", "lightning", "segmentation-models-pytorch", "numpy", "pillow")


class RunDir:
    """Paths and small files of one run.

    Args:
        path: the folder; nothing is created until `create`.
        root: folder of the whole run, where this is one stage of it.
    """

    def __init__(self, path: str | Path, root: Path | None = None) -> None:
        self.path = Path(path)
        self.root = root or self.path  # what the user names to go on

    recipe = property(lambda self: self.path / "recipe.yaml")
    environment = property(lambda self: self.path / "environment.json")
    split = property(lambda self: self.path / "split.json")
    metrics = property(lambda self: self.path / "metrics.jsonl")
    log = property(lambda self: self.path / "log.txt")
    checkpoints = property(lambda self: self.path / "checkpoints")
    last = property(lambda self: self.path / "checkpoints" / "last.ckpt")
    previous = property(lambda self: self.path / "checkpoints" / PREVIOUS)

    artifacts = property(lambda self: self.path / "artifacts.json")

    # What a stage cannot be called, nor anything that it writes.
    taken = frozenset(
        (*_FILES, *_FOLDERS, *"stages.json domains.json twin control suggest val.txt folds.json lists".split())
    )

    def kept(self, step: int) -> Path:
        """Return the path of the checkpoint of a step that a stage keeps for what comes after it."""
        return self.path / "checkpoints" / f"kept-{step}.ckpt"

    def kept_checkpoints(self) -> list[Path]:
        """List the checkpoints that a stage kept before its last one, in order of their steps."""
        found = self.checkpoints.glob("kept-*.ckpt")
        return sorted(found, key=lambda path: int(path.stem.removeprefix("kept-")))

    def best(self, predictor: str) -> Path:
        """Return the path of the checkpoint of a predictor's best validation score."""
        return self.path / "checkpoints" / f"best-{predictor}.ckpt"

    def saved(self) -> list[Path]:
        """List the checkpoints that a run can go on from, intact or not, `last.ckpt` first if it is there."""
        found = [path for path in self.checkpoints.glob("*.ckpt") if not path.name.startswith((".", "kept-"))]
        return sorted(found, key=lambda path: (path != self.last, path.name))

    def copy_best(self, best_steps: Mapping[str, int], step: int) -> None:
        """Copy `last.ckpt`, which is of `step`, for each predictor whose best validation was at this step."""
        for name, best_step in best_steps.items():
            if best_step == step:
                with atomic_path(self.best(name)) as part:
                    shutil.copyfile(self.last, part)

    def flush_records(self) -> None:
        """Wait until the records are on the disk."""
        for path in (self.metrics, self.log):
            if path.exists():
                flush(path)

    def remove_unfinished(self) -> None:
        """Remove what a killed run had begun to write: a part of a checkpoint can be gigabytes."""
        parts = list(self.checkpoints.glob(".*.part.ckpt"))
        for folder in (self.path, *(self.path / name for name in domain_names(self.path))):
            parts += [*folder.glob(".model.*.part.*"), *folder.glob(".metrics.*.part.jsonl")]
        for part in parts:
            part.unlink(missing_ok=True)

    def check_free(self, *, overwrite: Overwrite = False) -> None:
        """Refuse a place where a new run cannot begin.

        Raises:
            DataError: the folder holds files and `overwrite` is false, it is a file, or it cannot be written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise DataError(f"{self.path} is a file. Choose another folder with --out.", "H502")
        require_writable(self.path)
        if overwrite or not self.path.is_dir() or not any(self.path.iterdir()):
            return
        begun = self.saved() or (self.path / FOLDS).is_file()
        go_on = f"Continue it: halfmask train --resume {self.root}; start" if begun else "Start"
        raise DataError(f"{self.path} is not empty. {go_on} anew in it: --overwrite; or choose another --out.", "H408")

    def create(self, *, overwrite: Overwrite = False) -> None:
        """Make an empty run folder, but for the folds of cross-validation where they are to be kept.

        Args:
            overwrite: remove the files of an earlier run; `but_folds`: all but the folds and their lists.

        Raises:
            DataError: the folder holds files and `overwrite` is false, or cannot be written.
        """
        self.check_free(overwrite=overwrite)
        try:
            if self.path.is_dir():
                self._clear(keep_folds=overwrite == "but_folds")
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be written ({error.strerror}). Choose another folder with --out.", "H502"
            ) from None

    def _clear(self, *, keep_folds: bool = False) -> None:
        """Remove the files a run writes, and nothing else: a mistyped --out must not cost anyone's data."""
        self.remove_unfinished()
        if not keep_folds:
            self._forget_folds()
        for name in (*domain_names(self.path), *stage_names(self.path)):
            part = RunDir(self.path / name)
            if part.path.is_dir():
                part._clear()
                if not any(part.path.iterdir()):
                    part.path.rmdir()
        for name in self.recorded_artifacts().get("written", []):
            own = Path(str(name)).name
            for path in (self.path / own, self.path / f"{own}.part"):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for name in (DOMAINS, STAGES, *_FILES):
            (self.path / name).unlink(missing_ok=True)
        for name in ("control", "twin"):
            if (self.path / name / "recipe.yaml").is_file():
                shutil.rmtree(self.path / name, ignore_errors=True)
        for name in (*_FOLDERS, "pseudo_masks", "pseudo_masks.part"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def _forget_folds(self) -> None:
        """Remove the folds of an earlier run with cross-validation."""
        if not (self.path / FOLDS).is_file():
            return
        for path in self.path.glob(f"{fold_name('*')}/recipe.yaml"):
            shutil.rmtree(path.parent, ignore_errors=True)
        shutil.rmtree(self.path / "lists", ignore_errors=True)
        (self.path / FOLDS).unlink(missing_ok=True)

    def write_start(self, recipe: Recipe, lists: Mapping[str, Any]) -> None:
        """Write recipe, environment and lists of a new run."""
        write_text(self.recipe, recipe.to_yaml(origins=True))
        write_text(self.environment, json.dumps(environment(), indent=2) + "\n")
        write_text(self.split, json.dumps(lists, indent=1) + "\n")

    def recorded_lists(self) -> dict[str, list[str]]:
        """Return the ids of each list of a run that has begun; nothing where they cannot be read."""
        with suppress(CheckpointError):
            return recorded_lists(self.split)
        return {}

    def begin_stages(self, recipe: Recipe, stages: Sequence[str], limit: int | None) -> None:
        """Remove an earlier run and write what the folder holds beside its stages: the recipe, and their order."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._clear()
        write_json(self.path / STAGES, {name: {"limit": limit} for name in stages}, error=DataError)
        write_text(self.recipe, recipe.to_yaml(origins=True))

    def stage_limit(self) -> int | None:
        """Return the `--limit` that the stages of a run were started with."""
        stages = _json(self.path / STAGES)
        limits = [stage.get("limit") for stage in stages.values()] if isinstance(stages, dict) else []
        return next((int(limit) for limit in limits if limit is not None), None)

    def recorded_artifacts(self) -> dict[str, Any]:
        """Return what a stage recorded of its files; nothing where it has written none."""
        found = _json(self.artifacts)
        return found if isinstance(found, dict) else {}

    def load_recipe(self, overrides: tuple[str, ...] = ()) -> Recipe:
        """Read the run's resolved recipe. Raises CheckpointError: the folder is no run."""
        if not self.recipe.exists():
            cure = "Give the folder that `halfmask train` named as --out."
            raise CheckpointError(f"{self.path} is not a run folder: {self.recipe.name} is missing. {cure}", "H407")
        return load(self.recipe, overrides)

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop metrics that a killed run wrote after its last checkpoint; they will be written again."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, LookupError, TypeError):
                continue  # the line that the kill cut short, or what a crash left of one
        write_text(self.metrics, "".join(f"{line}\n" for line in kept))


@contextmanager
def naming_resume(root: Path) -> Iterator[None]:
    """Say how to go on where Ctrl-C comes between two trainings of a run, while nothing else hears it (Interrupted)."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted. Continue with: halfmask train --resume {root}") from None


def fold_name(number: int | str) -> str:
    """Return the folder of a fold of cross-validation, counted from 1."""
    return f"fold-{number}"


def stage_names(path: Path) -> tuple[str, ...]:
    """Return the stages of a run, in their order; none where the folder is of anything else."""
    names = _json(path / STAGES)
    return tuple(str(name) for name in names) if isinstance(names, list | dict) else ()


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def describe_split(split: Split) -> dict[str, Any]:
    """Return the lists of a split with counts and one hash per list."""
    lists = {"labeled": split.labeled, "unlabeled": split.unlabeled, "val": split.val}
    digests = {name: hashlib.sha256("\n".join(ids).encode()).hexdigest() for name, ids in lists.items()}
    return {name: {"count": len(ids), "sha256": digests[name], "ids": list(ids)} for name, ids in lists.items()}


def environment() -> dict[str, Any]:
    """Record versions, hardware and the state of a git checkout in the working folder."""
    import torch

    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_cores": os.cpu_count(),
        "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "packages": versions,
        "git": _git_state(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _git_state() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
