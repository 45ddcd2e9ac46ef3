"""Curves of training and validation."""

from halfmask.report.charts import Series, line_chart
from halfmask.report.markup import chapter, esc, note
from halfmask.report.material import Material
from halfmask.report.records import Run
from halfmask.task import METRIC_NAMES

SHIPPED, TWIN, SECOND, THIRD = 0, 1, 2, 3  # colors


def curves(found: Material) -> str:
    """Return the chapter `curves`."""
    run = found.run
    if not run.records:
        return chapter("curves", "Curves", note("Nothing is recorded yet (metrics.jsonl is empty or absent)."))
    metric = METRIC_NAMES[run.metric]
    lines = _scores(run)
    if found.twin is not None:
        lines += [line._replace(name="without unlabeled", color=TWIN, dash=3) for line in _scores(found.twin)[:1]]
    losses = [
        Series(name.removeprefix("train/loss_").replace("_", " "), run.curve(name), number % 6, number)
        for number, name in enumerate(_loss_terms(run))
    ]
    charts = [
        line_chart(lines, title=f"Validation {metric}"),
        line_chart(losses, title="Training loss", percent=False),
        line_chart([Series("", run.curve("train/lr"))], title="Learning rate of the encoder", percent=False),
        line_chart([Series("", run.curve("train/img_per_s"))], title="Images per second", percent=False),
    ]
    parts = [f'<div class="charts">{"".join(charts)}</div>']
    if not any(line.points for line in lines):
        parts.append(note("There was no validation: no validation images, or the run stopped before the first."))
    if len(found.stages) > 1:
        stages = [
            Series(stage.path.name, stage.curve(f"val/{stage.metric}"), number % 6, number)
            for number, stage in enumerate(found.stages)
        ]
        parts.insert(0, line_chart(stages, title=f"Validation {metric} of each stage"))
    if run.warnings:
        items = "".join(f"<li>{esc(text)}</li>" for text in run.warnings)
        parts.append(f'<p>Warnings of the run:</p><ul class="plain">{items}</ul>')
    return chapter("curves", "Curves", *parts)


def _scores(run: Run) -> list[Series]:
    found = [
        Series(name, run.curve(f"{name}/val/{run.metric}"), (SHIPPED, SECOND, THIRD)[min(number, 2)], number % 3)
        for number, name in enumerate(run.predictors)
    ]
    return [line for line in found if line.points]


def _loss_terms(run: Run) -> list[str]:
    names = dict.fromkeys(name for record in run.records for name in record if name.startswith("train/loss_"))
    return list(names) or ["train/loss"]
