"""Compute where the lines, dots and texts of a chart stand; `templates/pieces.html` draws them as SVG.

A series is told apart by its color and by its dashes; colors are of the set that Okabe and Ito chose for color-blind
readers ("Color Universal Design", 2008). `style.css` gives `.c0`, `.c1`, ... their values for light and dark.
"""

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

from halfmask.infer.bootstrap import Interval

Number = int | float
Points = Sequence[tuple[Number, Number]]

_WIDTH, _HEIGHT = 380, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 12, 26
_MOST_POINTS, _MOST_DOTS = 160, 24
_INSET, _GROUP, _MOST_LETTERS = 22, 40, 54
_LINE, _NAMES, _SHORT = 20, 116, 18
_DASHES = ("", "7 4", "2 3", "9 3 2 3")


class Series(NamedTuple):
    """One line."""

    name: str  # in the legend
    points: Points  # in order of x
    color: int = 0  # number of its color
    dash: int = 0  # number of its dashes; 0 is a full line


class Group(NamedTuple):
    """Scores of one setting."""

    name: str  # above its line
    values: Sequence[float]  # fractions, one per run
    color: int = 0  # number of its color


class Mark(NamedTuple):
    """A difference of scores with its interval."""

    name: str
    found: Interval
    color: int = 0


class Rule(NamedTuple):
    """A straight line with a class of the style sheet."""

    css: str
    x: tuple[Number, Number]
    y: tuple[Number, Number]
    width: int | None = None


class Text(NamedTuple):
    """A word on the chart; `anchor` is start, middle or end."""

    x: Number
    y: Number
    anchor: str
    text: str


class Line(NamedTuple):
    """A line through points, with its name for the legend."""

    name: str
    color: int
    dash: str
    points: list[tuple[float, float]]


class Chart(NamedTuple):
    """A chart ready to be drawn."""

    title: str  # caption; small charts within a table have none
    label: str  # the content in words, for readers who cannot see it
    size: tuple[int, int]  # width and height
    rules: list[Rule]  # drawn first
    texts: list[Text]  # drawn over the rules
    lines: list[Line]  # drawn over the texts
    dots: list[tuple[float, float, int]]  # x, y and color
    legend: bool = False  # whether the lines are named


def line_chart(
    series: Sequence[Series],
    title: str,
    *,
    percent: bool = True,
    x_name: str = "step",
    x_percent: bool = False,
    mark: tuple[Number, str] | None = None,
) -> Chart | None:
    """Place lines on two axes; series without points are left out, and without any there is no chart.

    Args:
        series: lines; more than four colors are not told apart well.
        title: caption.
        percent: y values are fractions, shown in percent.
        x_name: below the axis.
        x_percent: x values are fractions.
        mark: a vertical line at x with a text.
    """
    shown = [line._replace(points=_thinned(line.points)) for line in series if line.points]
    if not shown:
        return None
    xs = [x for line in shown for x, _ in line.points] + ([mark[0]] if mark else [])
    ys = [y for line in shown for _, y in line.points]
    y_ticks, low, high = ticks(min(0.0, *ys), max(ys)), min(xs), max(xs)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def place(x: Number, y: Number = y_ticks[0]) -> tuple[float, float]:
        across, up = (x - low) / ((high - low) or 1), (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(_LEFT + (right - _LEFT) * across, 1), round(bottom - (bottom - _TOP) * up, 1)

    heights = [(place(low, y)[1], y) for y in y_ticks]
    rules = [Rule("grid", (_LEFT, right), (y, y)) for y, _ in heights]
    texts = [Text(_LEFT - 6, round(y + 4, 1), "end", _label(value, percent)) for y, value in heights]
    x_ticks = [x for x in ticks(low, high, 4) if low <= x <= high]
    texts += [Text(place(x)[0], _HEIGHT - 8, "middle", _label(x, x_percent)) for x in x_ticks]
    texts.append(Text(_LEFT - 6, _HEIGHT - 8, "end", x_name))
    if mark is not None:
        x = place(mark[0])[0]
        rules.append(Rule("mark", (x, x), (_TOP, bottom)))
        shift, side = (-5, "end") if x > _WIDTH / 2 else (5, "start")
        texts.append(Text(round(x + shift, 1), bottom - 6, side, mark[1]))
    lines = [Line(s.name, s.color, _DASHES[s.dash % 4], [place(*point) for point in s.points]) for s in shown]
    dots = [(*point, line.color) for line in lines if len(line.points) <= _MOST_DOTS for point in line.points]
    said = [f"{s.name}: from {_value(s.points[0][1], percent)} to {_value(s.points[-1][1], percent)}" for s in shown]
    legend = len(shown) > 1 or bool(shown[0].name)
    return Chart(title, f"{title}. {'; '.join(said)}", (_WIDTH, _HEIGHT), rules, texts, lines, dots, legend)


def spread_chart(groups: Sequence[Group], title: str) -> Chart | None:
    """Place the runs of each setting on one scale: a dot per run, a bar at the mean, a line of one deviation each way.

    Groups without values are left out, and without any there is no chart.
    """
    shown = [group for group in groups if group.values]
    if not shown:
        return None
    spreads = [(mean(g.values), stdev(g.values) if len(g.values) > 1 else 0.0) for g in shown]
    ends = [value for group in shown for value in group.values]
    ends += [at + side for at, sd in spreads for side in (-sd, sd)]
    scale = ticks(min(ends), max(ends))
    height = _TOP + _GROUP * len(shown) + _BOTTOM

    def place(x: float) -> float:
        return round(_INSET + (_WIDTH - 2 * _INSET) * (x - scale[0]) / (scale[-1] - scale[0]), 1)

    rules = [Rule("grid", (place(x), place(x)), (_TOP, height - _BOTTOM)) for x in scale]
    texts = [Text(place(x), height - 8, "middle", _label(x, True)) for x in scale]
    dots, said = [], []
    for number, (group, (at, sd)) in enumerate(zip(shown, spreads, strict=True)):
        y, css = _TOP + _GROUP * number + _GROUP - 12, f"c{group.color}"
        name = group.name if len(group.name) <= _MOST_LETTERS else f"{group.name[: _MOST_LETTERS - 1]}…"
        texts.append(Text(_INSET, y - 14, "start", name))
        if len(group.values) > 1:
            rules.append(Rule(css, (place(at - sd), place(at + sd)), (y, y)))
        rules.append(Rule(css, (place(at), place(at)), (y - 7, y + 7), 3))
        dots += [(place(value), float(y), group.color) for value in group.values]
        said.append(f"{group.name}: {_value(at, True)}" + (f" ± {100 * sd:.1f}" if len(group.values) > 1 else ""))
    return Chart(title, f"{title}. {'; '.join(said)}", (_WIDTH, height), rules, texts, [], dots)


def interval_chart(marks: Sequence[Mark], title: str) -> Chart | None:
    """Place differences on one scale that shows 0: a dot at each, and a line over its interval."""
    if not marks:
        return None
    ends = [0.0] + [bound for mark in marks for bound in mark.found if not math.isnan(bound)]
    scale = ticks(min(ends), max(ends))
    bottom, name_end = _TOP + _LINE * len(marks), _NAMES - 8

    def place(x: Number) -> float:
        return round(_NAMES + (_WIDTH - _NAMES - _INSET) * (x - scale[0]) / (scale[-1] - scale[0]), 1)

    rules = [Rule("grid", (place(x), place(x)), (_TOP, bottom)) for x in scale]
    rules.append(Rule("mark", (place(0), place(0)), (_TOP, bottom)))
    texts = [Text(place(x), bottom + 18, "middle", f"{100 * x:+g}" if x else "0") for x in scale]
    dots, said = [], []
    for number, mark in enumerate(marks):
        y, (value, low, high) = _TOP + _LINE * number + _LINE // 2, mark.found
        name = mark.name if len(mark.name) <= _SHORT else f"{mark.name[: _SHORT - 1]}…"
        texts.append(Text(name_end, y + 4, "end", name))
        if not math.isnan(low):
            rules.append(Rule(f"c{mark.color}", (place(low), place(high)), (y, y)))
        dots.append((place(value), float(y), mark.color))
        between = "" if math.isnan(low) else f" ({100 * low:+.1f} to {100 * high:+.1f})"
        said.append(f"{mark.name}: {100 * value:+.1f}{between}")
    return Chart(title, f"{title}. {'; '.join(said)}", (_WIDTH, bottom + _BOTTOM), rules, texts, [], dots)


def sparkline(points: Points, name: str, color: int = 0) -> Chart | None:
    """Place a small line of fractions on a fixed scale from 0 to 1."""
    if not points:
        return None
    thin = _thinned(points)
    low, span = thin[0][0], (thin[-1][0] - thin[0][0]) or 1.0
    places = [(round(2 + 116 * (x - low) / span, 1), round(25 - 22 * min(max(y, 0), 1), 1)) for x, y in thin]
    if len(places) == 1:
        places.append((118.0, places[0][1]))
    label = f"{name}: from {100 * thin[0][1]:.0f} % to {100 * thin[-1][1]:.0f} %"
    rules = [Rule("grid", (0, 120), (y, y)) for y in (25.5, 3)]
    return Chart("", label, (120, 28), rules, [], [Line("", color, "", places)], [])


def ticks(low: Number, high: Number, most: int = 5) -> list[float]:
    """Choose round numbers that enclose a range.

    >>> ticks(0.0, 0.83)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10, 20) if span / (step * factor) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(round(number * step, 12)) for number in range(first, max(last, first + 1) + 1)]


def _value(value: Number, percent: bool) -> str:
    return f"{100 * value:.1f} %" if percent else f"{value:.4g}"


def _label(value: Number, percent: bool) -> str:
    if percent:
        return f"{round(100 * value, 2):g} %"
    return f"{value / 1000:.4g}k" if abs(value) >= 1000 and value == int(value) else f"{value:.3g}"


def _thinned(points: Points) -> Points:
    """Average neighbors where there are more points than a chart can show."""
    if len(points) <= _MOST_POINTS:
        return points
    size = -(-len(points) // _MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]
