"""The page of a comparison: one table, curves, class by class."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

from halfmask import __version__
from halfmask.infer.bootstrap import Interval
from halfmask.report.charts import Group, Series, line_chart, spread_chart
from halfmask.report.comparison import Row, Spread, spread_of_curves, written
from halfmask.report.markup import between, chapter, esc, note, percent, signed, table, whisker
from halfmask.report.page import document
from halfmask.task import METRIC_NAMES

_COLORS = 6


def comparison_page(rows: Sequence[Row], out: Path) -> str:
    """Write the page; links lead to the reports of single runs where they exist."""
    metric = METRIC_NAMES[rows[0].members[0].run.metric]
    runs = sum(len(row.members) for row in rows)
    body = _table(rows, metric) + _curves(rows, metric) + _classes(rows) + _runs(rows, metric, out)
    over = f"halfmask report · {len(rows)} settings · {runs} runs"
    return document(f"{len(rows)} settings compared", over, _heading(rows, metric), body, f"halfmask {__version__}")


def _heading(rows: Sequence[Row], metric: str) -> str:
    ranked = [(row.spread("last"), row) for row in rows if row.spread("last").runs]
    if not ranked:
        return f"{len(rows)} settings, none validated yet"
    top, row = max(ranked, key=lambda pair: pair[0].mean)
    seeds = f" over {top.runs} seeds" if top.runs > 1 else ""
    return f"Highest {metric} at the end: {row.name}, {written(top, digits=1)} %{seeds}"


def _table(rows: Sequence[Row], metric: str) -> str:
    top = max((row.spread("last").mean for row in rows if row.spread("last").runs), default=math.nan)
    lines = []
    for number, row in enumerate(rows):
        best, last, shown = (row.spread(score) for score in ("best", "last", "shown"))
        marks: list[tuple[Interval, int]] = [
            (member.scores.main, number % _COLORS) for member in row.members if member.scores is not None
        ]
        gain = (
            ""
            if row.gain is None
            else f"{signed(row.gain.main.value)} <span class='small'>({between(row.gain.main, True)})</span>"
        )
        strong = ("<b>", "</b>") if last.runs and last.mean == top else ("", "")
        lines.append(
            (
                f'<i class="key b{number % _COLORS}"></i>{esc(row.name)}',
                str(len(row.members)),
                written(best),
                f"{strong[0]}{written(last)}{strong[1]}",
                written(shown),
                whisker(marks, row.name) if marks else "",
                "" if number == 0 else gain,
                _published(row),
                _hours(row.spread("hours")),
            )
        )
    head = (
        "setting", "n", f"best {metric}, %", "last, %", "shipped, here, %", "intervals, 0 to 100 %",
        "gain over the first", "published", "device time",
    )  # fmt: skip
    problem = next((member.problem for row in rows for member in row.members if member.problem), "")
    parts = [table(head, lines, label="Comparison"), _spreads(rows, metric)]
    if problem:
        parts.append(note(f"Not every model could be judged on the same images: {esc(problem)}"))
    count = next((len(member.tally.ids) for row in rows for member in row.members if member.tally), 0)
    judged = f" “Here” is on {count:,} images, the same for all, with bootstrap intervals over them." if count else ""
    parts.append(
        note(
            "Runs that differ only in their seed share a row: mean ± standard deviation over n seeds. Best: of all "
            f"validations, which flatters; last: at the end.{judged} Gain: first run of the row minus first run of the "
            "first row, with a 95 % interval."
        )
    )
    return chapter("table", "Comparison", *parts)


def _spreads(rows: Sequence[Row], metric: str) -> str:
    """Every setting's runs, mean and spread on one scale: what an ablation is looked at for."""
    charts = ""
    for score, name in (("last", f"{metric} at the end"), ("shown", f"{metric} of the shipped model, here")):
        groups = [Group(row.name, row.values(score), number % _COLORS) for number, row in enumerate(rows)]
        charts += spread_chart(groups, title=f"{name}: runs, mean ± standard deviation")
    return f'<div class="charts">{charts}</div>' if charts else ""


def _curves(rows: Sequence[Row], metric: str) -> str:
    lines = [Series(row.name, spread_of_curves(row), number % _COLORS, number) for number, row in enumerate(rows)]
    losses = [
        Series(row.name, row.members[0].run.curve("train/loss"), number % _COLORS, number)
        for number, row in enumerate(rows)
    ]
    charts = line_chart(lines, title=f"Validation {metric}, mean over seeds")
    charts += line_chart(losses, title="Training loss of the first run", percent=False)
    charts += "".join(_seeds(row, number, metric) for number, row in enumerate(rows) if len(row.members) > 1)
    charts += "".join(_stages(row, metric) for row in rows if len(row.members[0].stages) > 1)
    return chapter("curves", "Curves", f'<div class="charts">{charts}</div>')


def _seeds(row: Row, number: int, metric: str) -> str:
    lines = [
        Series(f"seed {member.run.seed}", member.run.curve(f"val/{member.run.metric}"), number % _COLORS, place)
        for place, member in enumerate(row.members)
    ]
    return line_chart(lines, title=f"{row.name}: {metric} of each seed")


def _stages(row: Row, metric: str) -> str:
    lines = [
        Series(stage.path.name, stage.curve(f"val/{stage.metric}"), place % _COLORS, place)
        for place, stage in enumerate(row.members[0].stages)
    ]
    return line_chart(lines, title=f"{row.name}: {metric} of each stage")


def _classes(rows: Sequence[Row]) -> str:
    known = [(number, row) for number, row in enumerate(rows) if row.members[0].scores is not None]
    if not known:
        return ""
    first = known[0][1].members[0].tally
    assert first is not None
    names = first.task.classes
    known = [(number, row) for number, row in known if row.members[0].run.classes == names]
    lines = []
    for k, name in enumerate(names):
        marks = [
            (row.members[0].scores.by_class[k], number % _COLORS) for number, row in known if row.members[0].scores
        ]
        lines.append((esc(name), *(percent(interval.value) for interval, _ in marks), whisker(marks, name)))
    head = (
        "class",
        *(f'<i class="key b{number % _COLORS}"></i>{esc(row.name)}' for number, row in known),
        "0 to 100 %",
    )
    lead = "First run of each row, with 95 % intervals over the images."
    return chapter("classes", "Class by class", table(head, lines, label="Score of each class"), lead=lead)


def _runs(rows: Sequence[Row], metric: str, out: Path) -> str:
    lines = []
    for row in rows:
        for member in row.members:
            page = member.run.path / "report.html"
            name = esc(str(member.run.path))
            if page.is_file():
                link = Path(os.path.relpath(page, out)).as_posix()
                name = f'<a href="{esc(link)}">{name}</a>'
            stages = " → ".join(stage.path.name for stage in member.stages) if len(member.stages) > 1 else ""
            best, last = (percent(value) if value is not None else "n/a" for value in (member.best, member.last))
            lines.append((name, esc(row.name), str(member.run.seed), stages, best, last, f"{member.run.steps:,}"))
    head = ("run", "setting", "seed", "stages", f"best {metric}, %", "last, %", "steps")
    return chapter("runs", "Runs", table(head, lines, label="Runs"))


def _published(row: Row) -> str:
    if row.published is None:
        return ""
    return f"{percent(row.published.value, 2)} <span class='small'>{esc(row.published.source)}</span>"


def _hours(spread: Spread) -> str:
    if not spread.runs or not spread.mean:
        return "n/a"
    return f"{spread.mean:.2f} h" if spread.mean >= 0.1 else f"{60 * spread.mean:.1f} min"
