"""The resolved recipe: every value, and where it came from."""

from itertools import groupby

from halfmask.report.markup import chapter, details, esc, note, table
from halfmask.report.material import Material
from halfmask.report.records import Setting


def settings(found: Material) -> str:
    """Return the chapter `recipe`."""
    everything = found.run.settings
    chosen = [entry for entry in everything if entry.origin != "default"]
    parts = []
    if chosen:
        parts.append(_rows(chosen, "Values that were set"))
    groups = "".join(
        f"<h4>{esc(section)}</h4>{_rows(list(entries), f'Section {section}')}"
        for section, entries in groupby(everything, key=lambda entry: entry.key.partition(".")[0])
    )
    parts.append(details(f"All {len(everything)} values, with defaults", groups))
    command = " ".join(map(str, found.run.environment.get("command", [])))
    again = f"halfmask train {found.run.path / 'recipe.yaml'} --out RUN"
    parts.append(note(f"Command: <code>{esc(command or 'not recorded')}</code>. Again: <code>{esc(again)}</code>"))
    return chapter("recipe", "Recipe", *parts, lead="Values that were set; all others are defaults.")


def _rows(entries: list[Setting], label: str) -> str:
    rows = [(f"<code>{esc(e.key)}</code>", f"<code>{esc(e.value)}</code>", esc(e.origin)) for e in entries]
    return table(("key", "value", "from"), rows, label=label, css="text recipe")
