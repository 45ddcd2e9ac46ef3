"""Several trainings in a row: each stage in a folder of its own, and what it writes for the next ones.

    <run>/recipe.yaml, stages.json             the recipe of the run; the names of its stages, in order
    <run>/<stage>/                             a run folder as ever, and the masks and lists that `after` wrote
    <run>/<stage>/artifacts.json               what was begun there; what later stages name, once `after` has returned

A killed run resumes anywhere: in a training, between two stages, or in `after`, which is then called again.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch import distributed as dist

from halfmask.atomic import atomic_path, write_json
from halfmask.data.convert.convert import mask_image
from halfmask.data.folder.lists import write_list
from halfmask.data.splits import split as splits
from halfmask.data.splits.weak import load_weak
from halfmask.errors import DataError, RecipeError
from halfmask.infer.bundle import load_bundle
from halfmask.infer.devices import is_first_rank, pick_device
from halfmask.infer.inference import class_map, probabilities
from halfmask.infer.predict.tiles import tiled_class_map
from halfmask.method import Artifacts, Method, Stage
from halfmask.models.model import Network
from halfmask.palette import palette_of
from halfmask.progress import looking_at_files
from halfmask.recipe.read import EvalRecipe, Recipe, UnlabeledRecipe, load
from halfmask.run.checkpoint import load_networks
from halfmask.run.folder import RunDir, naming_resume
from halfmask.run.loop.progress import ProgressLine
from halfmask.run.own_loop import build_method

if TYPE_CHECKING:
    from halfmask.run.fit import TrainResult

_WHOLE_BYTES = 2**30  # of the largest map of probabilities; images with more are labeled in tiles
_LONGEST_WAIT = timedelta(days=7)  # of the other processes, while the first one labels images


@runtime_checkable
class TrainStage(Protocol):
    """Trains one stage; `halfmask.run.fit` has it."""

    def __call__(
        self, recipe: Recipe, run: RunDir, *, resume: bool, overwrite: bool, limit: int | None,
        begin: Callable[[], None], keep: int,
    ) -> "TrainResult":  # fmt: skip
        """Train in a folder, or continue there; `begin` is called once everything has been checked."""
        ...


def train_stages(
    recipe: Recipe,
    run: RunDir,
    stages: Sequence[Stage],
    train: TrainStage,
    *,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    quiet: bool,
    limit: int | None,
) -> "TrainResult":
    """Train one stage after the other; a resumed run goes on where it was killed.

    Raises:
        RecipeError: two stages have one name, or a name that is no folder of a run.
        DataError: as training; or an `after` wrote no list, no mask, or named a path that does not exist.
    """
    _check_names(stages)
    first = is_first_rank()
    if resume:
        limit = run.stage_limit()
    elif first:
        run.check_free(overwrite=overwrite)

    def begin() -> None:
        if first:
            run.begin_stages(recipe, [stage.name for stage in stages], limit)

    result, seconds = None, 0.0
    made: dict[str, Path] = {}
    for number, stage in enumerate(stages):
        part = RunDir(run.path / stage.name, root=run.path)
        begun = resume and bool(part.saved())
        if first and not quiet:
            ProgressLine().say(f"stage    {stage.name}, {number + 1} of {len(stages)}")
        result = train(
            stage_recipe(recipe, stage, made),
            part,
            resume=begun,
            overwrite=overwrite or resume,
            limit=limit,
            begin=begin if number == 0 and not resume else lambda: None,
            keep=stage.keep_checkpoints,
        )
        seconds += result.seconds
        if dry_run:
            if stage.after is not None:
                break  # what the next stage needs is written by this one
            continue
        if stage.after is not None:
            all_done = _waiting()
            if first:
                with naming_resume(run.path):
                    finish_stage(run, stage, made, quiet=quiet)
            all_done()
            made |= _artifacts(part) or {}
    assert result is not None
    return dataclasses.replace(result, out=run.path, seconds=seconds)


def stage_recipe(recipe: Recipe, stage: Stage, made: Artifacts) -> Recipe:
    """Return the recipe of a stage; paths of earlier stages may be its values."""
    asked = stage.overrides(made) if callable(stage.overrides) else stage.overrides
    if not asked:
        return recipe
    changed = {key: str(value) if isinstance(value, Path) else value for key, value in asked.items()}
    # A list names images of the place where the run has its unlabeled images.
    if isinstance(changed.get("data.unlabeled"), str) and isinstance(recipe.data.unlabeled, UnlabeledRecipe):
        changed["data.unlabeled.list"] = changed.pop("data.unlabeled")
    return load(recipe.model_dump(mode="json"), changed)


def finish_stage(run: RunDir, stage: Stage, made: Artifacts, *, quiet: bool = True) -> None:
    """Call `after` of a trained stage and record what it wrote, unless an earlier call has done so.

    Raises:
        DataError: an image cannot be read, the disk is full, or `after` names what is not there.
    """
    part = RunDir(run.path / stage.name, root=run.path)
    if stage.after is None or _artifacts(part) is not None:
        return
    context = FinishedStage(part, made, quiet=quiet)
    named = {name: Path(path) for name, path in (stage.after(context) or {}).items()}
    if absent := [f"{name}: {path}" for name, path in named.items() if not path.exists()]:
        raise DataError(
            f"stage {stage.name} says that it wrote {', '.join(absent)}, and nothing is there. Its `after` must return "
            "paths that exist: write_masks, write_list and place give them."
        )
    base = run.path.resolve()
    kept = {
        name: path.resolve().relative_to(base).as_posix() if path.resolve().is_relative_to(base) else str(path)
        for name, path in named.items()
    }
    write_json(part.artifacts, {"written": context.written, "artifacts": kept}, error=DataError)


class FinishedStage:
    """What `Stage.after` sees of a stage: see `halfmask.method.StageContext`.

    Args:
        run: folder of the stage.
        artifacts: what earlier stages wrote.
        quiet: show no progress.
    """

    def __init__(self, run: RunDir, artifacts: Artifacts, *, quiet: bool = True) -> None:
        self.run, self.quiet = run, quiet
        self.artifacts: Artifacts = dict(artifacts)
        self.recipe = run.load_recipe()
        data = self.recipe.data
        self.dataset = splits.open_dataset(data)
        self.split = splits.resolve_split(data, self.dataset)
        self.unlabeled = splits.unlabeled_dataset(data, self.dataset)
        self.device = pick_device("cpu" if self.recipe.run.accelerator == "cpu" else "auto")
        self.tags: Mapping[str, Tensor] = {}
        if data.weak is not None and data.weak.tags is not None:
            asked = data.weak.model_copy(update={"masks": None})
            table = load_weak(asked, self.unlabeled, self.dataset.task, self.split.unlabeled).tags
            assert table is not None  # that is what was asked for
            rows = torch.from_numpy(table).to(self.device)
            self.tags = dict(zip(self.split.unlabeled, rows, strict=True))
        self.written = _written(run)

    @property
    def folder(self) -> Path:
        """Folder of the stage."""
        return self.run.path

    def predictor(self) -> Network:
        """Load the shipped predictor at its best validation."""
        return load_bundle(self.folder, self.device).model

    def checkpoints(self) -> list[Path]:
        """List the kept checkpoints, the last one at the end."""
        return [*self.run.kept_checkpoints(), self.run.last]

    def load(self, checkpoint: Path | None = None) -> Method:
        """Load the method with all its networks from a checkpoint."""
        method = build_method(self.recipe, self.dataset, pretrained=False).to(self._dtype)
        load_networks(method, checkpoint or self.run.last)
        return method.to(self.device).eval()

    def image(self, id: str) -> Tensor:
        """Read an unlabeled image in [0, 1]."""
        pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(self.unlabeled.read_image(id), -1, -3)))
        return pixels.to(self.device).to(self._dtype) / 255

    def probabilities(
        self, model: Network, image: Tensor, *, scales: Sequence[float] | None = None, flip: bool | None = None
    ) -> Tensor:
        """Predict an image of any size, by the recipe's protocol where nothing else is said."""
        return probabilities(model, image[None], self._protocol(scales, flip), self.recipe.data.crop)[0]

    def class_map(
        self, model: Network, image: Tensor, *, scales: Sequence[float] | None = None, flip: bool | None = None,
        mode: Literal["whole", "slide"] | None = None,
    ) -> Tensor:  # fmt: skip
        """Label an image of any size; in tiles, where the probabilities of all its pixels would take too much."""
        protocol, crop = self._protocol(scales, flip, mode), self.recipe.data.crop
        largest = 4 * model.classes * image.shape[-2] * image.shape[-1] * max(protocol.scales) ** 2
        if largest <= _WHOLE_BYTES:
            return class_map(model, image[None], protocol, crop)[0]
        return tiled_class_map(model, image, protocol, crop, self.folder)

    def write_masks(self, name: str, ids: Sequence[str], label: Callable[[str, Tensor], Tensor]) -> Path:
        """Label images; masks of an earlier, killed call are kept."""
        folder = self.place(name)
        if folder.is_dir():
            return folder
        if not ids:
            raise DataError(f"{folder}: no images to label. A stage cannot learn from an empty folder of masks.")
        part, colors = folder.with_name(f"{name}.part"), palette_of(self.dataset.task)
        stems = Counter(str(Path(id).with_suffix("")) for id in {*self.split.unlabeled, *ids})
        for unfinished in part.rglob(".*.part.png"):
            unfinished.unlink()
        with looking_at_files(self.quiet) as on_file:
            for number, id in enumerate(ids, 1):
                alone = stems[str(Path(id).with_suffix(""))] == 1  # else a.jpg and a.png would share a mask
                path = part / (Path(id).with_suffix(".png") if alone else f"{id}.png")
                if not path.is_file():
                    mask = self._labeled(id, label)
                    with atomic_path(path, error=DataError) as file:
                        mask_image(mask, colors).save(file)
                on_file(number, len(ids))
        if not any(self._says_something(path) for path in part.rglob("*.png")):
            raise DataError(
                f"all {len(ids)} pseudo-masks of {folder} are of ignored pixels only, so the next stage would learn "
                "nothing from them. Lower the threshold that chooses pixels, or train the stage before for longer "
                f"(run.steps); then start anew with --overwrite. What was written is in {part}.",
                "H607",
            )
        part.rename(folder)
        return folder

    def write_list(self, name: str, ids: Sequence[str]) -> Path:
        """Write a list that a recipe can name."""
        path = self.place(name if name.endswith(".txt") else f"{name}.txt")
        if not ids:
            raise DataError(f"{path}: the list would be empty, and no stage can learn from it. Choose more images.")
        with atomic_path(path, error=DataError) as file:
            write_list(file, ids)
        return path

    def place(self, name: str) -> Path:
        """Record a name before anything is written under it, so that `--overwrite` can remove it."""
        if Path(name).name != name or name.startswith(".") or name.removesuffix(".part") in RunDir.taken:
            raise RecipeError(
                f"a stage cannot write {name!r}: it must be a plain name, and no file of every run. Choose another."
            )
        if name not in self.written:
            self.written.append(name)
            write_json(self.run.artifacts, {"written": self.written}, error=DataError)
        return self.folder / name

    def _protocol(self, scales: Sequence[float] | None, flip: bool | None, mode: str | None = None) -> EvalRecipe:
        asked = {"scales": None if scales is None else tuple(scales), "flip": flip, "mode": mode}
        return self.recipe.eval.model_copy(update={key: one for key, one in asked.items() if one is not None})

    def _says_something(self, path: Path) -> bool:
        task = self.dataset.task
        with Image.open(path) as mask:
            classes = np.asarray(mask)
        return bool(((classes < task.n_classes) & (classes != task.ignore_index)).any())

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float64 if self.recipe.run.precision == "64-true" else torch.float32

    @torch.no_grad()
    def _labeled(self, id: str, label: Callable[[str, Tensor], Tensor]) -> np.ndarray:
        image, task = self.image(id), self.dataset.task
        mask = label(id, image)
        if mask.shape != image.shape[-2:]:
            raise DataError(
                f"{id}: the pseudo-mask has the shape {tuple(mask.shape)}, its image {tuple(image.shape[-2:])}. "
                "`label` must return one class per pixel."
            )
        values = mask.cpu().numpy()
        odd = np.unique(values[(values != task.ignore_index) & ((values < 0) | (values >= task.n_classes))])
        if odd.size:
            raise DataError(
                f"{id}: the pseudo-mask holds {', '.join(map(str, odd[:5]))}, but classes are 0 to "
                f"{task.n_classes - 1}, and {task.ignore_index} where nothing is known. Correct `label`."
            )
        return values.astype(np.uint8)


def _check_names(stages: Sequence[Stage]) -> None:
    names = [stage.name for stage in stages]
    odd = [name for name in names if Path(name).name != name or name in RunDir.taken or names.count(name) > 1]
    if odd:
        raise RecipeError(
            f"stages are called {', '.join(names)}: {odd[0]!r} is used twice, is no plain name, or is a file of every "
            "run. Give each Stage a name of its own."
        )


def _written(run: RunDir) -> list[str]:
    return [str(name) for name in run.recorded_artifacts().get("written", [])]


def _artifacts(part: RunDir) -> dict[str, Path] | None:
    """Return what a stage wrote for others, or `None` while its `after` has not returned."""
    found: Mapping[str, str] | None = part.recorded_artifacts().get("artifacts")
    return None if found is None else {name: part.root / path for name, path in found.items()}


def _waiting() -> Callable[[], None]:
    """Return the function by which all processes wait for the one that writes, longer than a group does by default."""
    if not (dist.is_available() and dist.is_initialized()):
        return lambda: None
    group = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)  # now: making it later would not wait as long
    assert isinstance(group, dist.ProcessGroup)  # every process belongs to it

    def wait() -> None:
        dist.barrier(group)

    return wait
