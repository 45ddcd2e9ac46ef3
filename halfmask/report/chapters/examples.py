"""Predictions beside the truth: some images, the worst and the best."""

import numpy as np

from halfmask.report.markup import chapter, chip, esc, note, percent
from halfmask.report.material import Example, Material
from halfmask.report.pictures import errors, img, over, palette
from halfmask.task import Task

_TITLES = {
    "samples": ("Some images", "Evenly spread over the list: chosen by place, not by how well they came out."),
    "worst": ("Worst images", "Lowest score of their own. What they share is what to label next."),
    "best": ("Best images", "Highest score of their own."),
}


def examples(found: Material) -> str:
    """Return the chapter `images`."""
    if found.tally is None or not found.examples:
        return chapter("images", "Images", note("No image was predicted for this report (see Result)."))
    task = found.tally.task
    parts = []
    if task.kind != "classification":
        colors = palette(task)
        names = "".join(f"<li>{chip(color)}{esc(name)}</li>" for name, color in zip(task.classes, colors, strict=True))
        wrong = '<li><i class="chip wrong"></i>wrong</li><li><i class="chip skipped"></i>not judged (no label)</li>'
        parts.append(f'<ul class="legend classes">{names}{wrong}</ul>')
    for name, (title, lead) in _TITLES.items():
        group = found.examples.get(name, [])
        if not group:
            continue
        shown = "".join(
            _label_example(one, task) if task.kind == "classification" else _example(one, task) for one in group
        )
        css = "labels" if task.kind == "classification" else ""
        parts.append(f"<h3>{title}</h3>{note(lead)}<div class='gallery {css}'>{shown}</div>")
    if task.kind == "classification":
        title = "Predicted labels beside the true ones"
    else:
        title = "Predictions beside the truth"
    return chapter("images", title, *parts)


def _example(one: Example, task: Task) -> str:
    colors, last = palette(task), one.images[-1]
    truth, found = one.truth.astype(np.int64), one.found.astype(np.int64)
    known = truth < task.n_classes
    wrong = float((truth != found)[known].mean()) if known.any() else float("nan")
    dates = ("before", "after") if len(one.images) == 2 else ("image",)
    tiles = [(date, img(image, f"{date}: {one.id}")) for date, image in zip(dates, one.images, strict=True)]
    if truth.shape == last.shape[:2]:
        tiles.append(("truth", img(over(last, truth, colors), f"True mask: {_shown(truth, task)}")))
        tiles.append(("prediction", img(over(last, found, colors), f"Predicted mask: {_shown(found, task)}")))
        if one.twin is not None:
            twin = one.twin.astype(np.int64)
            tiles.append(("without unlabeled", img(over(last, twin, colors), f"Twin's mask: {_shown(twin, task)}")))
        tiles.append(
            (
                f"wrong {percent(wrong)} %",
                img(errors(last, truth, found, task.n_classes), f"{percent(wrong)} % of the pixels are wrong"),
            )
        )
    shown = "".join(f"<figure>{picture}<figcaption>{esc(name)}</figcaption></figure>" for name, picture in tiles)
    return (
        f'<article class="example"><h4>{esc(one.id)} <span>{percent(one.score)} %</span></h4>'
        f'<div class="tiles n{len(tiles)}">{shown}</div></article>'
    )


def _label_example(one: Example, task: Task) -> str:
    true = task.classes[int(one.truth)] if int(one.truth) < task.n_classes else "no label"
    said = task.classes[int(one.found)]
    right = true == said
    text = f"<b>{esc(said)}</b>" if right else f"<b>{esc(said)}</b>, truly {esc(true)}"
    mark = "right" if right else "wrong"
    picture = img(one.images[-1], f"{one.id}: predicted {said}, truly {true}", side=160)
    return f'<figure class="{mark}">{picture}<figcaption>{text}</figcaption></figure>'


def _shown(mask: np.ndarray, task: Task) -> str:
    """Classes by their area, for readers who cannot see the picture."""
    values, counts = np.unique(mask[mask < task.n_classes], return_counts=True)
    order = np.argsort(counts)[::-1][:5]
    total = max(int(counts.sum()), 1)
    return ", ".join(f"{task.classes[values[i]]} {100 * counts[i] / total:.0f} %" for i in order) or "no class"
