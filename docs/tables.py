"""Write the tables of README.md and docs/*.md from docstrings and signatures, so that nothing is typed twice.

python docs/tables.py           rewrite what stands between `<!-- table: NAME -->` and `<!-- end of table -->`
python docs/tables.py --check   only say which pages are out of date; exit code 1 if any is
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import measured
from measured import table
from pydantic import BaseModel

import halfmask
from halfmask import errors
from halfmask.cli.listing import describe_entry
from halfmask.codes import CODES
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
    return table(["method", "what", "paper", "networks", "passes", "needs", "status"], rows)


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
    return table(["method", "recipe", "data", "encoder", "score", "published, by split", "ours"], rows)


def _ours(facts: dict[str, Any]) -> Iterator[str]:
    """Scores of benchmarks/results that have the method, data, split and kind of score of a recipe."""
    for path, content in [*measured.contents(""), *measured.contents("leaderboard_")]:
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
    return table(["format", "files"], rows)


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
    return table(["name", "what"], rows)


def codes() -> str:
    """One row per code that an error or a finding may carry."""
    return table(
        ["code", "what was found", "what mends it"],
        [[f"`{code}`", entry.meaning, entry.cure] for code, entry in sorted(CODES.items())],
    )


def exit_codes() -> str:
    """One row per exit code, with the errors that lead to it."""
    rows: dict[int, list[str]] = {0: ["success"], 1: ["any exception that is not foreseen: a bug"]}
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.HalfmaskError) and kind is not errors.HalfmaskError:
            rows.setdefault(kind.exit_code, []).append(f"`{name}`: {_first_line(kind.__doc__ or '')}")
    return table(["exit code", "when"], [[str(code), " ".join(rows[code])] for code in sorted(rows)])


TABLES: dict[str, Callable[[], str]] = {
    "results": measured.results,
    "leaderboard": measured.leaderboard,
    "speed": measured.speed,
    "whole-jobs": measured.whole_jobs,
    "growth": measured.growth,
    "recipes-speed": measured.recipes,
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
    return table(["parameter", "values", "default", "meaning"], rows) if rows else ""


def _keys(prefix: str, section: type[BaseModel]) -> str:
    return table(["key", "values", "default", "meaning"], _key_rows(prefix, section))


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
