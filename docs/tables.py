"""Write the tables of README.md and docs/*.md from docstrings and signatures, so that nothing is typed twice.

python docs/tables.py           rewrite what stands between `<!-- table: NAME -->` and `<!-- end of table -->`
python docs/tables.py --check   only say which pages are out of date; exit code 1 if any is
"""

import inspect
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

import halfmask
from halfmask import errors
from halfmask.cli.listing import describe_entry
from halfmask.codes import CODES
from halfmask.compare.table import table_of
from halfmask.docstrings import argument_docs, cited
from halfmask.plugins import Kind, names, resolve
from halfmask.recipe.explain import describe_field
from halfmask.recipe.read import Recipe, entry_kinds
from halfmask.recipe.sections import Entry, Section
from halfmask.recipe.shipped import recipe_facts, recipe_names

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_MARKED = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def methods_table() -> str:
    """One row per method."""
    rows = []
    for name in names("methods"):
        entry = describe_entry("methods", name)
        module = _module_doc("methods", name)
        rows.append(
            [
                f"[`{name}`](METHODS#{name})",
                _first_line(module),
                _citation(module),
                entry["networks"],
                entry["passes"],
                ", ".join(entry["needs"]),
                entry["status"],
            ]
        )
    return _table(["method", "what", "paper", "networks", "passes", "needs", "status"], rows)


def published() -> str:
    """One row per recipe that names published numbers."""
    rows = []
    for recipe in recipe_names():
        facts = recipe_facts(recipe)
        scores = []
        for split, value in facts["published"].items():
            doubt = "" if facts["confidence"].get(split, "high") == "high" else " (unverified)"
            scores.append(f"{100 * value:.4g}{doubt}" if not split else f"{split}: {100 * value:.4g}{doubt}")
        if scores:
            method = f"[`{facts['method']}`](METHODS#{facts['method']})"
            about = [method, f"`{recipe}`", facts["dataset"], facts["encoder"], facts["metric"]]
            rows.append([*about, ", ".join(scores), ", ".join(_ours(facts))])
    return _table(["method", "recipe", "data", "encoder", "score", "published, by split", "ours"], rows)


def _ours(facts: dict[str, Any]) -> Iterator[str]:
    """Scores of benchmarks/results that have the method, data, split and kind of score of a recipe."""
    for path, content in [*_measured(""), *_measured("leaderboard_")]:
        settings = content["settings"]
        if (settings["data"], settings.get("metric", "miou")) != (facts["dataset"], facts["metric"]):
            continue
        for row in content["rows"]:
            split = str(row.get("labeled", settings.get("labeled")))
            own = row.get("method") == facts["method"] and not row.get("control_of")
            if own and split in facts["published"] and row.get("mean") is not None:
                score, encoder = f"{split}: {100 * row['mean']:.4g}", _encoder(settings)
                yield f"[{score}](../benchmarks/results/{path.name}) ({encoder}{settings['steps']} steps)"


def _encoder(settings: dict[str, Any]) -> str:
    model = settings.get("model")
    return f"{model['encoder']['name']}, " if isinstance(model, dict) else ""


def method_sections() -> str:
    """One section per method: docstring, parameters, how to use it."""
    sections = []
    for name in names("methods"):
        about = inspect.cleandoc(_module_doc("methods", name))
        summary, _, rest = about.partition("\n")
        use = f"Use it: `method.name={name}`, or `--method {name}`."
        sections.append(f"## {name}\n\n{summary} {use}\n\n{_prose(rest)}\n\n{_parameters('methods', name)}")
    return "\n\n".join(sections)


def kind_sections(kind: Kind) -> Callable[[], str]:
    """One section per encoder, decoder or dataset."""

    def write() -> str:
        sections = []
        for name in names(kind):
            summary, _, rest = inspect.cleandoc(_module_doc(kind, name)).partition("\n")
            parts = [f"### {name}", summary, _prose(rest), _parameters(kind, name)]
            sections.append("\n\n".join(part for part in parts if part))
        return "\n\n".join(sections)

    return write


def importers_table() -> str:
    """One row per format of official checkpoints."""
    rows = [[f"`{name}`", _first_line(_module_doc("importers", name))] for name in names("importers")]
    return _table(["format", "files"], rows)


def recipe_sections() -> str:
    """Every key of a recipe, by section."""
    sections = []
    for name, field in Recipe.model_fields.items():
        section = _section_of(field.annotation)
        if section is None or name in entry_kinds():
            continue
        sections.append(f"### {name}\n\n{_first_line(inspect.getdoc(section) or '')}\n\n{_keys(name, section)}")
    return "\n\n".join(sections)


def public_names() -> str:
    """One row per name that `import halfmask` offers."""
    rows = []
    for name in halfmask.__all__:
        value = getattr(halfmask, name)
        shown = value if name != "__version__" else None
        rows.append([f"`halfmask.{name}`", _first_line(inspect.getdoc(shown) or "") if shown else "This version."])
    return _table(["name", "what"], rows)


def codes() -> str:
    """One row per code that an error or a finding may carry."""
    return _table(
        ["code", "what was found", "what mends it"],
        [[f"`{code}`", entry.meaning, entry.cure] for code, entry in sorted(CODES.items())],
    )


def exit_codes() -> str:
    """One row per exit code, with the errors that lead to it."""
    rows: dict[int, list[str]] = {0: ["success"], 1: ["any exception that is not foreseen: a bug"]}
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.HalfmaskError) and kind is not errors.HalfmaskError:
            rows.setdefault(kind.exit_code, []).append(f"`{name}`: {_first_line(kind.__doc__ or '')}")
    return _table(["exit code", "when"], [[str(code), " ".join(rows[code])] for code in sorted(rows)])


def results() -> str:
    """One table per file of benchmarks/results that compares methods over seeds."""
    parts = []
    for path, content in _measured(""):
        settings, machine = content["settings"], content["environment"]
        data = settings["data"]
        facts = [data if isinstance(data, str) else " and ".join(data), f"{settings['steps']} steps"]
        facts += [f"crop {settings['crop']}"] if "crop" in settings else []
        facts += [f"network `{settings['model']}`"] if settings.get("model") else []
        facts += [f"{len(settings['seeds'])} seeds", f"{machine['cpu_cores']} CPU cores"]
        facts.append(f"torch {machine['packages']['torch']}")
        link = f"[all numbers](../benchmarks/results/{path.name})"
        parts.append(f"## {path.stem}\n\n{', '.join(facts)}; {link}.\n\n{_scores(content['rows'])}")
    return "\n\n".join(parts)


def leaderboard() -> str:
    """One table and figure per file of `halfmask compare`."""
    parts = []
    for path, content in _measured("leaderboard_"):
        settings, machine = content["settings"], content["environment"]
        model, batch = settings["model"], settings["batch"]
        facts = [f"{settings['labeled']} masks", f"{settings['steps']} steps", f"crop {settings['crop']}"]
        facts += [f"batch {batch['labeled']}+{batch['unlabeled']}", f"{settings['images']} {settings['part']} images"]
        facts += [f"`{model['encoder']['name']}` with `{model['decoder']['name']}`", f"{len(settings['seeds'])} seeds"]
        facts += [", ".join(machine["devices"]) or f"{machine['cpu_cores']} CPU cores"]
        facts.append(f"torch {machine['packages']['torch']}")
        link = f"[all numbers](../benchmarks/results/{path.name})"
        heads, rows = table_of(content)
        name = path.stem.removeprefix("leaderboard_")
        picture = ROOT / "docs" / "figures" / f"{path.stem}.svg"
        figure = f"\n\n![Differences to the controls on {name}](figures/{picture.name})" if picture.exists() else ""
        parts.append(f"### {name}\n\n{', '.join(facts)}; {link}.\n\n{_table(heads, rows)}{figure}")
    return "\n\n".join(parts) or "Not measured yet: the commands below write it."


_OWN_TABLES = ("bench_", "leaderboard_", "whole_job_", "growth_")


def _measured(start: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Files of benchmarks/results: by the first word of their names; "": all that are read as tables of scores."""
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        kind = next((one for one in _OWN_TABLES if path.name.startswith(one)), "")
        if kind == start:
            yield path, json.loads(path.read_text(encoding="utf-8"))


def _scores(rows: list[dict[str, Any]]) -> str:
    """A table of rows that hold one score (`mean`, `sd`, `values`), or several such by name."""
    first = rows[0]
    keys = [key for key, value in first.items() if isinstance(value, str | int)]
    scores = [key for key, value in first.items() if isinstance(value, dict)]
    heads = [_HEADS.get(key, key.replace("_", " ")) for key in [*keys, *scores]]
    if not scores:
        heads.append("test mIoU")
    controls = {_place(row, keys): row for row in rows if str(row.get("method", "")).endswith("-control")}
    if controls:
        heads.append("over its control")
    lines = []
    for row in rows:
        groups = [row[name] for name in scores] or [row]
        cells = [f"`{row[key]}`" if key in ("method", "form") else str(row[key]) for key in keys]
        for group in groups:
            cells.append(f"{group['mean']:.1%}" + ("" if group["sd"] is None else f" ± {100 * group['sd']:.1f}"))
        if controls:
            control = controls.get(_place({**row, "method": f"{row['method']}-control"}, keys))
            cells.append(_gain(groups[0], control[scores[0]] if control and scores else control))
        cells.append(", ".join(f"{100 * value:.1f}" for value in groups[0]["values"]))
        lines.append([*cells, f"{row['minutes']:.1f}"] if "minutes" in row else cells)
    return _table([*heads, "seeds", *(["minutes"] if "minutes" in first else [])], lines)


def _place(row: dict[str, Any], keys: list[str]) -> tuple[Any, ...]:
    return tuple(row[key] for key in keys)


def _gain(own: dict[str, Any], control: dict[str, Any] | None) -> str:
    """Points over the control, seed by seed.

    >>> _gain({"values": [0.52, 0.5]}, {"values": [0.5, 0.5]})
    '+1.0 ± 1.4'
    """
    if control is None:
        return ""
    pairs = [100 * (a - b) for a, b in zip(own["values"], control["values"], strict=True)]
    return f"{statistics.mean(pairs):+.1f}" + (f" ± {statistics.stdev(pairs):.1f}" if len(pairs) > 1 else "")


def speed() -> str:
    """One table per file of results of `benchmarks/operations.py`; rows that lose are in it."""
    parts = []
    for path, content in _measured("bench_"):
        rows = content["rows"]
        judged = [measure for row in rows for measure in row["measures"] if measure["target"]]
        facts = [content["device"], f"{content['threads']} thread(s)", f"{content['settings']['rounds']} rounds"]
        facts += [f"torch {content['environment']['packages']['torch']}"]
        facts += [f"{sum(measure['reached'] for measure in judged)} of {len(judged)} targets reached"]
        link = f"[all numbers](../benchmarks/results/{path.name})"
        parts.append(f"{', '.join(facts)}; {link}.\n\n{_table(_SPEED_HEADS, [_speed(row) for row in rows])}")
    return "\n\n".join(parts)


def whole_jobs() -> str:
    """Write one table per file of results of `benchmarks/whole_job.py --jobs`."""
    parts = []
    for path, content in _measured("whole_job_"):
        rows = []
        for row in content["jobs"]:
            own, theirs, ratio = row["halfmask"], row["published"], row["ratio"]
            low, high = ratio["range"]
            value = f"{ratio['median']:.2f} (>= {row['target']:g})" if row["reached"] else (
                f"**{ratio['median']:.2f} (>= {row['target']:g} missed)**"
            )  # fmt: skip
            peak = row.get("peak_bytes")
            rows.append(
                [
                    f"`{row['job']}`",
                    {"32-true": "float32", "bf16-mixed": "bfloat16"}[row["precision"]],
                    _amount(theirs["cpu_seconds"], "s"),
                    _amount(own["cpu_seconds"], "s"),
                    value,
                    f"{low:.2f}-{high:.2f}",
                    f"{peak['published'] / peak['halfmask']:.2f}" if peak else "",
                    f"{own['matmul_share']:.0%}, {theirs['matmul_share']:.0%}",
                ]
            )
        facts = [content["device"], f"{content['threads']} thread(s)"]
        facts += [f"torch {content['environment']['packages']['torch']}"]
        facts += [f"{sum(row['reached'] for row in content['jobs'])} of {len(content['jobs'])} targets reached"]
        link = f"[all numbers](../benchmarks/results/{path.name})"
        heads = ["job", "precision", "published", "halfmask", "ratio", "range", "peak ratio", "matmul, ours and theirs"]
        parts.append(f"{', '.join(facts)}; {link}.\n\n{_table(heads, rows)}")
    return "\n\n".join(parts)


def growth() -> str:
    """Write one table per file of results of `benchmarks/growth.py`: commands by numbers of images."""
    parts = []
    for path, content in _measured("growth_"):
        found = {(row["command"], row["images"]): row for row in content["rows"]}
        counts = sorted({images for _, images in found})
        rows = []
        for command in dict.fromkeys(name for name, _ in found):
            cells = [found.get((command, images)) for images in counts]
            rows.append([f"`{command}`", *(_taken(row) for row in cells)])
        facts = [content["device"], f"{content['threads']} thread(s)"]
        facts += [f"torch {content['environment']['packages']['torch']}"]
        link = f"[all numbers](../benchmarks/results/{path.name})"
        heads = ["command", *(f"{images:,} images" for images in counts)]
        parts.append(f"{', '.join(facts)}; {link}.\n\n{_table(heads, rows)}")
    return "\n\n".join(parts) or "Not measured yet: `benchmarks/growth.py` writes it."


def _taken(row: dict[str, Any] | None) -> str:
    return f"{row['cpu_seconds']:.1f} s, {row['peak_bytes'] / 2**20:.0f} MiB" if row else ""


def _speed(row: dict[str, Any]) -> list[str]:
    """Cells of one row: its first measure in full, of the others the value."""
    name = [f"`{row['id']}`", row["size"]]
    if row["problem"]:
        return [*name, row["problem"], *[""] * (len(_SPEED_HEADS) - 3)]
    first, *others = row["measures"]
    span = "" if first["low"] is None else f"{first['low']:.3g}-{first['high']:.3g}"
    amounts = [_amount(first[form], first["base_unit"]) for form in ("reference", "fast")]
    by_name = {measure["name"]: _value(measure) for measure in others}
    memory = [by_name.pop(key, "") for key in ("saved", "peak")]
    if first["name"] == "time":  # of the work itself; the clock on the wall has no column
        by_name.pop("wall", None)
    ratio = _value(first) if first["name"] == "time" else f"{first['name']} {_value(first)}"
    limit = next((f"{m['limit']['share']:.0%} {m['limit']['name']}" for m in row["measures"] if m["limit"]), "")
    return [*name, *amounts, ratio, span, *memory, ", ".join(f"{key} {text}" for key, text in by_name.items()), limit]


def _value(measure: dict[str, Any]) -> str:
    """A value and its target: `2.9 x (>= 2)`; in bold where the target is missed."""
    text = f"{measure['value']:.3g} {measure['unit']}".strip()
    if not measure["target"]:
        return text
    return f"{text} ({measure['target']})" if measure["reached"] else f"**{text} ({measure['target']} missed)**"


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "B":
        return f"{value / 2**20:.0f} MiB"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


_SPEED_HEADS = ["row", "input", "plain", "fast", "ratio", "range", "saved", "peak", "also", "limit"]
_HEADS = {"labeled": "masks", "changed_iou": "changed IoU", "f1": "F1", "acc": "accuracy"}


TABLES: dict[str, Callable[[], str]] = {
    "results": results,
    "leaderboard": leaderboard,
    "speed": speed,
    "whole-jobs": whole_jobs,
    "growth": growth,
    "methods": methods_table,
    "published": published,
    "importers": importers_table,
    "method-sections": method_sections,
    "encoders": kind_sections("encoders"),
    "decoders": kind_sections("decoders"),
    "datasets": kind_sections("datasets"),
    "recipe": recipe_sections,
    "public-names": public_names,
    "codes": codes,
    "exit-codes": exit_codes,
}


def fill(page: Path) -> str:
    """Give a page's text with its tables made anew."""

    def make(match: re.Match[str]) -> str:
        # Links are relative to the page.
        methods = "docs/methods.md" if page.name == "README.md" else "" if page.name == "methods.md" else "methods.md"
        return match[1] + "\n" + TABLES[match["name"]]().replace("METHODS", methods) + "\n\n" + match[3]

    return _MARKED.sub(make, page.read_text(encoding="utf-8"))


def _module_doc(kind: Kind, name: str) -> str:
    return inspect.getdoc(inspect.getmodule(resolve(kind, name))) or ""


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _citation(docstring: str) -> str:
    """Give the first paper a docstring cites: "Sohn et al., NeurIPS 2020", linked where it is on arXiv."""
    paper = cited(docstring)
    if paper is None:
        return ""
    text = f"{paper.authors}, {paper.venue}"
    return f"[{text}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else text


def _parameters(kind: Kind, name: str) -> str:
    rows = [
        [
            f"`{parameter['name']}`",
            parameter["type"],
            "required" if parameter["required"] else _code(parameter["default"]),
            parameter["meaning"],
        ]
        for parameter in describe_entry(kind, name)["parameters"]
    ]
    return _table(["parameter", "values", "default", "meaning"], rows) if rows else ""


def _keys(prefix: str, section: type[BaseModel]) -> str:
    return _table(["key", "values", "default", "meaning"], _key_rows(prefix, section))


def _key_rows(prefix: str, section: type[BaseModel]) -> list[list[str]]:
    meanings = argument_docs(inspect.getdoc(section) or "")
    rows = []
    for key, field in section.model_fields.items():
        inner = _section_of(field.annotation)
        values = describe_field(field).partition(", default ")[0]
        default = "required" if field.is_required() else _code(_plain(field.get_default(call_default_factory=True)))
        if inner is not None and issubclass(inner, Section):
            values, default = f"section with {', '.join(inner.model_fields)}", "" if default != "`null`" else default
        rows.append([f"`{prefix}.{key}`", values, default, meanings.get(key, "")])
        if inner is not None and issubclass(inner, Section):
            rows += _key_rows(f"{prefix}.{key}", inner)
    return rows


def _plain(value: Any) -> Any:
    """Turn a default into what a recipe would say."""
    if isinstance(value, Entry) and not value.params:
        return value.name
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for member in get_args(annotation) if (found := _section_of(member)) is not None), None)


def _code(value: Any) -> str:
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return "`null`" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _prose(docstring: str) -> str:
    """Turn a docstring's body into markdown: indented equations become blocks of text, bullets become a list."""
    parts: list[str] = []
    for paragraph in docstring.strip("\n").split("\n\n"):
        lines = paragraph.splitlines()
        if lines and all(line.startswith("    ") for line in lines):
            text = inspect.cleandoc("\n" + paragraph)
            parts.append(f"```text\n{text}\n```")
        else:
            parts.append("\n".join(re.sub(r"^  \* ", "- ", line) for line in lines).replace(":\n- ", ":\n\n- "))
    return "\n\n".join(part for part in parts if part)


def _table(head: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def main(arguments: list[str]) -> int:
    """Rewrite or check all pages."""
    stale = [(page, text) for page in PAGES if (text := fill(page)) != page.read_text(encoding="utf-8")]
    for page, text in stale:
        print(page.relative_to(ROOT))
        if "--check" not in arguments:
            page.write_text(text, encoding="utf-8")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
