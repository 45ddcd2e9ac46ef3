"""Write reports: read the runs, compute what is shown, draw the page."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from halfmask.atomic import write_json, write_text
from halfmask.errors import DataError, RecipeError
from halfmask.infer.devices import pick_device
from halfmask.infer.inference import READERS
from halfmask.infer.runs import cross_validated
from halfmask.progress import Bars
from halfmask.report.chapters import headline, run_page
from halfmask.report.comparison import Row, compare, comparison_page, plain_table, to_dict
from halfmask.report.evidence import Wishes
from halfmask.report.material import Material, gather
from halfmask.report.records import members
from halfmask.task import METRIC_NAMES


@dataclass(frozen=True)
class ReportResult:
    """The files of a report, and its main numbers.

    Args:
        page: the HTML file.
        heading: its first sentence.
        files: every file written, the page first.
        values: main numbers as plain data.
    """

    page: Path
    heading: str
    files: tuple[Path, ...]
    values: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        return {"page": str(self.page), "heading": self.heading, **self.values}


def report(
    *runs: str | Path,
    out: str | Path | None = None,
    data: str | Path | None = None,
    part: str | None = None,
    twin: str | Path | None = None,
    device: str = "auto",
    workers: int = READERS,
    limit: int | None = None,
    quiet: bool = False,
) -> ReportResult:
    """Write the report of a run, or the comparison of several.

    Args:
        runs: run folders. A folder that holds one run per seed, or several folders, makes a comparison.
        out: a folder, or an .html file; by default `report.html` in the run, for a comparison in the first folder of
            seeds or here.
        data: folder of the images, where they were moved.
        part: images to judge by: `val`, `test`, `train`, `all` or a list file; by default those that the run chose
            its checkpoint on.
        twin: run to compare with; by default RUN/control, else RUN/twin (plain supervised), if there is one.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        workers: threads that read images ahead.
        limit: judge by the first so many images.
        quiet: show no progress.

    Raises:
        CheckpointError: a folder is no run, or its files are damaged.
        DataError: the part that was asked for does not exist, or the page cannot be written.
        RecipeError: no run was named, or a twin for a comparison.
    """
    if not runs:
        raise RecipeError("no run was named. Name its folder: halfmask report RUN")
    groups = [group for run in runs for group in members(run)]
    with Bars(quiet) as bars:
        wishes = Wishes(data, part, twin, pick_device(device), workers, limit, bars.show)
        if len(groups) == 1:
            return _one(gather(groups[0], wishes), Path(runs[0]), out)
        if twin is not None:
            raise RecipeError(
                "--twin belongs to the report of one run; in a comparison name the twin as a run of its own."
            )
        rows = compare(groups, wishes)
    return _several(rows, Path(runs[0]) if len(runs) == 1 else Path("."), out)


def _one(found: Material, folder: Path, out: str | Path | None) -> ReportResult:
    page = _place(folder, out)
    write_text(page, run_page(found), error=DataError)
    values: dict[str, Any] = {"run": str(found.run.path), "metric": found.run.metric}
    if found.scores is not None and found.tally is not None:
        values |= {"part": found.tally.part, "images": len(found.tally.ids), "score": found.scores.main._asdict()}
    if found.gain is not None and found.twin is not None:
        values |= {"twin": str(found.twin.path), "gain": found.gain.main._asdict(), "control": found.control}
        if found.plain_gain is not None:
            values["gain_over_supervised"] = found.plain_gain.main._asdict()
    if (folds := cross_validated(found.run.path)) is not None:
        values["cross_validated"] = folds
    return ReportResult(page, headline(found), (page,), _without_nan(values))


def _several(rows: list[Row], folder: Path, out: str | Path | None) -> ReportResult:
    page = _place(folder, out)
    tables = [page.with_name(f"table.{kind}") for kind in ("md", "tex", "json")]
    write_text(page, comparison_page(rows, page.parent), error=DataError)
    for table, kind in zip(tables, ("md", "tex"), strict=False):
        write_text(table, plain_table(rows, kind), error=DataError)
    values = {"rows": to_dict(rows)}
    metric = METRIC_NAMES[rows[0].members[0].run.metric]
    write_json(tables[2], {"metric": metric, **values}, error=DataError)
    return ReportResult(page, f"compared: {', '.join(row.name for row in rows)}", (page, *tables), values)


def _place(folder: Path, out: str | Path | None) -> Path:
    if out is None:
        return folder / "report.html"
    path = Path(out)
    return path if path.suffix.lower() in {".html", ".htm"} else path / "report.html"


def _without_nan(values: Any) -> Any:
    """Return the values without numbers that are nan: JSON cannot hold them."""
    if isinstance(values, dict):
        return {key: _without_nan(item) for key, item in values.items() if item == item}
    return values
