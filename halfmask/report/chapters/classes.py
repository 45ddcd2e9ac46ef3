"""Class by class: scores with intervals, and what is taken for what."""

import numpy as np
from jaxtyping import Int

from halfmask.infer.bootstrap import Interval
from halfmask.report.markup import between, chapter, chip, details, esc, note, percent, signed, table, whisker
from halfmask.report.material import Material, confusion
from halfmask.report.pictures import heat, img, palette

_NUMBERED, _CELLS = 16, 40  # classes up to which the matrix has numbers, and cells of a table
_MISTAKES = 8


def classes(found: Material) -> str:
    """Return the chapters `classes` and `confusion`."""
    if found.scores is None or found.tally is None:
        return chapter("classes", "Classes", note("No image was predicted for this report (see Result)."))
    return _table(found) + _confusion(found)


def _table(found: Material) -> str:
    assert found.scores is not None
    assert found.tally is not None
    task = found.tally.task
    colors = palette(task)
    name = "accuracy" if task.kind == "classification" else "IoU"
    support = confusion(found.tally.counts).sum(1)
    unit = "images" if task.kind == "classification" else "pixels"
    twin = found.twin_scores.by_class if found.twin_scores is not None and not found.supervised else None
    rows = []
    for k, interval in enumerate(found.scores.by_class):
        marks: list[tuple[Interval, int]] = [(interval, 0)] + ([(twin[k], 1)] if twin else [])
        row = [
            chip(colors[k]) + esc(task.classes[k]),
            percent(interval.value),
            between(interval),
            whisker(marks, task.classes[k]),
        ]
        if twin is not None and found.gain is not None:
            row.insert(3, signed(found.gain.by_class[k].value))
        rows.append((*row, f"{100 * support[k] / max(support.sum(), 1):.1f} %"))
    head = ["class", f"{name}, %", "95 % interval", "0 to 100 %", f"share of {unit}"]
    if twin is not None:
        head.insert(3, "gain")
    absent = [task.classes[k] for k in range(task.n_classes) if not support[k]]
    parts = [table(head, rows, label="Score of each class", css="classes")]
    if twin is not None:
        parts.append(
            note('<i class="key b0"></i> with unlabeled images &nbsp; <i class="key b1"></i> the supervised twin')
        )
    if absent:
        parts.append(
            note(
                f"No image judged here shows {esc(', '.join(absent))}: nothing can be said about "
                f"{'it' if len(absent) == 1 else 'them'}."
            )
        )
    parts.append(note("A short interval says that other images would give nearly the same number."))
    return chapter("classes", "Class by class", *parts)


def _confusion(found: Material) -> str:
    assert found.tally is not None
    matrix, names = confusion(found.tally.counts), found.tally.task.classes
    unit = "images" if found.tally.task.kind == "classification" else "pixels"
    share = matrix / matrix.sum(1, keepdims=True).clip(1)
    parts = [_mistakes(matrix, share, names)]
    if len(names) <= _CELLS:
        parts.append(_matrix(share, matrix, names))
    else:
        alt = f"Confusion matrix of {len(names)} classes; the most common confusions are listed above."
        parts.append(f'<div class="scroll">{img(heat(share, side=720), alt, side=10_000, smooth=False)}</div>')
    lead = f"Each row holds the {unit} of one true class, in percent of the row; columns say what they were taken for."
    side_by_side = len(names) <= _NUMBERED
    body = f'<div class="charts confused">{"".join(parts)}</div>' if side_by_side else "".join(parts)
    return chapter("confusion", "What is taken for what", body, lead=lead)


def _mistakes(matrix: Int[np.ndarray, "K K"], share: np.ndarray, names: tuple[str, ...]) -> str:
    """List the confusions that cost most pixels."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(wrong, axis=None)[::-1][:_MISTAKES]
    total = max(int(matrix.sum()), 1)
    rows = []
    for place in order:
        i, j = divmod(int(place), len(names))
        if wrong[i, j]:
            rows.append(
                (f"{esc(names[i])} → {esc(names[j])}", percent(share[i, j]), f"{100 * wrong[i, j] / total:.1f}")
            )
    if not rows:
        return note("Nothing was confused.")
    return table(("true → predicted", "of the true class, %", "of everything, %"), rows, label="Most common confusions")


def _matrix(share: np.ndarray, matrix: Int[np.ndarray, "K K"], names: tuple[str, ...]) -> str:
    numbered = len(names) <= _NUMBERED
    head = "".join(f'<th scope="col"><span>{esc(name)}</span></th>' for name in names)
    rows = []
    for i, name in enumerate(names):
        cells = []
        for j, other in enumerate(names):
            value = float(share[i, j])
            text = f"{100 * value:.0f}" if numbered and value >= 0.005 else ""
            css = "hi" if value > 0.62 else ""
            title = f"{name} taken for {other}: {percent(value)} %" if i != j else f"{name} found: {percent(value)} %"
            cells.append(f'<td class="{css}" style="--v:{value:.3f}" title="{esc(title)}">{text}</td>')
        empty = "" if matrix[i].sum() else ' class="none"'
        rows.append(f'<tr{empty}><th scope="row">{esc(name)}</th>{"".join(cells)}</tr>')
    table_html = (
        f'<div class="scroll" role="region" aria-label="Confusion matrix" tabindex="0"><table class="matrix'
        f'{"" if numbered else " fine"}"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    return table_html if numbered else details("The whole matrix", table_html)
