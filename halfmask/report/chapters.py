"""Compute what the page of one run shows: its headline, its key figures, and the values of each chapter's template."""

import math
from itertools import groupby
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from halfmask.infer.bootstrap import Interval
from halfmask.infer.bundle import shipped_folder
from halfmask.infer.runs import cross_validated
from halfmask.progress import duration
from halfmask.report.charts import Series, line_chart
from halfmask.report.draw import between, draw, errors, over, palette, percent, signed
from halfmask.report.material import Example, Material, chapter_of
from halfmask.report.pseudo import alarms, by_class, confidence_chart, held_out, not_finite
from halfmask.report.records import Run, fold_seconds
from halfmask.run.loop import shipping
from halfmask.task import METRIC_NAMES, Task

_MISTAKES = 8
_SHIPPED, _TWIN, _SECOND, _THIRD = range(4)  # colors of curves


class Chapter(NamedTuple):
    """One section of a page."""

    name: str  # address in the page
    link: str  # text in the navigation
    title: str  # heading
    values: dict[str, Any]  # the variable `it` of its template
    template: str  # file name


def run_page(found: Material) -> str:
    """Write the page of one run."""
    task = found.run.task
    return draw(
        "run.html",
        found=found,
        title=f"{found.run.name}: {headline(found)}",
        heading=headline(found),
        figures=_key_figures(found),
        chapters=_chapters(found),
        metric=METRIC_NAMES[found.run.metric],
        classifies=task is not None and task.kind == "classification",
        colors=palette(task) if task else (),
    )


def headline(found: Material) -> str:
    """Return the main result as one sentence."""
    metric = METRIC_NAMES[found.run.metric]
    if found.gain is not None and not found.supervised:
        return verdict(found.gain.main, found.control)[1]
    if found.scores is not None:
        return f"{metric} {percent(found.scores.main.value)} %"
    curve = found.run.curve(f"val/{found.run.metric}")
    if curve:
        return f"{metric} {percent(max(value for _, value in curve))} % at its best"
    if (folds := cross_validated(found.run.path)) is not None:
        shipped = folds["other"] if folds.get("ships") == "other" else folds["score"]
        return f"{found.run.steps} steps, {percent(shipped['value'])} % by cross-validation"
    return f"{found.run.steps} steps, no score yet"


def verdict(gain: Interval, control: bool = True) -> tuple[str, str]:
    """Return the verdict on a difference by its interval: `good`, `bad` or `open`, and a sentence.

    Args:
        gain: run - other run.
        control: the other run differs in the loss of the unlabeled images alone; else it lacks averaged weights and
            their passes too, and the difference is not called theirs.
    """
    if math.isnan(gain.low):
        what = "the unlabeled images helped" if control else "the run is better than plain supervised training"
        return "open", f"A single image cannot show whether {what}"
    better, worse, alike = (
        ("The unlabeled images helped", "The unlabeled images did harm", "The unlabeled images did not measurably help")
        if control
        else (
            "The run is better than plain supervised training",
            "The run is worse than plain supervised training",
            "The run is not measurably better than plain supervised training",
        )
    )
    if gain.low > 0:
        return "good", better
    if gain.high < 0:
        return "bad", worse
    return "open", alike


def _chapters(found: Material) -> list[Chapter]:
    images = "Predicted labels beside the true ones" if _classifies(found) else "Predictions beside the truth"
    judged = found.tally is not None
    made = [
        ("result", "Result", "Result", _result(found)),
        ("twin", "Did it help?", "Did the unlabeled images help?", _twin(found)),
        ("curves", "Curves", "Curves", _curves(found)),
        ("classes", "Classes", "Class by class" if judged else "Classes", _classes(found)),
        *([("confusion", "Confusion", "What is taken for what", _confusion(found))] if judged else []),
        ("images", "Images", images if found.examples else "Images", _images(found)),
        ("pseudo", "Pseudo-labels", "Pseudo-labels", _pseudo(found)),
        ("data", "Data", "Data", _data(found)),
        ("cost", "Cost", "Cost", _cost(found)),
        ("recipe", "Recipe", "Recipe", _recipe(found.run)),
    ]
    chapters = [Chapter(*one, f"{one[0]}.html") for one in made]
    if (own := chapter_of(found.run.method)) and found.of_method is not None:
        name = found.run.method
        place = len(chapters) - 3  # after the pseudo-labels
        chapters.insert(place, Chapter(name, own.LINK, own.TITLE, found.of_method, f"report/of_method/{name}.html"))
    return chapters


def _classifies(found: Material) -> bool:
    return found.run.task is not None and found.run.task.kind == "classification"


def _key_figures(found: Material) -> list[tuple[str, str, str]]:
    run, made = found.run, []
    if found.scores is not None:
        spread = between(found.scores.main)
        small = f"95 % interval {spread}" if spread else "no interval: one image"
        made.append((METRIC_NAMES[run.metric], f"{percent(found.scores.main.value)} %", small))
    if found.gain is not None and not found.supervised:
        gain = found.gain.main
        name = "gain by unlabeled images" if found.control else "more than supervised"
        spread = between(gain, True)
        made.append((name, signed(gain.value), f"95 % interval {spread}" if spread else "no interval: one image"))
    if (number := found.published) is not None:
        made.append(("published", f"{percent(number.value)} %", f"{number.metric}, {number.source}"))
    if run.seconds:
        made.append(_time(run))
    if run.count("labeled") is not None:
        made.append(("images with masks", f"{run.count('labeled'):,}", f"{run.count('unlabeled'):,} without"))
    return made


def _time(run: Run) -> tuple[str, str, str]:
    """Return the key figure of the training time, that of folds included."""
    if not (folds := fold_seconds(run.path)):
        return "trained in", duration(run.seconds), f"{run.steps:,} steps"
    small = f"{duration(folds)} for the folds, then {run.steps:,} steps on all masks"
    return "trained in", duration(folds + run.seconds), small


def _result(found: Material) -> dict[str, Any]:
    """Return the best and the last validation of every network, and the score beside the published number."""
    run, number, ours = found.run, found.published, ""
    curves = [(name, run.curve(f"{name}/val/{run.metric}")) for name in run.predictors]
    networks = [(name, max(curve, key=lambda point: point[1]), curve[-1]) for name, curve in curves if curve]
    if number is not None:
        if found.scores and found.tally and (number.metric, number.part) == (run.metric, found.tally.part):
            interval = between(found.scores.main)
            ours = f"{percent(found.scores.main.value)} %" + (f" ({interval})" if interval else "")
        elif curve := run.curve(f"val/{number.metric}"):
            ours = f"{percent(max(value for _, value in curve))} % at best"
    return {
        "networks": networks,
        "chosen": shipping.chooses(run.recipe.get("eval", {}).get("ship", "first"), run.count("val") or 0),
        "ours": ours or "n/a",
        "alarms": not_finite(run),
        "shipped": shipped_folder(run.path),
        "folds": cross_validated(run.path),
    }


def _twin(found: Material) -> dict[str, Any]:
    """Return whether the unlabeled images helped, and what makes the comparison unfair."""
    if found.gain is None or found.twin is None:
        return {"folds": cross_validated(found.run.path)}
    kind, sentence = verdict(found.gain.main, found.control)
    return {"kind": kind, "sentence": sentence, "unfair": _unfair(found.run, found.twin)}


def _unfair(run: Run, twin: Run) -> list[str]:
    """List what differs between a run and its twin, apart from the unlabeled images."""
    found = []
    if run.steps != twin.steps:
        found.append(f"Not equal: the twin trained {twin.steps:,} steps, the run {run.steps:,}.")
    lists = ("labeled", "val")
    if any(run.split.get(n, {}).get("sha256") != twin.split.get(n, {}).get("sha256") for n in lists):
        found.append("Not equal: the twin's lists of labeled or validation images are different.")
    found += [
        f"Not equal: the twin's {name} differs (section `{key}` of its recipe)."
        for name, key in (("network", "model"), ("optimizer", "optim"))
        if run.recipe.get(key) != twin.recipe.get(key)
    ]
    if run.seed != twin.seed:
        found.append(f"Not equal: the twin has seed {twin.seed}, the run {run.seed}.")
    return found


def _curves(found: Material) -> dict[str, Any]:
    run, metric = found.run, METRIC_NAMES[found.run.metric]
    scores = _scores(run)
    if found.twin is not None:
        other = "control" if found.control else "supervised"
        scores += [line._replace(name=other, color=_TWIN, dash=3) for line in _scores(found.twin)[:1]]
    names = dict.fromkeys(name for record in run.records for name in record if name.startswith("train/loss_"))
    losses = [
        Series(name.removeprefix("train/loss_").replace("_", " "), run.curve(name), number % 6, number)
        for number, name in enumerate(list(names) or ["train/loss"])
    ]
    stages = [
        Series(stage.path.name, stage.curve(f"val/{stage.metric}"), number % 6, number)
        for number, stage in enumerate(found.stages)
    ]
    return {
        "stages": line_chart(stages, f"Validation {metric} of each stage") if len(stages) > 1 else None,
        "charts": [
            line_chart(scores, f"Validation {metric}"),
            line_chart(losses, "Training loss", percent=False),
            line_chart([Series("", run.curve("train/lr"))], "Learning rate of the encoder", percent=False),
            line_chart([Series("", run.curve("train/img_per_s"))], "Images per second", percent=False),
        ],
    }


def _scores(run: Run) -> list[Series]:
    found = [
        Series(name, run.curve(f"{name}/val/{run.metric}"), (_SHIPPED, _SECOND, _THIRD)[min(number, 2)], number % 3)
        for number, name in enumerate(run.predictors)
    ]
    return [line for line in found if line.points]


def _classes(found: Material) -> dict[str, Any]:
    if found.tally is None:
        return {}
    names, support = found.tally.task.classes, _confused(found).sum(1)
    return {
        "names": names,
        "share": support / max(support.sum(), 1),
        "absent": [name for name, count in zip(names, support, strict=True) if not count],
        "twin": found.twin_scores.by_class if found.twin_scores is not None and not found.supervised else (),
    }


def _confused(found: Material) -> Int[np.ndarray, "K K"]:
    """Sum the counts of all images; rows are targets. Pixels without a valid class are left out."""
    assert found.tally is not None
    return np.asarray(found.tally.counts[:, :-1].sum(0))


def _confusion(found: Material) -> dict[str, Any]:
    """Compute the confusion matrix as shares of its rows, and the confusions with the most pixels."""
    matrix = _confused(found)
    share = matrix / matrix.sum(1, keepdims=True).clip(1)
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    places = [divmod(int(place), len(matrix)) for place in np.argsort(wrong, axis=None)[::-1][:_MISTAKES]]
    mistakes = [(i, j, share[i, j], wrong[i, j] / matrix.sum()) for i, j in places if wrong[i, j]]
    return _classes(found) | {"share": share, "mistakes": mistakes}


def _images(found: Material) -> dict[str, Any]:
    task = found.run.task
    titles = {
        "samples": ("Some images", "Taken from the list at equal distances, whatever their score."),
        "worst": ("Worst images", "The lowest scores. Look for what they have in common: label more of it next."),
        "best": ("Best images", "The highest scores."),
    }
    if task is None:
        return {"groups": []}
    show = _labeled if task.kind == "classification" else _tiled
    groups = [(*titles[name], [show(one, task) for one in group]) for name, group in found.examples.items()]
    return {"groups": groups}


def _tiled(one: Example, task: Task) -> dict[str, Any]:
    """Lay out the pictures of an image: caption, picture, and its content in words."""
    colors, last = palette(task), one.images[-1]
    truth, found = one.truth.astype(np.int64), one.found.astype(np.int64)
    known = truth < task.n_classes
    wrong = percent(float((truth != found)[known].mean()) if known.any() else math.nan)
    dates = ("before", "after") if len(one.images) == 2 else ("image",)
    tiles = [(date, image, f"{date}: {one.id}") for date, image in zip(dates, one.images, strict=True)]
    if truth.shape == last.shape[:2]:
        masks = [("truth", "True mask", truth), ("prediction", "Predicted mask", found)]
        if one.twin is not None:
            masks.append(("compared run", "Mask of the run it is compared with", one.twin.astype(np.int64)))
        tiles += [(name, over(last, mask, colors), f"{alt}: {_in_words(mask, task)}") for name, alt, mask in masks]
        picture = errors(last, truth, found, task.n_classes)
        tiles.append((f"wrong {wrong} %", picture, f"{wrong} % of the pixels are wrong"))
    return {"id": one.id, "score": one.score, "tiles": tiles}


def _labeled(one: Example, task: Task) -> dict[str, Any]:
    true = task.classes[int(one.truth)] if int(one.truth) < task.n_classes else "no label"
    return {"id": one.id, "picture": one.images[-1], "true": true, "said": task.classes[int(one.found)]}


def _in_words(mask: Int[np.ndarray, "H W"], task: Task) -> str:
    """List the classes by their area, for readers who cannot see the picture."""
    values, counts = np.unique(mask[mask < task.n_classes], return_counts=True)
    order = np.argsort(counts)[::-1][:5]
    total = max(int(counts.sum()), 1)
    return ", ".join(f"{task.classes[values[i]]} {100 * counts[i] / total:.0f} %" for i in order) or "no class"


def _pseudo(found: Material) -> dict[str, Any]:
    if found.supervised or found.weightless or not found.labels_itself:
        return {}
    run, unit = found.run, "images" if _classifies(found) else "pixels"
    lines = [
        Series("coverage: pixels that pass", run.curve("pseudo/coverage"), 0, 0),
        Series("agreement of student and pseudo-label", run.curve("pseudo/agreement"), 2, 1),
    ]
    return {
        "alarms": alarms(run),
        "charts": [line_chart(lines, "On unlabeled images, while training"), confidence_chart(run)],
        "held_out": held_out(found.quality, unit) if found.quality is not None else None,
    } | by_class(run, found.quality, found.agreement)


def _data(found: Material) -> dict[str, Any]:
    parts: dict[str, list[dict[str, Any]]] = (found.data or {}).get("classes", {})
    labeled = parts.get("labeled") or next(iter(parts.values()), [])
    task = found.run.task
    return {
        "labeled": labeled,
        "val": {entry["name"]: entry for entry in parts.get("val", [])},
        "colors": palette(task) if task and task.n_classes == len(labeled) else None,
    }


def _cost(found: Material) -> dict[str, Any]:
    runs = [_cost_of(run) for run in (found.run, found.twin) if run is not None]
    folds = fold_seconds(found.run.path)
    packages = found.run.environment.get("packages", {})
    return {
        "rows": list(zip(("time", "steps", "images per second", "memory", "device"), *runs, strict=True)),
        "folds": duration(folds) if folds else "",
        "versions": ", ".join(f"{name} {version}" for name, version in packages.items() if version),
    }


def _cost_of(run: Run) -> tuple[str, ...]:
    speeds = [value for _, value in run.curve("train/img_per_s")]
    memory = [value for _, value in run.curve("sys/mem_gb")]
    devices = run.environment.get("devices") or []
    on_cpu = not devices or run.recipe.get("run", {}).get("accelerator") == "cpu"
    used = f"CPU ({run.environment.get('cpu_cores', '?')} cores)" if on_cpu else devices[0]
    return (
        duration(run.seconds) if run.seconds else "not recorded",
        f"{run.steps:,}",
        f"{median(speeds):.1f} (median)" if speeds else "not recorded",
        f"{max(memory):.2f} GB at the most" if memory else "not recorded (on GPUs only)",
        f"{run.device_count} x {used}" if run.device_count > 1 else used,
    )


def _recipe(run: Run) -> dict[str, Any]:
    sections = groupby(run.settings, key=lambda entry: entry.key.partition(".")[0])
    return {"sections": [(section, list(entries)) for section, entries in sections]}
