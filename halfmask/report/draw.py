"""Draw pages: jinja2 templates, the filters they use, and the style sheet inside the page."""

import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from halfmask import __version__
from halfmask.infer.bootstrap import Interval
from halfmask.progress import duration
from halfmask.report.pictures import encoded, heat

_HERE = Path(__file__).parent


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


def count(number: int, unit: str = "") -> str:
    """Write a whole number, with its unit if one is given.

    >>> count(1200), count(1, "image"), count(2, "image")
    ('1,200', '1 image', '2 images')
    """
    return f"{number:,} {unit}{'s' if number != 1 else ''}" if unit else f"{number:,}"


def place(value: float) -> str:
    """Write a fraction as a place on a scale from 0 to 100 %."""
    return f"{100 * min(max(value, 0.0), 1.0):.2f}%"


def draw(template: str, **values: Any) -> str:
    """Fill a template: one of `templates/`, or a file of another package by its path in `halfmask/`."""
    return _ENVIRONMENT.get_template(template).render(values)


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader([_HERE / "templates", _HERE.parent]),
        autoescape=select_autoescape(["html"]),  # the other templates are no HTML: style sheet, Markdown, LaTeX
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (percent, signed, between, duration, count, place, encoded, heat)
    made.filters |= {filter.__name__: filter for filter in filters}
    made.tests["nan"] = math.isnan
    made.globals["version"] = __version__
    return made


_ENVIRONMENT = _environment()
PIECES: Any = _ENVIRONMENT.get_template("pieces.html").module
_ENVIRONMENT.globals["ui"] = PIECES
