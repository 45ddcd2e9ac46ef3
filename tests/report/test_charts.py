"""Charts as SVG: values stand where they belong, and every line has a text."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from halfmask.infer.bootstrap import Interval
from halfmask.report import charts
from halfmask.report.charts import Group, Mark, Series, interval_chart, ticks
from halfmask.report.draw import PIECES


def line_chart(*arguments, **options) -> str:
    return str(PIECES.figure(charts.line_chart(*arguments, **options))).strip()


def spread_chart(*arguments, **options) -> str:
    return str(PIECES.figure(charts.spread_chart(*arguments, **options))).strip()


def sparkline(*arguments) -> str:
    return str(PIECES.svg(charts.sparkline(*arguments), "spark")).strip()


def polylines(svg: str, css: str) -> list[list[tuple[float, float]]]:
    found = re.findall(rf'<polyline class="{css}" points="([^"]+)"', svg.partition("</ul>")[2] or svg)
    return [[tuple(map(float, pair.split(","))) for pair in points.split()] for points in found]


def test_points_are_placed_in_proportion():
    svg = line_chart([Series("a", [(0, 0.0), (50, 0.5), (100, 1.0)])], title="Score")
    ((start, middle, end),) = polylines(svg, "c0")
    assert middle[0] == pytest.approx((start[0] + end[0]) / 2, abs=0.1)
    assert middle[1] == pytest.approx((start[1] + end[1]) / 2, abs=0.1)
    assert end[1] < start[1]  # up is more


def test_a_chart_is_well_formed_and_says_its_values():
    svg = line_chart([Series("<a> & b", [(1, 0.25)], 1, 1), Series("none", [])], title='A "title"', mark=(1, "here"))
    root = ElementTree.fromstring(svg.replace("&quot;", "'"))
    label = next(node for node in root.iter("svg") if node.get("role") == "img").get("aria-label")
    assert "<a> & b: from 25.0 % to 25.0 %" in label
    assert "none" not in svg
    assert line_chart([Series("none", [])], title="nothing") == ""


def test_a_spread_has_dots_for_runs_a_bar_at_the_mean_and_a_line_of_one_deviation():
    groups = [Group("cct (heads={i_vat: 2})", [0.4, 0.5, 0.6], 0), Group("one <run>", [0.3], 1), Group("none", [])]
    svg = spread_chart(groups, title="Scores")
    dots = {css: [] for css in ("c0", "c1")}
    for css, x in re.findall(r'<circle class="(c\d)" cx="([\d.]+)"', svg):
        dots[css].append(float(x))
    lines = re.findall(r'<line class="(c\d)"(?: stroke-width="3")? x1="([\d.]+)" x2="([\d.]+)"', svg)
    (own, low, high), (_, bar, _), (other, single, _) = lines
    assert (own, other) == ("c0", "c1")
    per_tenth = dots["c0"][1] - dots["c0"][0]
    assert float(bar) == pytest.approx(dots["c0"][1], abs=0.1)
    # Standard deviation of the three is 0.1.
    assert [float(low), float(high)] == pytest.approx([dots["c0"][0], dots["c0"][2]], abs=0.2)
    assert dots["c1"] == [pytest.approx(dots["c0"][0] - per_tenth, abs=0.2)] == [pytest.approx(float(single), abs=0.1)]
    root = ElementTree.fromstring(svg)
    label = next(node for node in root.iter("svg")).get("aria-label")
    assert label == "Scores. cct (heads={i_vat: 2}): 50.0 % ± 10.0; one <run>: 30.0 %"
    assert spread_chart([Group("none", [])], title="nothing") == ""


def test_many_points_are_averaged():
    points = [(step, float(step % 2)) for step in range(10_000)]
    ((*path,),) = polylines(line_chart([Series("", points)], title="t"), "c0")
    assert len(path) <= 160
    assert len({y for _, y in path[:-1]}) <= 2  # each the mean of as many zeros as ones, up to one


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0), (0.2, 0.21), (0, 12345), (-3, 7), (1e-6, 2e-6), (5, 5)])
def test_ticks_are_round_and_enclose_the_range(low, high):
    found = ticks(low, high)
    assert found[0] <= low + 1e-9
    assert found[-1] >= high - 1e-9
    assert 2 <= len(found) <= 8
    steps = {round(b - a, 9) for a, b in pairwise(found)}
    assert max(steps) - min(steps) < 1e-6 * max(steps) + 1e-9


def test_a_small_curve_is_on_a_fixed_scale():
    ((low, high),) = polylines(sparkline([(0, 0.0), (10, 1.0)], "road"), "c0")
    assert (low[1], high[1]) == (25.0, 3.0)
    assert 'aria-label="road: from 0 % to 100 %"' in sparkline([(0, 0.0), (10, 1.0)], "road")
    assert sparkline([], "road") == ""


def test_an_interval_chart_shows_zero_each_difference_and_its_interval():
    marks = [Mark("cps", Interval(-0.02, -0.05, 0.01)), Mark("a_name_longer_than_there_is_room", Interval(0.03), 1)]
    chart = interval_chart(marks, "Gain")
    assert chart is not None
    [zero] = [rule for rule in chart.rules if rule.css == "mark"]
    [line] = [rule for rule in chart.rules if rule.css == "c0"]  # a difference without interval has no line
    (x0, y0, _), (x1, _, color) = chart.dots
    assert line.x[0] < x0 < zero.x[0] < line.x[1] < x1
    assert (line.y[0], color) == (y0, 1)
    assert "0" in [text.text for text in chart.texts]
    assert chart.label == "Gain. cps: -2.0 (-5.0 to +1.0); a_name_longer_than_there_is_room: +3.0"
    assert all(0 <= text.x <= chart.size[0] for text in chart.texts)
    assert interval_chart([], "Gain") is None
