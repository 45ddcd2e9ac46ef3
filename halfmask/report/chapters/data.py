"""What the run learned from: counts, sizes, classes, and what `halfmask check` finds."""

import re
from typing import Any

from halfmask.report.markup import chapter, chip, details, esc, meter, note, percent, table
from halfmask.report.material import Material
from halfmask.report.pictures import palette

_SHOWN = 12
_LEVELS = {"error": "bad", "warning": "open", "note": "quiet"}


def data(found: Material) -> str:
    """Return the chapter `data`."""
    run = found.run
    counts = [
        (name, run.count(part))
        for name, part in (("labeled", "labeled"), ("unlabeled", "unlabeled"), ("validation", "val"))
    ]
    rows = [(name, f"{count:,}") for name, count in counts if count is not None]
    root = run.recipe.get("data", {}).get("root")
    parts = [f"<p>Folder <code>{esc(root)}</code>, read as {esc(run.recipe['data']['dataset']['name'])}.</p>"]
    if rows:
        parts.append(table(("images of this run", "count"), rows, label="Images of this run", css="narrow"))
    if found.data is None:
        parts.append(note(esc(found.missing.get("data", "The data was not looked at."))))
        return chapter("data", "Data", *parts)
    parts += [_classes(found), _sizes(found.data), _findings(found.data)]
    looked = note(
        f"From <code>halfmask check</code> on {found.data['looked_at']:,} images; the whole folder: "
        f"<code>halfmask check --data {esc(found.data['data'])}</code>"
    )
    return chapter("data", "Data", *parts, looked)


def _classes(found: Material) -> str:
    assert found.data is not None
    parts = found.data["classes"]
    labeled: list[dict[str, Any]] = parts.get("labeled") or next(iter(parts.values()), [])
    if not labeled:
        return ""
    colors = palette(found.run.task) if found.run.task and len(found.run.classes) == len(labeled) else None
    val = {entry["name"]: entry for entry in parts.get("val", [])}
    rows = []
    for k, entry in enumerate(labeled):
        mark = chip(colors[k]) if colors else ""
        row = [
            mark + esc(entry["name"]),
            f"{percent(entry['share'])} %",
            meter(entry["share"], entry["name"]),
            f"{entry['masks']:,}",
        ]
        if val:
            row += (
                [f"{percent(val[entry['name']]['share'])} %", f"{val[entry['name']]['masks']:,}"]
                if entry["name"] in val
                else ["", ""]
            )
        rows.append(tuple(row))
    head = ["class", "labeled pixels", "", "masks"] + (["validation pixels", "masks"] if val else [])
    return table(head, rows, label="Classes in the masks", css="bars")


def _sizes(found: dict[str, Any]) -> str:
    sizes = [f"{entry['width']}x{entry['height']} ({entry['images']:,})" for entry in found["sizes"][:4]]
    more = f" and {len(found['sizes']) - 4} more sizes" if len(found["sizes"]) > 4 else ""
    modes = ", ".join(f"{mode} ({count:,})" for mode, count in found["modes"].items())
    return f"<p>Sizes {', '.join(sizes)}{more}. Pixels {modes}.</p>" if sizes else ""


def _findings(found: dict[str, Any]) -> str:
    if not found["findings"]:
        return note("The check finds nothing to mend.")
    rows = [
        (
            f'<b class="level {_LEVELS[entry["level"]]}">{esc(entry["level"])}</b> {esc(entry["code"])}',
            _code(entry["message"])
            + (f" <span class='small'>{esc(entry['example'])}</span>" if entry["example"] else ""),
            _code(entry["cure"]),
        )
        for entry in found["findings"]
    ]
    head = ("finding", "what", "cure")
    shown = table(head, rows[:_SHOWN], label="Findings", css="text")
    if len(rows) > _SHOWN:
        shown += details(f"{len(rows) - _SHOWN} more", table(head, rows[_SHOWN:], label="More findings", css="text"))
    return f"<h3>Findings</h3>{shown}"


def _code(text: str) -> str:
    """Show what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", esc(text))
