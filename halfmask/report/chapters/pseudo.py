"""The labels that the network gave itself: how many, how sure, how right, and whether training collapsed."""

from halfmask.report.alarms import alarms
from halfmask.report.charts import Series, line_chart, sparkline
from halfmask.report.labels import from_above, threshold_of
from halfmask.report.markup import chapter, details, esc, note, percent, table
from halfmask.report.material import Material
from halfmask.report.records import Run
from halfmask.teaching.pseudo_label import confidence_range

_ROWS = 24  # classes that are shown at once


def pseudo(found: Material) -> str:
    """Return the chapter `pseudo`."""
    title = "Pseudo-labels"
    run = found.run
    if found.supervised:
        return chapter("pseudo", title, note("This run used no unlabeled images, so there are no pseudo-labels."))
    if not found.labels_itself:
        return chapter(
            "pseudo",
            title,
            note(
                f"The method {esc(run.method)} records no pseudo-labels: it learns from unlabeled images without them."
            ),
        )
    return chapter("pseudo", title, _alarms(run), _time(run), _held_out(found), _agreement(found), _by_class(found))


def _alarms(run: Run) -> str:
    found = alarms(run)
    if not found:
        return (
            '<p class="verdict good"><b>No sign of a collapse.</b> No class took over the pseudo-labels, none was '
            "forgotten, some passed the threshold to the end, and the validation score did not fall by 10 points.</p>"
        )
    items = "".join(f"<li>{text}</li>" for text in found)
    return f'<div class="verdict bad" role="alert"><b>Look here first:</b><ul class="plain">{items}</ul></div>'


def _time(run: Run) -> str:
    lines = [
        Series("coverage: pixels that pass", run.curve("pseudo/coverage"), 0, 0),
        Series("agreement of student and pseudo-label", run.curve("pseudo/agreement"), 2, 1),
    ]
    return (
        f'<div class="charts">{line_chart(lines, title="On unlabeled images, while training")}{_confidence(run)}</div>'
    )


def _confidence(run: Run) -> str:
    """Draw the part of the pixels above some confidences, from the recorded histogram."""
    names = dict.fromkeys(name for record in run.records for name in record)
    ranges = {name: inside for name in names if (inside := confidence_range(name))}
    edges = {float(inside.partition("-")[0]): dict(run.curve(name)) for name, inside in ranges.items()}
    if not edges:
        return ""
    steps = sorted({step for points in edges.values() for step in points})
    lines = []
    for number, wanted in enumerate((0.5, 0.8, 0.95, 0.98)):
        if wanted not in edges:
            continue
        points = [(s, sum(of.get(s, 0.0) for edge, of in edges.items() if edge >= wanted)) for s in steps]
        lines.append(Series(f"at least {100 * wanted:.0f} %", points, number, number))
    return line_chart(lines, title="Pixels by confidence of their pseudo-label")


def _held_out(found: Material) -> str:
    if found.quality is None or found.tally is None:
        return note("How many pseudo-labels are right cannot be told: no held-out image was predicted (see Result).")
    unit = _unit(found)
    edges, threshold = found.quality["edges"], found.quality["threshold"]
    passed, right = (from_above(found.quality[name]).sum(0).tolist() for name in ("passed", "right"))
    total = max(passed[0], 1)
    precision = [(edge, right[i] / passed[i]) for i, edge in enumerate(edges) if passed[i] > 0]
    coverage = [(edge, passed[i] / total) for i, edge in enumerate(edges)]
    start = next((i for i, edge in enumerate(edges) if edge >= 0.5), 0)
    mark = (threshold, f"threshold {threshold:g}") if threshold is not None and threshold >= 0.5 else None
    lines = [
        Series("precision: right among those that pass", [p for p in precision if p[0] >= edges[start]], 1, 0),
        Series(f"coverage: {unit} that pass", [p for p in coverage if p[0] >= edges[start]], 0, 1),
    ]
    chart = line_chart(lines, title="On held-out masks, by threshold", x_name="", x_percent=True, mark=mark)
    at = edges.index(threshold) if threshold in edges else 0
    said = "at the run's threshold" if threshold is not None else "without a threshold"
    text = (
        f"<p>On the {len(found.tally.ids):,} held-out images, {said}, <b>{percent(passed[at] / total)} %</b> of the "
        f"{unit} pass and <b>{percent(right[at] / max(passed[at], 1))} %</b> of these are right.</p>"
        if passed[at]
        else f"<p>On the {len(found.tally.ids):,} held-out images nothing passes the threshold.</p>"
    )
    return f'<div class="charts beside">{chart}<div>{text}{note(_caveat())}</div></div>'


def _unit(found: Material) -> str:
    return "images" if found.run.task and found.run.task.kind == "classification" else "pixels"


def _caveat() -> str:
    return (
        "Labels are of the shipped model on whole images without augmentation; in training it labeled crops of other "
        "images, so that both numbers are near those of the training, not equal to them."
    )


def _agreement(found: Material) -> str:
    if "agreement" in found.missing:
        return note(esc(found.missing["agreement"]))
    if found.agreement is None:
        return ""
    first, second = found.agreement["names"]
    same, labeled = sum(found.agreement["same"]), max(sum(found.agreement["labeled"]), 1)
    return (
        f"<p>On the held-out images {esc(first)} and {esc(second)} of the last checkpoint agree on "
        f"<b>{percent(same / labeled)} %</b> of the {_unit(found)}.</p>"
    )


def _by_class(found: Material) -> str:
    """List each class with its curves and its numbers on held-out masks."""
    run = found.run
    share = run.family("pseudo/share")
    families = [
        ("share of pseudo-labels", share, 2),
        ("coverage", run.family("pseudo/coverage"), 0),
        ("confidence", run.family("pseudo/confidence"), 1),
    ]
    families = [family for family in families if not family[1].keys().isdisjoint(run.classes)]
    names = [name for name in run.classes if any(name in curves for _, curves, _ in families)]
    if not names:
        return ""
    held = _class_numbers(found)
    rows = []
    for name in sorted(names, key=lambda name: -_last(share.get(name, []))):
        row = [esc(name)]
        for _, curves, color in families:
            points = curves.get(name, [])
            row += [sparkline(points, name, color), percent(_last(points))]
        rows.append((*row, *held.get(name, ("", "", ""))))
    head = ["class", *(title for what, _, _ in families for title in (what, "last, %"))]
    if held:
        head += ["precision, held out, %", "coverage, held out, %"]
        head += ["networks agree, %"] if found.agreement is not None else []
    rows = [row[: len(head)] for row in rows]
    shown = table(head, rows[:_ROWS], label="Pseudo-labels of each class", css="pseudo")
    if len(rows) > _ROWS:
        more = table(head, rows[_ROWS:], label="Pseudo-labels of further classes", css="pseudo")
        shown += details(f"{len(rows) - _ROWS} further classes", more)
    lead = note(
        "Small curves run over the training, from 0 to 100 %. Share: part of the pseudo-labels that are of this class. "
        "Coverage: part of those that pass the threshold. Confidence: mean probability of these labels. Precision: "
        "part of those that pass which are right."
    )
    return f"<h3>Class by class</h3>{lead}{shown}"


def _class_numbers(found: Material) -> dict[str, tuple[str, str, str]]:
    if found.quality is None:
        return {}
    threshold = threshold_of(found.run)
    at = found.quality["edges"].index(threshold) if threshold in found.quality["edges"] else 0
    passed, right = from_above(found.quality["passed"]), from_above(found.quality["right"])
    numbers = {}
    for k, name in enumerate(found.run.classes):
        labeled, kept, good = float(passed[k, 0]), float(passed[k, at]), float(right[k, at])
        agree = ""
        if found.agreement is not None:
            count = found.agreement["labeled"][k]
            agree = percent(found.agreement["same"][k] / count) if count else "n/a"
        numbers[name] = (
            percent(good / kept) if kept else "n/a",
            percent(kept / labeled) if labeled else "n/a",
            agree,
        )
    return numbers


def _last(points: list[tuple[int, float]]) -> float:
    return points[-1][1] if points else float("nan")
