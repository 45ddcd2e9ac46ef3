"""Compute the slow parts of a report: scores, examples, pseudo-labels against held-out masks, the look at the data.

What cannot be computed (no validation images, data moved away, no checkpoint) leaves a sentence in `missing`.
"""

import time
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Integer, UInt8

from halfmask.data.check import judge, take_fingerprint
from halfmask.errors import CheckpointError, DataError, HalfmaskError, RecipeError
from halfmask.infer.bootstrap import Scored, difference, image_scores, scored
from halfmask.infer.bundle import build_from_meta, load_bundle, own_bundle
from halfmask.infer.domains import domain_names
from halfmask.infer.inference import class_map
from halfmask.infer.runs import Published, open_run, published
from halfmask.plugins import resolve
from halfmask.recipe.read import load
from halfmask.report.draw import three_bands
from halfmask.report.evidence import Images, Tally, Wishes, cached_json, digest, open_images, tally
from halfmask.report.pseudo import held_out_agreement, label_quality
from halfmask.report.records import Run, read_run
from halfmask.run.twin import teaches_nothing

_SAMPLES = 4
_CHECKED = 400  # images per part that the data chapter looks at


class Example(NamedTuple):
    """One image, its mask and its predictions."""

    id: str  # of the image
    score: float  # of this image alone
    images: tuple[UInt8[np.ndarray, "H W 3"], ...]  # one, or two dates
    truth: Integer[np.ndarray, "*S"]  # mask, or a number for a whole image
    found: Integer[np.ndarray, "*S"]  # the run's prediction
    twin: Integer[np.ndarray, "*S"] | None  # the twin's prediction, where there is a twin


@dataclass
class Material:
    """Everything known about one run; `missing` says why something is not."""

    run: Run  # its small files
    stages: tuple[Run, ...]  # all stages of a staged run, else only the run
    missing: dict[str, str] = field(default_factory=dict)  # name of a part -> a sentence
    images: Images | None = None  # that it was judged by
    tally: Tally | None = None  # pixels of every image
    scores: Scored | None = None  # with intervals
    examples: dict[str, list[Example]] = field(default_factory=dict)  # `samples`, `worst`, `best`
    twin: Run | None = None  # what the run is compared with: its control, where there is one
    control: bool = False  # whether `twin` is the control
    plain: Run | None = None  # plain supervised training, where there is a control too
    plain_gain: Scored | None = None  # the run's scores minus those of `plain`
    twin_scores: Scored | None = None  # with intervals
    gain: Scored | None = None  # the run's scores minus the twin's
    quality: dict[str, Any] | None = None  # of pseudo-labels on the images (`halfmask.report.pseudo`)
    agreement: dict[str, Any] | None = None  # of the first two networks of the last checkpoint
    of_method: dict[str, Any] | None = None  # values of the method's own chapter (`halfmask.report.of_method`)
    data: dict[str, Any] | None = None  # of `halfmask check`
    published: Published | None = None  # the paper's number for the setting
    draws: int | None = None  # unlabeled batches per step, as far as the method's class tells; 0 = supervised
    weightless: bool = False  # the run leaves the loss of the unlabeled images out, as a control does
    parameters: int | None = None  # of the shipped network
    seconds: float = 0.0  # time that `gather` took

    @property
    def supervised(self) -> bool:
        """Whether the run never saw an unlabeled image."""
        return self.draws == 0

    @property
    def labels_itself(self) -> bool:
        """Whether the method logs pseudo-labels of its own."""
        return bool(self.run.curve("pseudo/coverage") or self.run.family("pseudo/share"))


def gather(stages: tuple[Run, ...], wishes: Wishes) -> Material:
    """Collect everything about the last of a run's stages.

    Raises:
        CheckpointError, DataError: what the user named (`--twin`, `--data`, `--part`) does not fit.
    """
    began = time.monotonic()
    found = Material(stages[-1], stages)
    run = found.run
    if domains := domain_names(run.path):
        pages = ", ".join(f"halfmask report {run.path / name}" for name in domains)
        found.missing["model"] = (
            f"The run learned {len(domains)} domains; each has a model, and a page of its own: {pages}."
        )
        found.published = published(run.path)
    elif run.meta is None:
        found.missing["model"] = (
            "The run has no model yet: the first validation writes it. Continue the run with halfmask train --resume."
        )
    else:
        _look_at_network(found)
        found.published = published(run.path)
        _open(found, wishes)
    _compare_with_twin(found, wishes)
    if found.images is not None and found.tally is not None:
        found.scores = scored(found.tally.counts, found.tally.task.kind, found.tally.absent)
        found.examples = _examples(found, found.tally, found.images)
        _judge_labels(found, found.images)
    if chapter := chapter_of(run.method):
        found.of_method = chapter.values(run, found.images)
    _look_at_data(found, wishes)
    found.seconds = time.monotonic() - began
    return found


def chapter_of(method: str) -> ModuleType | None:
    """Return the module of a method's own chapter, `of_method/NAME.py`, if there is one."""
    path = Path(__file__).parent / "of_method" / f"{method}.py"
    return import_module(f"halfmask.report.of_method.{method}") if method.isidentifier() and path.is_file() else None


def _look_at_network(found: Material) -> None:
    assert found.run.meta is not None
    try:
        with torch.device("meta"):
            model = build_from_meta(found.run.meta, found.run.path / "model.json")
        found.parameters = sum(parameter.numel() for parameter in model.parameters())
        found.draws = int(resolve("methods", found.run.method).draws)
        found.weightless = teaches_nothing(found.run.method, found.run.recipe["method"])
    except HalfmaskError as error:
        found.missing["network"] = str(error)


def _open(found: Material, wishes: Wishes) -> None:
    try:
        images = open_images(found.run, wishes)
        found.tally = tally(found.run.path, images)
        found.images = images
    except (DataError, CheckpointError, RecipeError) as error:
        if wishes.data is not None or wishes.part is not None:
            raise
        found.missing["images"] = (
            f"No image could be predicted for this report: {error} Other images with masks: "
            "halfmask report RUN --data DIR --part val | test | all."
        )


def _compare_with_twin(found: Material, wishes: Wishes) -> None:
    begun = [found.run.path / name for name in ("control", "twin")]
    paths = [Path(wishes.twin)] if wishes.twin is not None else [p for p in begun if (p / "recipe.yaml").is_file()]
    if not paths:
        return
    path = paths[0]
    found.twin = twin = read_run(path)
    found.control = is_control(found.run, twin)
    if found.run.classes and twin.classes and twin.classes != found.run.classes:
        raise CheckpointError(
            f"{path} predicts other classes than {found.run.path}: a twin is the same run without unlabeled images.",
            "H405",
        )
    if found.images is None or found.tally is None:
        return
    if twin.meta is None:
        found.missing["twin"] = "The twin has no model yet: continue it with halfmask train --resume."
        return
    other = tally(path, found.images)
    kind, absent = found.tally.task.kind, found.tally.absent
    found.twin_scores = scored(other.counts, kind, absent)
    found.gain = difference(found.tally.counts, other.counts, kind, absent)
    if len(paths) > 1 and (plain := read_run(paths[1])).meta is not None:
        found.plain = plain
        found.plain_gain = difference(found.tally.counts, tally(paths[1], found.images).counts, kind, absent)


def is_control(run: Run, other: Run) -> bool:
    """Tell whether another run is the same but for what leaves the loss of the unlabeled images out."""
    try:
        params = resolve("methods", run.method).control_params()
        ours, theirs = _method(run.recipe["method"]), _method(other.recipe["method"])
        return params is not None and ours != theirs and theirs == _method({**ours, **params})
    except HalfmaskError:
        return False


def _method(section: dict[str, Any]) -> dict[str, Any]:
    """Fill in the defaults, under present names: another version may have written the section."""
    return load({"method": section}, only="method").method.model_dump(mode="json")


def _judge_labels(found: Material, images: Images) -> None:
    if found.weightless or not found.labels_itself:
        return
    found.quality = label_quality(found.run, images)
    if len(found.run.predictors) > 1:
        try:
            found.agreement = held_out_agreement(found.run, images)
        except HalfmaskError as error:
            found.missing["agreement"] = f"Agreement on held-out images: {error}"


def _examples(found: Material, tally: Tally, images: Images) -> dict[str, list[Example]]:
    """Choose images by place and by score, and predict them."""
    values = image_scores(tally.counts, tally.task.kind)
    order = np.argsort(values, kind="stable").tolist()
    each = min(_SAMPLES, len(order) // 3)
    spread = np.linspace(0, len(order) - 1, min(_SAMPLES, len(order))).round().astype(int)
    chosen = {"samples": list(dict.fromkeys(spread.tolist())), "worst": order[:each], "best": order[::-1][:each]}
    numbers = sorted({number for group in chosen.values() for number in group})
    paths = [found.run.path] + ([found.twin.path] if found.gain is not None and found.twin is not None else [])
    bundles = [load_bundle(own_bundle(path), images.device) for path in paths]
    made: dict[int, Example] = {}
    for done, number in enumerate(numbers, 1):
        image, target = images.items[number]
        batch = image[None].to(images.device).to(bundles[0].model.mean.dtype) / 255
        maps = [class_map(b.model, batch, images.protocol, b.crop)[0].cpu().numpy() for b in bundles]
        dates = image.numpy() if image.ndim == 4 else image.numpy()[None]
        shown = tuple(three_bands(np.moveaxis(date, 0, -1)) for date in dates)
        twin = maps[1] if len(maps) > 1 else None
        made[number] = Example(images.ids[number], float(values[number]), shown, target.numpy(), maps[0], twin)
        images.wishes.tick("examples", done, len(numbers))
    return {name: [made[number] for number in group] for name, group in chosen.items()}


def _look_at_data(found: Material, wishes: Wishes) -> None:
    if not found.run.meta:
        return
    seen = 0

    def count(total: int) -> None:
        nonlocal seen
        seen += 1
        wishes.tick("look at the data", seen, total)

    def look() -> dict[str, Any]:
        facts = take_fingerprint(recipe, limit=_CHECKED, tick=count)
        return judge(root, facts).to_dict() | {"looked_at": len(facts.images)}

    try:
        recipe = open_run(own_bundle(found.run.path), (), sections=("data",)).data
        if wishes.data is not None:
            recipe = recipe.model_copy(update={"root": str(wishes.data)})
        root = str(recipe.root)
        # Images added or removed change their folders, new masks theirs.
        folders = sorted((str(p), p.stat().st_mtime_ns) for p in [Path(root), *Path(root).glob("*/")] if p.is_dir())
        key = digest(recipe.model_dump(mode="json"), folders, _CHECKED)
        found.data = cached_json(found.run.path / "report" / "data.json", key, look)
    except HalfmaskError as error:
        found.missing["data"] = f"The data could not be looked at: {error}"
