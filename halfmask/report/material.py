"""Everything that the chapters of one run's report say, gathered before any of them is written.

What cannot be had (no validation images, data moved away, no checkpoint) leaves a sentence instead of a result.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Integer, UInt8

from halfmask.data.check import judge, take_fingerprint
from halfmask.errors import CheckpointError, DataError, HalfmaskError, RecipeError
from halfmask.infer.bootstrap import Scored, difference, image_scores, scored
from halfmask.infer.bundle import load_bundle
from halfmask.infer.domains import domain_names
from halfmask.infer.inference import class_map
from halfmask.infer.runs import Published, open_run, published
from halfmask.report.channels import Figures, allspark_figures, is_allspark
from halfmask.report.evidence import Images, Tally, Tick, cached_json, digest, open_images, tally
from halfmask.report.labels import held_out_agreement, label_quality
from halfmask.report.pictures import three_bands
from halfmask.report.records import Run, read_run

_SAMPLES = 4
_CHECKED = 400  # images per part that the data chapter looks at


@dataclass(frozen=True)
class Example:
    """One image with what is known and what was found.

    Args:
        id: of the image.
        score: of this image alone.
        images: one, or two dates.
        truth: mask, or a number for a whole image.
        found: the run's prediction.
        twin: the twin's, where there is one.
    """

    id: str
    score: float
    images: tuple[UInt8[np.ndarray, "H W 3"], ...]
    truth: Integer[np.ndarray, "*S"]
    found: Integer[np.ndarray, "*S"]
    twin: Integer[np.ndarray, "*S"] | None


@dataclass
class Material:
    """What is known of one run; `missing` says why something is not.

    Args:
        run: its small files.
        stages: all stages of a staged run, else only the run.
        missing: name of a part -> a sentence.
        images: that it was judged by.
        tally: pixels of every image.
        scores: with intervals.
        examples: `samples`, `worst`, `best`.
        twin: the supervised twin.
        twin_scores: with intervals.
        gain: the run's scores minus the twin's.
        quality: of pseudo-labels on the images (`halfmask.report.labels`).
        agreement: of the first two networks of the last checkpoint.
        figures: of AllSpark.
        data: of `halfmask check`.
        published: the paper's number for the setting.
        draws: unlabeled batches per step, as far as the method's class tells; 0 = supervised.
        parameters: of the shipped network.
        seconds: what gathering took.
    """

    run: Run
    stages: tuple[Run, ...]
    missing: dict[str, str] = field(default_factory=dict)
    images: Images | None = None
    tally: Tally | None = None
    scores: Scored | None = None
    examples: dict[str, list[Example]] = field(default_factory=dict)
    twin: Run | None = None
    twin_scores: Scored | None = None
    gain: Scored | None = None
    quality: dict[str, Any] | None = None
    agreement: dict[str, Any] | None = None
    figures: Figures | None = None
    data: dict[str, Any] | None = None
    published: Published | None = None
    draws: int | None = None
    parameters: int | None = None
    seconds: float = 0.0

    @property
    def supervised(self) -> bool:
        """Whether the run never saw an unlabeled image."""
        return self.draws == 0

    @property
    def labels_itself(self) -> bool:
        """Whether the method gives pseudo-labels."""
        return bool(self.run.curve("pseudo/coverage") or self.run.family("pseudo/share"))


@dataclass(frozen=True)
class Wishes:
    """What a report is asked for.

    Args:
        data: folder of the images, where they were moved.
        part: images to judge by; `None` takes those that the run chose its checkpoint on.
        twin: run folder of the supervised twin; `None` looks for RUN/twin.
        device: where to predict.
        workers: threads that read images ahead.
        limit: judge by the first so many images.
        tick: told of progress.
    """

    data: str | Path | None = None
    part: str | None = None
    twin: str | Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int = 2
    limit: int | None = None
    tick: Tick = lambda what, done, total: None


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
        _network(found)
        found.published = published(run.path)
        _images(found, wishes)
    _twin(found, wishes)
    if found.images is not None:
        _judge(found, found.images)
    _data(found, wishes)
    found.seconds = time.monotonic() - began
    return found


def _network(found: Material) -> None:
    from halfmask.models.build import build_model
    from halfmask.plugins import resolve

    assert found.run.meta is not None
    try:
        with torch.device("meta"):
            model = build_model(found.run.meta["model"])
        found.parameters = sum(parameter.numel() for parameter in model.parameters())
        found.draws = int(resolve("methods", found.run.method).draws)
    except HalfmaskError as error:
        found.missing["network"] = str(error)


def _images(found: Material, wishes: Wishes) -> None:
    try:
        found.images = open_images(
            found.run,
            data=wishes.data,
            part=wishes.part,
            device=wishes.device,
            workers=wishes.workers,
            limit=wishes.limit,
            tick=wishes.tick,
        )
        found.tally = tally(found.run.path, found.images)
    except (DataError, CheckpointError, RecipeError) as error:
        if wishes.data is not None or wishes.part is not None:
            raise
        found.images = None
        found.missing["images"] = (
            f"No image could be predicted for this report: {error} Other images with masks: "
            "halfmask report RUN --data DIR --part val | test | all."
        )


def _twin(found: Material, wishes: Wishes) -> None:
    path = Path(wishes.twin) if wishes.twin is not None else found.run.path / "twin"
    if wishes.twin is None and not (path / "recipe.yaml").is_file():
        return
    twin = read_run(path)
    if found.run.classes and twin.classes and twin.classes != found.run.classes:
        raise CheckpointError(
            f"{path} predicts other classes than {found.run.path}: a twin is the same run without unlabeled images.",
            "H405",
        )
    found.twin = twin
    if found.images is None or found.tally is None:
        return
    if twin.meta is None:
        found.missing["twin"] = "The twin has no model yet: continue it with halfmask train --resume."
        return
    other = tally(path, found.images)
    kind, absent = found.tally.task.kind, found.tally.absent
    found.twin_scores = scored(other.counts, kind, absent)
    found.gain = difference(found.tally.counts, other.counts, kind, absent)


def _judge(found: Material, images: Images) -> None:
    assert found.tally is not None
    found.scores = scored(found.tally.counts, found.tally.task.kind, found.tally.absent)
    found.examples = _examples(found, images)
    if found.labels_itself:
        found.quality = label_quality(found.run, images)
        if len(found.run.predictors) > 1:
            try:
                found.agreement = held_out_agreement(found.run, images)
            except HalfmaskError as error:
                found.missing["agreement"] = f"Agreement on held-out images: {error}"
    if is_allspark(found.run):
        if found.tally.task.kind != "segmentation":
            found.missing["figures"] = "The figures of the bottleneck are drawn for single images only, not for pairs."
            return
        try:
            found.figures = allspark_figures(found.run, images)
        except HalfmaskError as error:
            found.missing["figures"] = f"The figures of the bottleneck need the last checkpoint: {error}"


def _examples(found: Material, images: Images) -> dict[str, list[Example]]:
    assert found.tally is not None
    values = image_scores(found.tally.counts, found.tally.task.kind)
    order = np.argsort(values, kind="stable")
    each = min(_SAMPLES, max(1, len(order) // 3))
    chosen = {"worst": order[:each].tolist(), "best": order[::-1][:each].tolist()}
    if len(order) < 3:
        chosen = {"worst": [], "best": []}
    spread = np.linspace(0, len(order) - 1, min(_SAMPLES, len(order))).round().astype(int)
    chosen = {"samples": list(dict.fromkeys(spread.tolist())), **chosen}
    numbers = sorted({number for group in chosen.values() for number in group})
    made = _predict(found, images, numbers, values)
    return {name: [made[number] for number in group] for name, group in chosen.items()}


def _predict(found: Material, images: Images, numbers: Sequence[int], values: Any) -> dict[int, Example]:
    paths = [found.run.path] + ([found.twin.path] if found.gain is not None and found.twin is not None else [])
    bundles = [load_bundle(path, images.device) for path in paths]
    made: dict[int, Example] = {}
    for done, number in enumerate(numbers, 1):
        image, target = images.items[number]
        batch = image[None].to(images.device).to(bundles[0].model.mean.dtype) / 255
        maps = [class_map(b.model, batch, images.protocol, b.crop)[0].cpu().numpy() for b in bundles]
        dates = image.numpy() if image.ndim == 4 else image.numpy()[None]
        shown = tuple(three_bands(np.moveaxis(date, 0, -1)) for date in dates)
        made[number] = Example(
            images.ids[number],
            float(values[number]),
            shown,
            target.numpy(),
            maps[0],
            maps[1] if len(maps) > 1 else None,
        )
        images.tick("examples", done, len(numbers))
    return made


def _data(found: Material, wishes: Wishes) -> None:
    try:
        recipe = open_run(found.run.path, (), sections=("data",)).data if found.run.meta else None
        if recipe is None:
            return
        if wishes.data is not None:
            recipe = recipe.model_copy(update={"root": str(wishes.data)})
        root = str(recipe.root)
        # Images added or removed change their folders, new masks theirs.
        folders = sorted((str(p), p.stat().st_mtime_ns) for p in [Path(root), *Path(root).glob("*/")] if p.is_dir())
        key = digest(recipe.model_dump(mode="json"), folders, _CHECKED)

        def look() -> dict[str, Any]:
            seen = take_fingerprint(recipe, limit=_CHECKED, tick=_counting(wishes.tick))
            return judge(root, seen).to_dict() | {"looked_at": len(seen.images)}

        found.data = cached_json(found.run.path / "report" / "data.json", key, look)
    except HalfmaskError as error:
        found.missing["data"] = f"The data could not be looked at: {error}"


def _counting(tick: Tick) -> Any:
    done = 0

    def step(total: int) -> None:
        nonlocal done
        done += 1
        tick("look at the data", done, total)

    return step


def confusion(counts: Int[np.ndarray, "N K1 K"]) -> Int[np.ndarray, "K K"]:
    """Sum over the images; rows are targets. Targets that are no class are left out."""
    return np.asarray(counts[:, :-1].sum(0))
