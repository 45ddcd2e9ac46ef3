"""Pieces of HTML that several chapters of a report use."""

import html
import math
from collections.abc import Iterable, Sequence

from halfmask.infer.bootstrap import Interval


def esc(text: object) -> str:
    """Escape text for HTML, also inside attributes."""
    return html.escape(str(text), quote=True)


def percent(value: float, digits: int = 1) -> str:
    """Write a fraction in percent; "n/a" where there is no number.

    >>> percent(0.5), percent(float("nan"))
    ('50.0', 'n/a')
    """
    return "n/a" if math.isnan(value) else f"{100 * value:.{digits}f}"


def signed(value: float) -> str:
    """Write a difference of fractions in points, with sign.

    >>> signed(0.031), signed(-0.0001)
    ('+3.1', '±0.0')
    """
    if math.isnan(value):
        return "n/a"
    text = f"{100 * value:+.1f}"
    return "±0.0" if text in {"+0.0", "-0.0"} else text.replace("-", "\N{MINUS SIGN}")


def between(interval: Interval, sign: bool = False) -> str:
    """Write the interval of a score, or nothing where there is none."""
    if math.isnan(interval.low):
        return ""
    write = signed if sign else percent
    return f"{write(interval.low)} to {write(interval.high)}"


def chapter(name: str, title: str, *parts: str, lead: str = "") -> str:
    """Return a section of the page with its heading; `lead` is a sentence below it."""
    lead = f'<p class="lead">{lead}</p>' if lead else ""
    heading = f'<h2 id="{name}-title">{title}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{heading}{lead}{"".join(parts)}</section>'


def note(text: str) -> str:
    """Return a quiet sentence."""
    return f'<p class="note">{text}</p>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, label: str, css: str = "") -> str:
    """Return a table that scrolls sideways where it is too wide; cells are HTML, the first of a row is its heading."""
    titles = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    return (
        f'<div class="scroll" role="region" aria-label="{esc(label)}" tabindex="0"><table class="{css}">'
        f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def details(summary: str, content: str) -> str:
    """Return something that opens on request."""
    return f"<details><summary>{summary}</summary>{content}</details>"


def meter(value: float, name: str, color: int = 0) -> str:
    """Return a bar for a fraction."""
    if math.isnan(value):
        return ""
    bar = f'<i class="bar b{color}" style="width:{_place(value)}"></i>'
    return f'<span class="meter" role="img" aria-label="{esc(name)}: {percent(value)} %">{bar}</span>'


def whisker(rows: Sequence[tuple[Interval, int]], name: str) -> str:
    """Return dots on a scale from 0 to 100 % with their intervals, one line per (interval, color)."""
    lines = []
    for interval, color in rows:
        if math.isnan(interval.value):
            continue
        bar = ""
        if not math.isnan(interval.low):
            width = _place(interval.high - interval.low)
            bar = f'<i class="range b{color}" style="left:{_place(interval.low)};width:{width}"></i>'
        dot = f'<i class="dot b{color}" style="left:{_place(interval.value)}"></i>'
        lines.append(f'<span class="line">{bar}{dot}</span>')
    said = "; ".join(f"{percent(one.value)} % ({between(one) or 'no interval'})" for one, _ in rows)
    label = esc(f"{name}: {said}")
    return f'<span class="whisker" role="img" aria-label="{label}">{"".join(lines)}</span>'


def chip(color: Sequence[int]) -> str:
    """Return a small square in a class's color."""
    return f'<i class="chip" style="background:rgb({",".join(map(str, color))})"></i>'


def duration(seconds: float) -> str:
    """Write a time span.

    >>> duration(42.0), duration(400.0), duration(9000.0)
    ('42 s', '6.7 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _place(value: float) -> str:
    return f"{100 * min(max(value, 0.0), 1.0):.2f}%"
