"""Line charts as SVG text: no script, no font, readable in a light and in a dark page, legible on a phone.

A series is told apart by its color and by its dashes; colors are of the set that Okabe and Ito chose for color-blind
readers ("Color Universal Design", 2008). The page's style gives `.c0`, `.c1`, ... their values for light and dark.
"""

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

from halfmask.report.markup import esc

Points = Sequence[tuple[int | float, int | float]]

_WIDTH, _HEIGHT = 380, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 12, 26
_MOST_POINTS = 160
_INSET, _GROUP, _MOST_LETTERS = 22, 40, 54
_DASHES = ("", "7 4", "2 3", "9 3 2 3")


class Series(NamedTuple):
    """One line.

    Args:
        name: in the legend.
        points: in order of x.
        color: number of its color.
        dash: number of its dashes; 0 is a full line.
    """

    name: str
    points: Points
    color: int = 0
    dash: int = 0


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    percent: bool = True,
    x_name: str = "step",
    mark: tuple[int | float, str] | None = None,
    x_percent: bool = False,
    floor: float | None = 0.0,
) -> str:
    """Draw a figure with caption, legend and lines; series without points are left out.

    Args:
        series: lines; more than four colors are not told apart well.
        title: caption.
        percent: values are fractions, to be shown as percent.
        x_name: below the axis.
        mark: a vertical line at x with a label.
        x_percent: x values are fractions.
        floor: lowest y, or `None` for the data's.
    """
    shown = [line._replace(points=_thinned(line.points)) for line in series if line.points]
    if not shown:
        return ""
    xs = [x for line in shown for x, _ in line.points] + ([mark[0]] if mark else [])
    ys = [y for line in shown for _, y in line.points]
    x_low, x_high = min(xs), max(xs)
    y_ticks = ticks(min(ys) if floor is None else min(floor, *ys), max(ys))
    y_low, y_high = y_ticks[0], y_ticks[-1]
    x_ticks = [value for value in ticks(x_low, x_high, 4) if x_low <= value <= x_high]
    x_span, y_span = (x_high - x_low) or 1.0, (y_high - y_low) or 1.0

    def place(x: int | float, y: int | float) -> tuple[float, float]:
        return (
            _LEFT + (_WIDTH - _LEFT - _RIGHT) * (x - x_low) / x_span,
            _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (y - y_low) / y_span,
        )

    parts = []
    for value in y_ticks:
        _, y = place(x_low, value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_label(value, percent)}</text>')
    for value in x_ticks:
        x, _ = place(value, y_low)
        text = _label(value, x_percent)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{text}</text>')
    parts.append(f'<text class="axis" x="{_LEFT - 6}" y="{_HEIGHT - 8}" text-anchor="end">{esc(x_name)}</text>')
    if mark is not None:
        x, _ = place(mark[0], y_low)
        side = "end" if x > _WIDTH / 2 else "start"
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        shift = -5 if side == "end" else 5
        parts.append(
            f'<text x="{x + shift:.1f}" y="{_HEIGHT - _BOTTOM - 6}" text-anchor="{side}">{esc(mark[1])}</text>'
        )
    for line in shown:
        parts.append(_line(line, [place(x, y) for x, y in line.points]))
    described = "; ".join(f"{line.name}: {_path(line, percent)}" for line in shown)
    return (
        f'<figure class="chart"><figcaption>{esc(title)}</figcaption>{_legend(shown)}'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{esc(title)}. {esc(described)}">'
        f"{''.join(parts)}</svg></figure>"
    )


class Group(NamedTuple):
    """Scores of one setting.

    Args:
        name: above its line.
        values: fractions, one per run.
        color: number of its color.
    """

    name: str
    values: Sequence[float]
    color: int = 0


def spread_chart(groups: Sequence[Group], *, title: str) -> str:
    """Draw one line per group: runs as dots, their mean as a bar, its standard deviation as a line to both sides.

    Args:
        groups: from top to bottom; those without values are left out.
        title: caption.
    """
    shown = [group for group in groups if group.values]
    if not shown:
        return ""
    spreads = [(mean(group.values), stdev(group.values) if len(group.values) > 1 else 0.0) for group in shown]
    ends = [value for group in shown for value in group.values]
    ends += [at + side for at, sd in spreads for side in (-sd, sd)]
    scale = ticks(min(ends), max(ends))
    height = _TOP + _GROUP * len(shown) + _BOTTOM

    def place(x: float) -> float:
        return _INSET + (_WIDTH - 2 * _INSET) * (x - scale[0]) / (scale[-1] - scale[0])

    parts = []
    for value in scale:
        x, text = f"{place(value):.1f}", _label(value, True)
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{height - _BOTTOM}"/>')
        parts.append(f'<text x="{x}" y="{height - 8}" text-anchor="middle">{text}</text>')
    said = []
    for number, (group, (at, sd)) in enumerate(zip(shown, spreads, strict=True)):
        y, css = _TOP + _GROUP * number + _GROUP - 12, f"c{group.color}"
        name = group.name if len(group.name) <= _MOST_LETTERS else f"{group.name[: _MOST_LETTERS - 1]}…"
        parts.append(f'<text x="{_INSET}" y="{y - 14}">{esc(name)}</text>')
        if len(group.values) > 1:
            parts.append(f'<line class="{css}" x1="{place(at - sd):.1f}" x2="{place(at + sd):.1f}" y1="{y}" y2="{y}"/>')
        x = f"{place(at):.1f}"
        parts.append(f'<line class="{css}" stroke-width="3" x1="{x}" x2="{x}" y1="{y - 7}" y2="{y + 7}"/>')
        parts += [f'<circle class="{css}" cx="{place(value):.1f}" cy="{y}" r="3"/>' for value in group.values]
        said.append(f"{group.name}: {_value(at, True)}" + (f" ± {100 * sd:.1f}" if len(group.values) > 1 else ""))
    return (
        f'<figure class="chart"><figcaption>{esc(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{esc(title)}. {esc("; ".join(said))}">'
        f"{''.join(parts)}</svg></figure>"
    )


def sparkline(points: Points, name: str, color: int = 0) -> str:
    """Draw a small line of fractions on a fixed scale from 0 to 1."""
    if not points:
        return ""
    thin = _thinned(points)
    low, high = thin[0][0], thin[-1][0]
    span = (high - low) or 1.0
    path = " ".join(f"{2 + 116 * (x - low) / span:.1f},{25 - 22 * min(max(y, 0), 1):.1f}" for x, y in thin)
    if len(thin) == 1:
        path += f" 118,{25 - 22 * min(max(thin[0][1], 0), 1):.1f}"
    label = f"{name}: from {100 * thin[0][1]:.0f} % to {100 * thin[-1][1]:.0f} %"
    return (
        f'<svg class="spark" viewBox="0 0 120 28" role="img" aria-label="{esc(label)}">'
        f'<line class="grid" x1="0" x2="120" y1="25.5" y2="25.5"/><line class="grid" x1="0" x2="120" y1="3" y2="3"/>'
        f'<polyline class="c{color}" points="{path}"/></svg>'
    )


def ticks(low: int | float, high: int | float, most: int = 5) -> list[float]:
    """Choose round numbers that enclose a range.

    >>> ticks(0.0, 0.83)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10, 20) if span / (step * factor) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(round(number * step, 12)) for number in range(first, max(last, first + 1) + 1)]


def _line(line: Series, placed: Sequence[tuple[float, float]]) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    dash = f' stroke-dasharray="{_DASHES[line.dash % 4]}"' if line.dash % 4 else ""
    dots = ""
    if len(placed) <= 24:
        dots = "".join(f'<circle class="c{line.color}" cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>' for x, y in placed)
    return f'<polyline class="c{line.color}" points="{path}"{dash}/>{dots}'


def _legend(shown: Sequence[Series]) -> str:
    if len(shown) == 1 and not shown[0].name:
        return ""
    entries = []
    for line in shown:
        dash = f' stroke-dasharray="{_DASHES[line.dash % 4]}"' if line.dash % 4 else ""
        swatch = (
            f'<svg class="swatch" viewBox="0 0 26 8" aria-hidden="true"><polyline class="c{line.color}" '
            f'points="0,4 26,4"{dash}/></svg>'
        )
        entries.append(f"<li>{swatch}{esc(line.name)}</li>")
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _path(line: Series, percent: bool) -> str:
    first, last = line.points[0][1], line.points[-1][1]
    return f"from {_value(first, percent)} to {_value(last, percent)}"


def _value(value: int | float, percent: bool) -> str:
    return f"{100 * value:.1f} %" if percent else f"{value:.4g}"


def _label(value: int | float, percent: bool) -> str:
    if percent:
        return f"{round(100 * value, 2):g} %"
    if abs(value) >= 1000 and value == int(value):
        return f"{value / 1000:.4g}k"
    return f"{value:.3g}"


def _thinned(points: Points) -> Points:
    """Mean of neighbors where there are more points than a chart can show."""
    if len(points) <= _MOST_POINTS:
        return points
    size = -(-len(points) // _MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]
