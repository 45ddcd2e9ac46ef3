"""Compute what the page and the tables of a comparison show."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halfmask.report.chapters import Chapter
from halfmask.report.charts import Group, Series, line_chart, spread_chart
from halfmask.report.comparison import Row, spread_of_curves, written
from halfmask.report.draw import draw, percent
from halfmask.task import METRIC_NAMES

_COLORS = 6


def comparison_page(rows: Sequence[Row], out: Path) -> str:
    """Write the page; links lead to the reports of single runs where they exist."""
    metric = METRIC_NAMES[rows[0].members[0].run.metric]
    classes = _classes(rows)
    made = [
        ("table", "Table", "Comparison", _table(rows, metric)),
        ("curves", "Curves", "Curves", _curves(rows, metric)),
        *([("classes", "Classes", "Class by class", classes)] if classes else []),
        ("runs", "Runs", "Runs", _runs(rows, out)),
    ]
    return draw(
        "comparison.html",
        rows=rows,
        title=f"{len(rows)} settings compared",
        heading=_heading(rows, metric),
        chapters=[Chapter(*one, f"compared_{one[0]}.html") for one in made],
        metric=metric,
        written=written,
        colors=[number % _COLORS for number in range(len(rows))],
    )


def plain_table(rows: Sequence[Row], kind: str) -> str:
    """Write the table as Markdown (`md`) or as LaTeX with booktabs (`tex`), scores in percent."""
    plus = r" $\pm$ " if kind == "tex" else " ± "
    cells = [
        (
            row.name,
            str(len(row.members)),
            written(row.spread("best"), plus),
            written(row.spread("last"), plus),
            "" if row.published is None else percent(row.published.value, 2),
            written(row.spread("hours"), plus, 1),
        )
        for row in rows
    ]
    return draw(f"table.{kind}", metric=METRIC_NAMES[rows[0].members[0].run.metric], rows=cells)


def _heading(rows: Sequence[Row], metric: str) -> str:
    ranked = [(row.spread("last"), row) for row in rows if row.spread("last").runs]
    if not ranked:
        return f"{len(rows)} settings, none validated yet"
    top, row = max(ranked, key=lambda pair: pair[0].mean)
    seeds = f" over {top.runs} seeds" if top.runs > 1 else ""
    return f"Highest {metric} at the end: {row.name}, {written(top, digits=1)} %{seeds}"


def _table(rows: Sequence[Row], metric: str) -> dict[str, Any]:
    """Compute the figures with the runs, mean and spread of every row, and the notes below the table."""
    charts = []
    for score, name in (("last", f"{metric} at the end"), ("shown", f"{metric} of the shipped model, here")):
        groups = [Group(row.name, row.values(score), number % _COLORS) for number, row in enumerate(rows)]
        charts.append(spread_chart(groups, f"{name}: runs, mean ± standard deviation"))
    members = [member for row in rows for member in row.members]
    return {
        "charts": [chart for chart in charts if chart],
        "top": max((row.spread("last").mean for row in rows if row.spread("last").runs), default=math.nan),
        "problem": next((member.problem for member in members if member.problem), ""),
        "images": next((len(member.tally.ids) for member in members if member.tally), 0),
    }


def _curves(rows: Sequence[Row], metric: str) -> dict[str, Any]:
    numbered = [(row, number % _COLORS, number) for number, row in enumerate(rows)]
    scores = [Series(row.name, spread_of_curves(row), *look) for row, *look in numbered]
    losses = [Series(row.name, row.members[0].run.curve("train/loss"), *look) for row, *look in numbered]
    charts = [
        line_chart(scores, f"Validation {metric}, mean over seeds"),
        line_chart(losses, "Training loss of the first run", percent=False),
    ]
    for row, color, _ in numbered:
        if len(row.members) > 1:
            seeds = [
                Series(f"seed {member.run.seed}", member.run.curve(f"val/{member.run.metric}"), color, place)
                for place, member in enumerate(row.members)
            ]
            charts.append(line_chart(seeds, f"{row.name}: {metric} of each seed"))
    for row in rows:
        if len(row.members[0].stages) > 1:
            stages = [
                Series(stage.path.name, stage.curve(f"val/{stage.metric}"), place % _COLORS, place)
                for place, stage in enumerate(row.members[0].stages)
            ]
            charts.append(line_chart(stages, f"{row.name}: {metric} of each stage"))
    return {"charts": charts}


def _classes(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Return the first run of each row, as far as it was judged and has the same classes as the first row."""
    judged = [(row.name, number % _COLORS, row.members[0]) for number, row in enumerate(rows)]
    judged = [one for one in judged if one[2].scores is not None]
    if not judged:
        return None
    names = judged[0][2].run.classes
    return {"names": names, "rows": [one for one in judged if one[2].run.classes == names]}


def _runs(rows: Sequence[Row], out: Path) -> dict[str, Any]:
    found = []
    for row in rows:
        for member in row.members:
            page = member.run.path / "report.html"
            link = Path(os.path.relpath(page, out)).as_posix() if page.is_file() else ""
            stages = " → ".join(stage.path.name for stage in member.stages) if len(member.stages) > 1 else ""
            scores = ["n/a" if value is None else percent(value) for value in (member.best, member.last)]
            found.append((link, member.run, row.name, stages, *scores))
    return {"runs": found}
