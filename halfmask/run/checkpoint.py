"""Write and read checkpoints; open all networks of a run; start a new run from the weights of another.

Checkpoints are written atomically, opened without running code, and checked before use. They hold all networks of a
run; a bundle holds one.

A new run takes the recipe of the earlier one, with what the user changes. Images that were validated on stay validation
images. Where there were none, none are held out: the weights have seen the masks that the earlier run trained on.
"""

import os
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from halfmask.atomic import atomic_path
from halfmask.data.splits.split import recorded_lists, write_list
from halfmask.errors import CheckpointError, RecipeError, bullet_list, first_few
from halfmask.infer.bundle import STAGES, Bundle, load_bundle, own_bundle
from halfmask.method import Method
from halfmask.models.build import Builder
from halfmask.models.key_rules import misfits
from halfmask.models.model import Network
from halfmask.models.statistics import install_statistics
from halfmask.plugins import arguments, resolve
from halfmask.recipe.read import Entry, ModelRecipe, Recipe, load, parse_override
from halfmask.run.folder import PREVIOUS, RunDir
from halfmask.run.loop.average import install_average
from halfmask.run.loop.lightning_library import CheckpointIO
from halfmask.run.loop.module import CHECKPOINT_FORMAT
from halfmask.run.prepared import Prepared

Lists = Mapping[str, Sequence[str]]  # ids of labeled, unlabeled and validation images


class AtomicCheckpointIO(CheckpointIO):
    """Writes beside the target and renames; the file that is replaced stays as `previous.ckpt`.

    An earlier checkpoint so survives a full disk, a kill, and a crash of the machine that damages the newest file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save tensors and plain types. Raises CheckpointError: the disk is full or the folder cannot be written."""
        with atomic_path(Path(path)) as temporary:
            torch.save(checkpoint, temporary)
            _keep_previous(Path(path))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Load with `weights_only=True`: a checkpoint cannot run code."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Open a checkpoint on the CPU. Raises CheckpointError: missing, truncated, or not one of ours."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such checkpoint. A run keeps its state in <run>/checkpoints/last.ckpt.", "H407"
        )
    try:
        with zipfile.ZipFile(path) as parts:  # torch itself compares no checksums
            changed = parts.testzip()
        if changed is not None:
            raise ValueError(f"the checksum of its part {changed} differs")
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file
        reason = (str(error) or repr(error)).splitlines()[0]
        if path.is_file() and path.stat().st_size == 0:
            reason = "0 bytes"
        raise CheckpointError(
            f"{path}: cannot be opened ({reason}). The file is damaged or holds more than tensors; use another "
            "checkpoint of the run.",
            "H402",
        ) from error
    about = checkpoint.get("halfmask") if isinstance(checkpoint, dict) else None
    if not isinstance(about, dict):
        raise CheckpointError(
            f"{path}: not a halfmask checkpoint. Give one that a run has written (<run>/checkpoints/last.ckpt); those "
            "of other projects become bundles by halfmask import FILE.",
            "H403",
        )
    found = about.get("format")
    if found != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint format {found}, this version reads {CHECKPOINT_FORMAT}. Use the halfmask version "
            "named in the run's environment.json.",
            "H404",
        )
    return checkpoint


def _keep_previous(path: Path) -> None:
    """Link the file that is about to be replaced to a second name; none is kept on a disk without links."""
    link = path.with_name(f".{path.stem}.{os.getpid()}.old.part{path.suffix}")
    with suppress(OSError):
        os.link(path, link)
        os.replace(link, path.with_name(PREVIOUS))


class ResumePoint(NamedTuple):
    """Where a run goes on."""

    checkpoint: Path
    header: dict[str, Any]  # what it says about the run and its step
    note: str = ""  # what is damaged; empty if nothing is


def resume_point(run: RunDir) -> ResumePoint:
    """Open the last checkpoint of a run, or the newest one that is intact.

    Raises:
        CheckpointError: there is none, none can be opened, or the last one is of another program or version.
    """
    try:
        return ResumePoint(run.last, read_checkpoint(run.last)["halfmask"])
    except CheckpointError as error:
        if error.code not in {"H402", "H407"}:
            raise
        failure = error
    intact: list[ResumePoint] = []
    for path in run.saved():
        with suppress(CheckpointError):
            intact.append(ResumePoint(path, read_checkpoint(path)["halfmask"]))
    if not intact:
        raise failure
    newest = max(intact, key=lambda point: int(point.header["step"]))
    why = "is missing" if failure.code == "H407" else "is damaged"
    step = newest.header["step"]
    note = f"{run.last} {why}: going on from {newest.checkpoint.name}, the newest intact checkpoint, of step {step}."
    return newest._replace(note=note)


def repair(run: RunDir, point: ResumePoint) -> ResumePoint:
    """Bring the files of a run to the state of the checkpoint that it goes on from."""
    run.remove_unfinished()
    run.forget_after(point.header["step"])
    if point.checkpoint != run.last:
        # Before anything is saved: the damaged file would become the previous one, and replace an intact one.
        with atomic_path(run.last) as part:
            shutil.copyfile(point.checkpoint, part)
    run.copy_best(point.header.get("best_steps", {}), point.header["step"])
    return point._replace(checkpoint=run.last)


def check_matches(
    path: Path, saved: dict[str, Any], meta: dict[str, Any], then: Lists | None = None, now: Lists | None = None
) -> None:
    """Refuse to continue a run whose classes or lists have changed.

    Args:
        path: of the checkpoint.
        saved: its header.
        meta: what a checkpoint of the run as it is now would say.
        then: ids of each list when the run began, to name the difference.
        now: likewise of the lists as they are.

    Raises:
        CheckpointError: class count, class names or split lists differ from the checkpoint's.
    """
    if saved["classes"] != meta["classes"]:
        raise CheckpointError(
            f"{path}: was trained for {len(saved['classes'])} classes ({first_few(saved['classes'], 4)}), the data has "
            f"{len(meta['classes'])} ({first_few(meta['classes'], 4)}). Use the data it was trained with, or start a "
            "new run with another --out.",
            "H405",
        )
    changed = [name for name, digest in saved["split"].items() if meta["split"].get(name) != digest]
    if changed:
        what = "".join(difference_of(name, then or {}, now or {}) for name in changed)
        raise CheckpointError(
            f"{path}: the {' and '.join(changed)} list differs from the one the run started with.{what}\n  Restore the "
            "files (the run's split.json names them all), or start a new run with another --out.",
            "H405",
        )


def difference_of(name: str, then: Lists, now: Lists) -> str:
    """List what is missing from a list and what is new in it; nothing where the earlier one is unknown."""
    if name not in then or name not in now:
        return ""
    gone, new = sorted(set(then[name]) - set(now[name])), sorted(set(now[name]) - set(then[name]))
    parts = [f"{len(ids)} {what} ({first_few(ids, 4)})" for what, ids in (("missing", gone), ("new", new)) if ids]
    return f"\n  {name}: {', '.join(parts) or 'the same images in another order'}"


def weights_of(run: str | Path) -> Path | None:
    """Return the checkpoint of the best validation of the shipped predictor, else the last, else `None`."""
    folder = RunDir(run)
    candidates = sorted(folder.checkpoints.glob("best-*.ckpt"))
    if candidates and (folder.path / "model.json").is_file():
        shipped = load_bundle(own_bundle(folder.path)).meta.get("predictor")
        candidates = [path for path in candidates if path == folder.best(str(shipped))]
    return next(iter(candidates), folder.last if folder.last.is_file() else None)


def load_networks(method: Method, checkpoint: Path) -> int:
    """Fill a method with the weights and buffers of a checkpoint, and give the checkpoint's step.

    Raises:
        CheckpointError: it is damaged, or of another method, network or number of classes.
    """
    content = read_checkpoint(checkpoint)
    saved = content["state_dict"]
    state = {name.removeprefix("method."): value for name, value in saved.items() if name.startswith("method.")}
    if problems := misfits(state, method.state_dict()):
        raise CheckpointError(
            f"{checkpoint} does not fit: the method, its networks or the classes differ (it was trained for "
            f"{', '.join(content['halfmask']['classes'])}). Keep these, or train a new run from its start:\n"
            f"{bullet_list(problems)}",
            "H405",
        )
    method.load_state_dict(state)
    average = content["halfmask"].get("average", {})
    if average.get("shipped"):
        install_average(method, average["mean"])
    predictors = method.predictors()
    for name, statistics in content["halfmask"].get("statistics", {}).items():
        install_statistics(predictors[name], statistics)  # the scores of this step were reached with them
    return int(content["halfmask"]["step"])


def open_predictors(bundle: Bundle, device: torch.device) -> dict[str, Network]:
    """Return every predictor of the run that a bundle belongs to, the shipped one first; of a bare bundle just that.

    Raises:
        CheckpointError: the checkpoint does not fit the run's recipe.
    """
    run = RunDir(bundle.folder)
    checkpoint = weights_of(run.path) if run.recipe.is_file() else None
    if checkpoint is None:
        return {str(bundle.meta.get("predictor", "model")): bundle.model}
    method, _ = open_method(bundle, checkpoint)
    found = {name: model.to(device).eval() for name, model in method.predictors().items()}
    return dict(sorted(found.items(), key=lambda item: item[0] != bundle.meta.get("predictor")))


def open_method(bundle: Bundle, checkpoint: Path) -> tuple[Method, int]:
    """Build the method of the run that a bundle belongs to, with the networks and the step of a checkpoint.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or does not fit the run's recipe.
        RecipeError: the method cannot be imported.
    """
    recipe = load(RunDir(bundle.folder).recipe)
    builder = Builder(
        _without_weights(recipe.model), bundle.task, crop=recipe.data.crop, channels=bundle.model.mean.numel(),
        mean=tuple(bundle.model.mean.flatten().tolist()), std=tuple(bundle.model.std.flatten().tolist()),
    )  # fmt: skip
    cls = resolve("methods", recipe.method.name)
    method: Method = cls(bundle.task, builder, **arguments(cls, recipe.method.params))
    return method, load_networks(method, checkpoint)


def _without_weights(model: ModelRecipe) -> ModelRecipe:
    """Return the recipe without pretrained weights: the checkpoint brings them, nothing is downloaded."""
    params = {key: value for key, value in model.encoder.params.items() if key != "weights"}
    return model.model_copy(update={"encoder": Entry(name=model.encoder.name, **params)})


@dataclass(frozen=True)
class Beginning:
    """Where a new run begins."""

    run: Path  # the earlier run
    checkpoint: Path  # of its networks
    recipe: Recipe  # of the new run
    labeled: frozenset[str]  # what the earlier run learned from

    def load_into(self, prepared: Prepared) -> str:
        """Load the weights into the networks of a new run, and report what changed.

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
            "--twin trains a control from its start; a run that begins with weights would win. Leave it out."
        )
    lists = recorded_lists(folder.split, "labeled", "val", cure="Restore it from the run.")
    new: dict[str, Any] = {"run.twin": None}
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
