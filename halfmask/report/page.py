"""One HTML page with everything inside: no script, no font, no file beside it."""

import re
from collections.abc import Sequence
from pathlib import Path

from halfmask import __version__
from halfmask.report.chapters.allspark import allspark
from halfmask.report.chapters.classes import classes
from halfmask.report.chapters.cost import cost
from halfmask.report.chapters.curves import curves
from halfmask.report.chapters.data import data
from halfmask.report.chapters.examples import examples
from halfmask.report.chapters.pseudo import pseudo
from halfmask.report.chapters.settings import settings
from halfmask.report.chapters.summary import headline, summary
from halfmask.report.markup import duration, esc
from halfmask.report.material import Material

_NAMES = {
    "result": "Result",
    "twin": "Did it help?",
    "curves": "Curves",
    "classes": "Classes",
    "confusion": "Confusion",
    "images": "Images",
    "pseudo": "Pseudo-labels",
    "allspark": "AllSpark",
    "data": "Data",
    "cost": "Cost",
    "recipe": "Recipe",
    "runs": "Runs",
    "table": "Table",
}


def run_page(found: Material) -> str:
    """Write the page of one run."""
    run = found.run
    body = "".join(
        chapter(found) for chapter in (summary, curves, classes, examples, pseudo, allspark, data, cost, settings)
    )
    kind = f", {run.task.kind}" if run.task else ""
    over = f"halfmask report · {esc(run.name)} · {esc(run.method)}{kind} · seed {run.seed}"
    foot = f"halfmask {__version__}; made in {duration(found.seconds)} from <code>{esc(run.path)}</code>."
    return document(f"{run.name}: {headline(found)}", over, headline(found), body, foot)


def document(title: str, over: str, heading: str, body: str, foot: str) -> str:
    """Put a page together.

    Args:
        title: of the window, plain text.
        over: small line above the heading, HTML.
        heading: plain text.
        body: the chapters.
        foot: last line, HTML.
    """
    intro, _, rest = body.partition("<section")
    links = "".join(f'<li><a href="#{name}">{_NAMES[name]}</a></li>' for name in _chapters(body))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{esc(title)}</title><style>{_style()}</style></head><body>"
        f'<header><p class="over">{over}</p><h1>{esc(heading)}</h1>{intro}</header>'
        f'<nav aria-label="Chapters"><ul>{links}</ul></nav><main><section{rest}</main>'
        f"<footer>{foot}</footer></body></html>\n"
    )


def _chapters(body: str) -> Sequence[str]:
    return re.findall(r'<section id="(\w+)"', body)


def _style() -> str:
    return Path(__file__).with_name("style.css").read_text(encoding="utf-8")
