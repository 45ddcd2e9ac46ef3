"""Choose the images to label next, and draft their masks.

    <out>/suggest.json     every candidate with its score, criteria and ranks; and what they were made with
    <out>/suggested.txt    the chosen images, best first
    <out>/labeled.txt      the labeled ones and those: `data.labeled=<out>/labeled.txt`, once the masks are there
    <out>/index.html       the chosen images with their drafts, to look at
    <out>/png|coco|...     drafts of the masks, to be corrected in an annotation tool; in the ids of the trained masks
    <out>/written.sha256   the files written: no others are ever replaced or removed

With `<out>.csv` for a table, they lie in `<out>/` beside it.

The same run and images give the same list. The score: `halfmask.suggest.scores`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast, get_args

import numpy as np
from jaxtyping import Float

from halfmask.atomic import require_writable
from halfmask.data.annotations.coco.regions import pycocotools
from halfmask.data.contract import count_classes
from halfmask.errors import DataError, RecipeError, nearest
from halfmask.infer.bundle import load_bundle, own_bundle
from halfmask.infer.devices import pick_device
from halfmask.infer.inference import READERS
from halfmask.infer.predict.outputs import Writing
from halfmask.infer.runs import open_run
from halfmask.run.checkpoint import open_predictors
from halfmask.suggest.files import FORMATS, Chosen, MaskDraft, earlier_files, write_files, write_lists, write_table
from halfmask.suggest.pool import Candidates, Committee, Measurements, look_at_all, open_pool
from halfmask.suggest.scores import Measure, Weights, combine, k_center, ranks, rare_classes

_EVEN = Weights()


@dataclass(frozen=True)
class Suggestion:
    """What to label next.

    Args:
        ids: chosen images, best first.
        scores: of them.
        out: folder of the files.
        candidates: how many images there were to choose from.
        criteria: what the score was made of.
        remarks: what could not be considered, and why.
    """

    ids: tuple[str, ...]
    scores: tuple[float, ...]
    out: Path
    candidates: int
    criteria: tuple[str, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Criterion:
    """Values and ranks of the candidates."""

    values: Sequence[float]
    ranks: np.ndarray


class SuggestOptions(TypedDict, total=False):
    """How images are read.

    Args:
        device: `auto` (the default), `cpu`, `cuda`, `cuda:1`, `mps`.
        workers: threads that read images ahead; 2 by default.
        limit: look at the first so many candidates only.
    """

    device: str
    workers: int
    limit: int | None


def suggest(
    run: str | Path,
    n: int = 20,
    *,
    out: str | Path | None = None,
    data: str | Path | None = None,
    weights: Weights = _EVEN,
    measure: str = "entropy",
    formats: Sequence[str] = ("png",),
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    quiet: bool = False,
    **options: Unpack[SuggestOptions],
) -> Suggestion:
    """Rank the unlabeled images of a run by what labeling them may bring.

    Args:
        run: run folder; or a bundle, with `data`.
        n: how many to choose.
        out: folder for the files, by default `<run>/suggest`; or a table, `.csv`: the files then lie in the folder
            beside it that is named like it, without the suffix.
        data: take the images without a mask of this folder instead of those of the run.
        weights: of the criteria; 0 leaves one out.
        measure: of uncertainty, `entropy` or `margin`.
        formats: of the drafts: `png`, `labelme`, `label_studio`, `coco`, `geojson`.
        overrides: dotted `eval.*` keys.
        overwrite: replace an earlier suggestion in `out`, its drafts in other formats included.
        quiet: show no progress.
        **options: device, workers and limit, see `SuggestOptions`.

    Raises:
        CheckpointError: no bundle, or a damaged checkpoint.
        DataError: no unlabeled image, or one that cannot be read; or `out` holds a suggestion that is not to be
            overwritten, or whose drafts somebody has worked on, or files that halfmask did not write.
        RecipeError: unknown formats or measure, weights that choose nothing, a run of labels or several domains, or
            no `data` for a bare bundle.
    """
    _check(formats, measure, weights, n)
    where = pick_device(options.get("device", "auto"))
    opened = open_run(run, overrides, ("eval",))
    bundle = load_bundle(own_bundle(opened.folder), where)
    if bundle.task.kind == "classification":
        raise RecipeError(f"{opened.folder} gives labels, no masks: suggest ranks images for masks.")
    target, table = _places(opened.folder, out, overwrite)
    earlier = earlier_files(target)
    writing = Writing.of(bundle, target)
    if table is not None:
        writing.files.require_unchanged([table])
    require_writable(target)
    pool = open_pool(opened.folder, data)
    candidates = pool.candidates[: options.get("limit")]
    predictors = open_predictors(bundle, where)
    committee = Committee(bundle, predictors, opened.protocol, where, cast(Measure, measure))
    measured, known = look_at_all(committee, pool, candidates, options.get("workers", READERS), quiet)
    rare = rare_classes(_class_pixels(pool, measured))
    criteria = _criteria(measured, known, rare, weights)
    score = combine({name: criterion.ranks for name, criterion in criteria.items()}, weights)
    order = sorted(range(len(candidates)), key=lambda i: (-score[i], candidates[i]))
    chosen = [candidates[i] for i in order[:n]]
    remarks = _remarks(list(predictors), pool, weights)
    for file in earlier:
        file.unlink()
    write_lists(writing.files, chosen, None if pool.elsewhere else pool.labeled)
    rows = [Chosen(float(score[i]), {name: float(one.ranks[i]) for name, one in criteria.items()}) for i in order[:n]]
    write_files(writing, _drafts(committee, pool, chosen), rows, formats)
    content: dict[str, Any] = {
        "run": Path(run).as_posix(),
        "predictors": list(predictors),
        "measure": measure,
        "weights": {name: getattr(weights, name) for name in criteria},
        "rare_classes": [bundle.task.classes[k] for k in rare],
        "labeled": len(pool.labeled),
        "remarks": remarks,
        "chosen": chosen,
        "images": [{"id": candidates[i], **_describe(i, score, criteria)} for i in order],
    }
    writing.files.json(target / "suggest.json", content)
    scores = tuple(row.score for row in rows)
    if table is not None:
        write_table(writing.files, table, chosen, scores)
    return Suggestion(tuple(chosen), scores, target, len(candidates), tuple(criteria), tuple(remarks))


def _places(folder: Path, out: str | Path | None, overwrite: bool) -> tuple[Path, Path | None]:
    """Return the folder of the files, and the table where one is asked for."""
    table = Path(out) if out is not None and Path(out).suffix.lower() == ".csv" else None
    target = folder / "suggest" if out is None else Path(out) if table is None else table.with_suffix("")
    if (target / "suggest.json").exists() and not overwrite:
        raise DataError(f"{target} holds a suggestion. Replace it with --overwrite, or choose another --out.", "H408")
    if table is not None and table.exists() and not overwrite:
        raise DataError(f"{table} exists already. Replace it with --overwrite, or choose another --out.", "H408")
    return target, table


def _check(formats: Sequence[str], measure: str, weights: Weights, n: int) -> None:
    for name in formats:
        if name not in FORMATS:
            raise RecipeError(f"--format {name}: unknown.{nearest(name, FORMATS)} Known: {', '.join(FORMATS)}.", "H303")
    if "coco" in formats:
        pycocotools()
    if measure not in get_args(Measure):
        raise RecipeError(f"--measure {measure}: unknown. Known: {', '.join(get_args(Measure))}.", "H303")
    if min(weights) < 0 or not any(weights):
        raise RecipeError(
            "the weights of the criteria are at least 0, and not all 0: --uncertainty 1, for example.", "H303"
        )
    if n < 1:
        raise RecipeError(f"--n {n}: choose at least one image.", "H303")


def _class_pixels(pool: Candidates, measured: Measurements) -> Float[np.ndarray, " K"]:
    """Count how often each class occurs: in the labeled masks, else as predicted."""
    labeled = [id for id in pool.labeled if pool.dataset.mask_path(id) is not None]
    classes = len(measured.shares[0])
    if labeled and pool.dataset.task.n_classes == classes:
        return np.asarray(count_classes(pool.dataset, labeled).sum(0), dtype=np.float64)
    return np.asarray(np.mean(measured.shares, axis=0))


def _criteria(
    measured: Measurements, known: np.ndarray, rare: Sequence[int], weights: Weights
) -> dict[str, _Criterion]:
    """Return values and ranks of the criteria that count and that there are."""
    found: dict[str, _Criterion] = {}
    hope = [sum(shares[k] for k in rare) for shares in measured.shares]
    plain: dict[str, Sequence[float | None]] = {
        "uncertainty": measured.uncertainty, "disagreement": measured.disagreement, "rare": hope,
    }  # fmt: skip
    for name in Weights._fields:
        if getattr(weights, name) == 0:
            continue
        if name == "diversity":
            order, distances = k_center(np.stack(measured.features), known)
            place = np.empty(len(order))
            place[order] = np.arange(len(order))
            found[name] = _Criterion(distances.tolist(), ranks((-place).tolist()))
            continue
        values = [value for value in plain[name] if value is not None]
        if len(values) == len(measured.shares):
            found[name] = _Criterion(values, ranks(values))
    if not found:
        raise RecipeError(
            "disagreement needs a run with two predictors (student and teacher); give another criterion a weight."
        )
    return found


def _describe(i: int, score: np.ndarray, criteria: dict[str, _Criterion]) -> dict[str, Any]:
    parts = {
        name: {"value": round(float(one.values[i]), 6), "rank": round(float(one.ranks[i]), 6)}
        for name, one in criteria.items()
    }
    return {"score": round(float(score[i]), 6), **parts}


def _remarks(predictors: list[str], pool: Candidates, weights: Weights) -> list[str]:
    remarks = []
    if len(predictors) == 1 and weights.disagreement:
        remarks.append(
            f"only one network is there ({predictors[0]}): a bundle, or a method with one. Disagreement is left out."
        )
    if not pool.labeled:
        remarks.append("no labeled image is known: diversity is among the candidates, rare classes are as predicted.")
    if pool.elsewhere:
        remarks.append(
            f"the candidates lie in {pool.unlabeled.root}, the labeled images in {pool.dataset.root}: copy those you "
            "label, with their masks, to the labeled ones. No labeled.txt is written."
        )
    return remarks


def _drafts(committee: Committee, pool: Candidates, chosen: Sequence[str]) -> Iterator[MaskDraft]:
    for id in chosen:
        image = pool.unlabeled.read_image(id)
        latest = image if image.ndim == 3 else image[-1]
        yield MaskDraft(id, pool.unlabeled.image_files(id)[-1], latest, committee.draft(image))
