"""Compare several runs: those that differ only in their seed share a row, with mean and spread.

Below the rows: what the page and the tables show of them.
"""

import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np

from halfmask.errors import HalfmaskError
from halfmask.infer.bootstrap import Interval, Scored, difference, scored
from halfmask.infer.runs import Published, published
from halfmask.report.chapters import Chapter
from halfmask.report.charts import Group, Series, line_chart, spread_chart
from halfmask.report.draw import draw, percent
from halfmask.report.evidence import Images, Tally, Wishes, open_images, tally
from halfmask.report.records import Run
from halfmask.task import METRIC_NAMES

# Settings that do not make another experiment: the seed, where the data is, how the run was computed.
_NOT_COMPARED = (
    "run.seed", "data.labeled_seed", "run.devices", "run.nodes", "run.accelerator", "run.logger", "run.log_every",
    "run.eval_every", "run.twin", "run.reference", "expected", "data.root", "data.workers", "data.cache", "data.splits",
)  # fmt: skip
_MOST_IN_NAME = 3
_COLORS = 6


@dataclass(frozen=True)
class Member:
    """One run of a comparison."""

    stages: tuple[Run, ...]  # of a staged run, the result last; else one
    best: float | None  # best validation score of the shipped network; `None` without validation
    last: float | None  # its score at the last validation
    hours: float  # of all devices, all stages
    tally: Tally | None = None  # pixels of every image, where they could be predicted
    scores: Scored | None = None  # with intervals
    problem: str = ""  # why there are none

    @property
    def run(self) -> Run:
        """Run whose model is the result: the last stage."""
        return self.stages[-1]


class Spread(NamedTuple):
    """Mean and standard deviation over seeds; nan without numbers."""

    mean: float
    sd: float
    runs: int


@dataclass(frozen=True)
class Row:
    """Runs of the same recipe."""

    name: str  # the method, and the settings that differ from other rows
    members: tuple[Member, ...]  # one per seed
    published: Published | None = None  # the paper's number for the setting
    gain: Scored | None = None  # this row's first run minus the first row's, on the same images

    def spread(self, score: str) -> Spread:
        """Return mean and spread of `best`, `last`, `hours`, or `shown` (on this report's images)."""
        values = self.values(score)
        if not values:
            return Spread(math.nan, math.nan, 0)
        return Spread(mean(values), stdev(values) if len(values) > 1 else math.nan, len(values))

    def values(self, score: str) -> list[float]:
        """Return the numbers behind `spread`, one per run that has one."""
        if score == "shown":
            values = [member.scores.main.value for member in self.members if member.scores is not None]
        else:
            values = [value for member in self.members if (value := getattr(member, score)) is not None]
        return [value for value in values if not math.isnan(value)]

    def marks(self, color: int) -> list[tuple[Interval, int]]:
        """Return the intervals of the row's runs on this report's images, each with the color of the row."""
        return [(member.scores.main, color) for member in self.members if member.scores is not None]


def compare(groups: Sequence[tuple[Run, ...]], wishes: Wishes) -> list[Row]:
    """Make the rows of a comparison, in the order in which the runs were named.

    All runs are judged on the images of the first one that has any.
    """
    images, problem = _images(groups, wishes)
    members = [_member(stages, images, problem) for stages in groups]
    keys = [_key(member.run) for member in members]
    order = list(dict.fromkeys(keys))
    together = [tuple(m for m, own in zip(members, keys, strict=True) if own == key) for key in order]
    names = _names([group[0].run for group in together])
    rows = []
    for name, group in zip(names, together, strict=True):
        number = None
        with suppress(HalfmaskError):
            number = published(group[0].run.path)
        rows.append(Row(name, group, number, _gain(group[0], together[0][0])))
    return rows


def to_dict(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return plain data; scores without a number are left out."""
    found = []
    for row in rows:
        entry: dict[str, Any] = {"name": row.name, "runs": [str(member.run.path) for member in row.members]}
        for score in ("best", "last", "shown", "hours"):
            spread = row.spread(score)
            if spread.runs:
                entry[score] = {"mean": spread.mean, "n": spread.runs}
                entry[score] |= {} if math.isnan(spread.sd) else {"sd": spread.sd}
        if row.published is not None:
            entry["published"] = {"value": row.published.value, "source": row.published.source}
        if row.gain is not None and not math.isnan(row.gain.main.low):
            entry["gain_over_first"] = {**row.gain.main._asdict()}
        found.append(entry)
    return found


def written(spread: Spread, plus: str = " ± ", scale: int = 100, digits: int = 2) -> str:
    """Write mean and spread.

    >>> written(Spread(0.5, 0.01, 3)), written(Spread(0.5, float("nan"), 1))
    ('50.00 ± 1.00', '50.00')
    """
    if not spread.runs:
        return "n/a"
    text = f"{scale * spread.mean:.{digits}f}"
    return text if math.isnan(spread.sd) else f"{text}{plus}{scale * spread.sd:.{digits}f}"


def _images(groups: Sequence[tuple[Run, ...]], wishes: Wishes) -> tuple[Images | None, str]:
    problem = ""
    for stages in groups:
        try:
            return open_images(stages[-1], wishes), ""
        except HalfmaskError as error:
            if wishes.data is not None or wishes.part is not None:
                raise
            problem = problem or str(error)
    return None, problem


def _member(stages: tuple[Run, ...], images: Images | None, problem: str) -> Member:
    run = stages[-1]
    curve = [value for _, value in run.curve(f"val/{run.metric}")]
    best, last = (max(curve), curve[-1]) if curve else (None, None)
    hours = sum(stage.seconds / 3600 * stage.device_count for stage in stages)
    counted = None
    if images is not None:
        try:
            counted = tally(run.path, images)
        except HalfmaskError as error:
            problem = str(error)
    scores = None if counted is None else scored(counted.counts, counted.task.kind, counted.absent)
    return Member(stages, best, last, hours, counted, scores, problem)


def _gain(own: Member, first: Member) -> Scored | None:
    if own is first or own.tally is None or first.tally is None or own.tally.ids != first.tally.ids:
        return None
    if own.tally.counts.shape != first.tally.counts.shape:
        return None
    return difference(own.tally.counts, first.tally.counts, own.tally.task.kind, own.tally.absent)


def _key(run: Run) -> str:
    """Return everything that makes a run what it is, apart from its seed."""
    kept = {entry.key: entry.value for entry in run.settings if not entry.key.startswith(_NOT_COMPARED)}
    # How many unlabeled images, not which: those drawn for a mask are others with every seed.
    lists = [len(run.split.get("unlabeled", {}).get("ids", ())), run.split.get("val", {}).get("sha256")]
    return json.dumps([kept, lists], sort_keys=True)


def _names(runs: Sequence[Run]) -> list[str]:
    """Return names of rows: method; within one method the settings that differ; of equal ones the folder."""
    names = [run.method for run in runs]
    for method in {name for name in names if names.count(name) > 1}:
        own = [number for number, run in enumerate(runs) if run.method == method]
        differing = _differences([runs[number].recipe for number in own])
        labels = _labels(list(differing))
        said = [
            [f"{label}={values[place]}" for label, values in zip(labels, differing.values(), strict=True)]
            for place in range(len(own))
        ]
        # Few settings make a name that can be read, unless it takes more to tell rows apart.
        enough = len({tuple(some[:_MOST_IN_NAME]) for some in said}) == len(own)
        most = _MOST_IN_NAME if enough else len(labels)
        distinct = len({tuple(some) for some in said}) == len(own)
        for number, some in zip(own, said, strict=True):
            words = some[:most] + (["..."] if len(some) > most else []) + ([] if distinct else [runs[number].name])
            names[number] = f"{method} ({', '.join(words)})"
    return names


def _differences(recipes: Sequence[dict[str, Any]], prefix: str = "") -> dict[str, list[str]]:
    """Return the settings that differ between recipes: dotted key -> the value of each recipe.

    >>> _differences([{"heads": {"i_vat": 2}, "lr": 1}, {"heads": {"f_drop": 6}, "lr": 1}])
    {'heads': ['{i_vat: 2}', '{f_drop: 6}']}
    """
    found: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for recipe in recipes for key in recipe):
        dotted, values = f"{prefix}{key}", [recipe.get(key, "-") for recipe in recipes]
        if dotted.startswith(_NOT_COMPARED) or all(value == values[0] for value in values):
            continue
        sections = [value for value in values if isinstance(value, dict)]
        if len(sections) < len(values):
            found[dotted] = [_short(value) for value in values]
        elif len({section.get("name") for section in sections}) > 1:
            found[dotted] = [_short(section.get("name", "-")) for section in sections]
        elif len({frozenset(section) for section in sections}) == 1:
            found |= _differences(sections, f"{dotted}.")
        else:
            found[dotted] = [_short(section) for section in sections]
    return found


def _labels(keys: Sequence[str]) -> list[str]:
    """Return the last word of each key, or the whole key where two end alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return [word if last.count(word) == 1 else key for key, word in zip(keys, last, strict=True)]


def _short(value: Any) -> str:
    """Write a value as in a recipe, on one line."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_short(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def spread_of_curves(row: Row) -> list[tuple[int, float]]:
    """Return the mean validation curve of a row, at the steps that all its runs were validated at."""
    curves = [dict(member.run.curve(f"val/{member.run.metric}")) for member in row.members]
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    return [(step, float(np.mean([curve[step] for curve in curves]))) for step in steps]


def comparison_page(rows: Sequence[Row], out: Path) -> str:
    """Write the page; links lead to the reports of single runs where they exist."""
    metric = METRIC_NAMES[rows[0].members[0].run.metric]
    classes = _judged_classes(rows)
    made = [
        ("table", "Table", "Comparison", _spreads(rows, metric)),
        ("curves", "Curves", "Curves", _curve_charts(rows, metric)),
        *([("classes", "Classes", "Class by class", classes)] if classes else []),
        ("runs", "Runs", "Runs", _run_links(rows, out)),
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


def _spreads(rows: Sequence[Row], metric: str) -> dict[str, Any]:
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


def _curve_charts(rows: Sequence[Row], metric: str) -> dict[str, Any]:
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


def _judged_classes(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Return the first run of each row, as far as it was judged and has the same classes as the first row."""
    judged = [(row.name, number % _COLORS, row.members[0]) for number, row in enumerate(rows)]
    judged = [one for one in judged if one[2].scores is not None]
    if not judged:
        return None
    names = judged[0][2].run.classes
    return {"names": names, "rows": [one for one in judged if one[2].run.classes == names]}


def _run_links(rows: Sequence[Row], out: Path) -> dict[str, Any]:
    found = []
    for row in rows:
        for member in row.members:
            page = member.run.path / "report.html"
            link = Path(os.path.relpath(page, out)).as_posix() if page.is_file() else ""
            stages = " → ".join(stage.path.name for stage in member.stages) if len(member.stages) > 1 else ""
            scores = ["n/a" if value is None else percent(value) for value in (member.best, member.last)]
            found.append((link, member.run, row.name, stages, *scores))
    return {"runs": found}
