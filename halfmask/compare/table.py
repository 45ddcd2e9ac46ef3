"""Reduce a comparison to one row per method, and write it as Markdown, LaTeX, CSV, JSON and SVG.

A score is the mean over seeds with the sample standard deviation. A difference is paired: the same seed, masks and test
images for both; its 95 % interval is a bootstrap over seeds and images (`halfmask.infer.bootstrap.mean_over_seeds`).
"""

import csv
import io
import os
import shlex
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from halfmask.atomic import write_json, write_text
from halfmask.compare.cell import counts_of, record_of
from halfmask.compare.forms import SUPERVISED, Cell, Form, Settings
from halfmask.errors import DataError
from halfmask.infer.bootstrap import Draws, Interval, draws_of, mean_over_seeds
from halfmask.recipe.read import parse_override
from halfmask.report.charts import Chart, Group, Mark, interval_chart, spread_chart
from halfmask.report.draw import draw, percent, signed
from halfmask.run.folder import environment
from halfmask.task import METRIC_NAMES

_GAIN = 3  # place of the gain over the control
_CELL = 90  # letters of a problem
_HEADS = ("method", "{metric}", "seeds", "- control", "- supervised", "minutes", "peak GiB", "images/s")


@dataclass(frozen=True)
class CellResult:
    """One run of a row: its record, and its score on the draws of the images, where it is done."""

    cell: Cell
    record: Mapping[str, Any]
    draws: Draws | None

    @property
    def problem(self) -> str:
        """Reason why there is no score; "" where there is one."""
        return "" if self.draws is not None else self.record.get("problem") or self.record.get("state") or "not run yet"


@dataclass(frozen=True)
class FormResult:
    """The runs of one form."""

    form: Form
    runs: tuple[CellResult, ...]
    control: tuple[CellResult, ...] | None  # of the same seeds
    supervised: tuple[CellResult, ...] | None

    @property
    def scores(self) -> list[float]:
        """Scores of the runs that are done."""
        return [run.draws.value for run in self.runs if run.draws is not None]

    def mean(self) -> Interval | None:
        """Return the mean over seeds with its interval."""
        found = [run.draws for run in self.runs if run.draws is not None]
        return mean_over_seeds(found) if found else None

    def over(self, others: Sequence[CellResult] | None) -> Interval | None:
        """Return the mean difference over the seeds that both rows have."""
        pairs = [(a.draws, b.draws) for a, b in zip(self.runs, others or (), strict=False)]
        both = [(a, b) for a, b in pairs if a is not None and b is not None]
        return mean_over_seeds([a for a, _ in both], [b for _, b in both]) if both else None

    def cost(self, key: str) -> float | None:
        """Return the mean of a figure of the records."""
        found = [
            run.record[key]
            for run in self.runs
            if run.record.get("state") == "done" and run.record.get(key) is not None
        ]
        return float(mean(found)) if found else None

    def to_dict(self, out: Path) -> dict[str, Any]:
        """Return plain data."""
        scores = self.scores
        return {
            "method": self.form.label,
            "name": self.form.method,
            "overrides": list(self.form.overrides),
            "control_of": self.form.control_of or None,
            "mean": mean(scores) if scores else None,
            "sd": stdev(scores) if len(scores) > 1 else None,
            "interval": _bounds(self.mean()),
            "over_control": _bounds(self.over(self.control)),
            "over_supervised": _bounds(self.over(self.supervised)),
            "minutes": self.cost("minutes"),
            "peak_gib": None if (peak := self.cost("peak_bytes")) is None else peak / 2**30,
            "images_per_second": self.cost("images_per_second"),
            "runs": [
                {
                    "seed": run.cell.seed,
                    "score": None if run.draws is None else run.draws.value,
                    "problem": run.problem or None,
                    "folder": run.cell.folder(out).relative_to(out).as_posix(),
                }
                for run in self.runs
            ],
        }


@dataclass(frozen=True)
class Board:
    """A comparison as far as it is done."""

    settings: Settings
    out: Path
    rows: tuple[FormResult, ...]

    @property
    def metric(self) -> str:
        """Score that is compared: `miou`, `changed_iou` or `acc`."""
        return str(self._any("metric", "miou"))

    @property
    def complete(self) -> bool:
        """Whether every run has a score."""
        return not any(run.problem for row in self.rows for run in row.runs)

    def describe(self, cell: Cell) -> str:
        """Say how one run went."""
        run = next(run for row in self.rows for run in row.runs if run.cell == cell)
        said = f"{METRIC_NAMES[self.metric]} {percent(run.draws.value)} %" if run.draws else run.problem
        minutes = f", {run.record['minutes']:.1f} min" if run.draws else ""
        return f"{cell.form.label} seed {cell.seed}: {said}{minutes}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: what was run, on what, and the rows."""
        shared = self.settings.shared
        state = environment()
        return {
            "command": command(self.settings, self.out),
            "settings": {
                "data": Path(shared["data"]["root"] or shared["data"]["dataset"]["name"]).name,
                "labeled": shared["data"]["labeled"],
                "steps": shared["run"]["steps"],
                "crop": shared["data"]["crop"],
                "batch": shared["data"]["batch"],
                "model": shared["model"],
                "seeds": list(self.settings.seeds),
                "part": self.settings.part,
                "images": self._any("images"),
                "metric": self.metric,
            },
            "environment": {key: state[key] for key in ("python", "cpu_cores", "devices", "packages", "git")},
            "rows": [row.to_dict(self.out) for row in self.rows],
        }

    def markdown(self, links: bool = False) -> str:
        """Write the table in Markdown."""
        heads, rows = table_of(self.to_dict(), links)
        lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)

    def charts(self) -> dict[str, Chart]:
        """Return the figures: scores of all runs, and differences to controls."""
        metric = METRIC_NAMES[self.metric]
        groups = [Group(row.form.label, row.scores, 1 if row.form.control_of else 0) for row in self.rows]
        marks = [
            Mark(row.form.label, found, 0 if row.control else 1)
            for row in self.rows
            if not row.form.control_of and row.form.label != SUPERVISED
            if (found := row.over(row.control or row.supervised)) is not None
        ]
        title = f"{metric} over supervised training, 95 % intervals"
        if any(row.control for row in self.rows):
            title = f"{metric} over the control (orange: supervised), 95 %"  # 50 letters fit
        drawn = {
            "scores": spread_chart(groups, f"{metric}: runs, mean ± standard deviation"),
            "gains": interval_chart(marks, title),
        }
        return {name: chart for name, chart in drawn.items() if chart is not None}

    def _any(self, key: str, default: Any = None) -> Any:
        runs = (run for row in self.rows for run in row.runs)
        return next((run.record[key] for run in runs if key in run.record), default)


def write_board(settings: Settings, out: Path) -> Board:
    """Read what is known of all runs, and write table.md, .tex, .csv, .json, scores.svg and gains.svg."""
    runs = {cell: _run(cell, out) for cell in settings.cells()}
    by_label: dict[str, list[CellResult]] = {}
    for cell, run in runs.items():
        by_label.setdefault(cell.form.label, []).append(run)
    controls = {form.control_of: form.label for form in settings.forms() if form.control_of}
    rows = []
    for form in settings.forms():
        control = by_label.get(controls.get(form.label, ""))
        plain = by_label.get(SUPERVISED) if form.label != SUPERVISED else None
        rows.append(
            FormResult(
                form, tuple(by_label[form.label]), tuple(control) if control else None, tuple(plain) if plain else None
            )
        )
    board = Board(settings, out, tuple(rows))
    content = board.to_dict()
    heads, cells = table_of(content)
    write_json(out / "table.json", content, error=DataError)
    write_text(out / "table.md", board.markdown(links=True), error=DataError)
    write_text(out / "table.tex", draw("compared.tex", heads=heads, rows=cells), error=DataError)
    write_text(out / "table.csv", _csv(content["rows"]), error=DataError)
    for name, chart in board.charts().items():
        write_text(out / f"{name}.svg", draw("figure.svg", chart=chart), error=DataError)
    return board


def command(settings: Settings, out: Path) -> str:
    """Return the command that makes this comparison, without the folders of this machine."""
    base = [str(settings.base)] if settings.base else []
    said = ["halfmask", "compare", *base, "--out", f"runs/{out.name}"]
    said += ["--methods", ",".join(settings.methods)] if settings.methods else []
    said += ["--seeds", ",".join(map(str, settings.seeds)), "--against", settings.against, "--part", settings.part]
    for item in settings.overrides:
        key, value = parse_override(item)
        said.append(f"data.root=DIR/{Path(str(value)).name}" if key == "data.root" else item)
    return shlex.join(said)


def _run(cell: Cell, out: Path) -> CellResult:
    folder = cell.folder(out)
    record = record_of(folder)
    draws = draws_of(counts_of(folder), record["kind"], record["absent"]) if record.get("state") == "done" else None
    return CellResult(cell, record, draws)


def table_of(content: Mapping[str, Any], links: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return heads and cells of table.json (`Board.to_dict`) as text; with `links` a score leads to its run folder."""
    rows = [row for row in content["rows"] if not row["control_of"]]
    controls = {row["control_of"] for row in content["rows"]} - {None}
    heads = [head.format(metric=METRIC_NAMES[content["settings"]["metric"]]) for head in _HEADS]
    cells = [_cells(row, controls, links) for row in rows]
    if controls:
        return heads, cells
    return [*heads[:_GAIN], *heads[_GAIN + 1 :]], [[*line[:_GAIN], *line[_GAIN + 1 :]] for line in cells]


def _cells(row: Mapping[str, Any], controls: Set[str], links: bool) -> list[str]:
    sd = "" if row["sd"] is None else f" ± {100 * row['sd']:.1f}"
    score = "" if row["mean"] is None else f"{100 * row['mean']:.1f}{sd}"
    seeds = []
    for run in row["runs"]:
        text = _short(run["problem"]) if run["score"] is None else f"{100 * run['score']:.1f}"
        seeds.append(f"[{text}]({run['folder']})" if links else text)
    gains = ["" if row[key] is None else _signed(row[key]) for key in ("over_control", "over_supervised")]
    if row["method"] not in controls and row["method"] != SUPERVISED:
        gains[0] = "has none"
    costs = [
        "" if row[key] is None else f"{row[key]:.{digits}f}"
        for key, digits in (("minutes", 1), ("peak_gib", 2), ("images_per_second", 1))
    ]
    return [row["method"], score, ", ".join(dict.fromkeys(seeds)), *gains, *costs]


def _short(problem: str) -> str:
    """Cut what went wrong to what a cell can hold; table.json and table.csv have all of it.

    >>> _short("RecipeError: no classes. Name them [a, b]."), len(_short("x" * 200))
    ('RecipeError: no classes', 90)
    """
    first = problem.partition(". ")[0].translate(str.maketrans("[]|", "()/"))  # else no link, or two cells
    return first if len(first) <= _CELL else f"{first[: _CELL - 1]}…"


def _signed(found: Mapping[str, float | None]) -> str:
    value, low, high = found["value"], found["low"], found["high"]
    assert value is not None
    bounds = "" if low is None or high is None else f" ({signed(low)} to {signed(high)})"
    return f"{signed(value)}{bounds}"


def _bounds(found: Interval | None) -> dict[str, float | None] | None:
    if found is None:
        return None
    return {name: None if value != value else value for name, value in found._asdict().items()}


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write one line per run: what a spreadsheet or a script starts from."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator=os.linesep if os.linesep == "\n" else "\n")
    writer.writerow(["method", "control_of", "seed", "score", "problem", "folder"])
    for row in rows:
        for run in row["runs"]:
            found = [run[key] if run[key] is not None else "" for key in ("seed", "score", "problem", "folder")]
            writer.writerow([row["method"], row["control_of"] or "", *found])
    return file.getvalue()
