"""Signs that self-training went wrong, read off the curves of a run."""

from halfmask.report.markup import esc, percent
from halfmask.report.records import Points, Run
from halfmask.task import METRIC_NAMES

_ONE_CLASS, _IN_A_ROW = 0.98, 5
_DROP = 0.10  # of the score below its best, at the end
_FORGOTTEN = 0.0005  # share of the pseudo-labels
_FIRST, _LAST = 0.25, 0.75  # parts of the run


def alarms(run: Run) -> list[str]:
    """List what looks like a collapse, as sentences; an empty list is good news."""
    found = [*_one_class(run), *_no_labels(run), *_forgotten(run), *_falling(run)]
    return found


def _one_class(run: Run) -> list[str]:
    """As the warning during training: one class has nearly all pseudo-labels, several records in a row."""
    for name, points in run.family("pseudo/share").items():
        row = 0
        for step, share in points:
            row = row + 1 if share > _ONE_CLASS else 0
            if row == _IN_A_ROW:
                return [
                    f"Collapse to one class: from step {step} on or before, more than {_ONE_CLASS:.0%} of the "
                    f"pseudo-labels were <b>{esc(name)}</b>. A higher <code>method.threshold</code> or a lower "
                    "<code>method.unlabeled_weight</code> may help."
                ]
    return []


def _no_labels(run: Run) -> list[str]:
    last = _late(run.curve("pseudo/coverage"))
    if last and max(value for _, value in last) == 0:
        return [
            "In the last quarter of the run no pseudo-label passed the threshold: the unlabeled images taught nothing. "
            "A lower <code>method.threshold</code>, a pretrained encoder or more masks may help."
        ]
    return []


def _forgotten(run: Run) -> list[str]:
    """Classes that were pseudo-labeled in the beginning and vanish."""
    names = []
    for name, points in run.family("pseudo/share").items():
        early, late = _mean(points[: max(int(len(points) * _FIRST), 1)]), _mean(_late(points))
        if len(points) >= 8 and early > 20 * _FORGOTTEN and late < _FORGOTTEN:
            names.append(f"{esc(name)} (from {percent(early)} % to {percent(late, 2)} %)")
    if not names:
        return []
    return [f"Forgotten by the pseudo-labels in the course of the run: {', '.join(names)}."]


def _falling(run: Run) -> list[str]:
    points = run.curve(f"val/{run.metric}")
    if len(points) < 3:
        return []
    best_step, best = max(points, key=lambda point: point[1])
    last = points[-1][1]
    if best - last < _DROP:
        return []
    return [
        f"The validation {METRIC_NAMES[run.metric]} fell from {percent(best)} % at step {best_step} to "
        f"{percent(last)} % at the end. The shipped model is the best one, but the run should be looked at."
    ]


def _late(points: Points) -> Points:
    return points[int(len(points) * _LAST) :]


def _mean(points: Points) -> float:
    return sum(value for _, value in points) / max(len(points), 1)
