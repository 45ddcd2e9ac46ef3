"""`halfmask list`: what can be named in a recipe. The plain list reads file names and docstrings, imports nothing."""

import enum
import inspect
import json
import re
import shutil
import textwrap
from typing import Annotated, Any, NamedTuple, cast

import typer

from halfmask.cli import flags
from halfmask.errors import HalfmaskError, RecipeError, nearest
from halfmask.task import METRIC_NAMES

_CITATION = re.compile(
    r'(?:[^".]*, as )?(?P<authors>[^".]+(?:\bet al\.)?),? "(?P<title>[^"]+)",? '
    r'(?P<venue>[^,;:."]+?)(?:, arXiv:(?P<arxiv>\d+\.\d+))?[,;:.]'
)


class What(enum.StrEnum):
    """The kinds of things that can be listed."""

    methods = "methods"
    encoders = "encoders"
    decoders = "decoders"
    bottlenecks = "bottlenecks"
    datasets = "datasets"
    importers = "importers"
    recipes = "recipes"


def list_(
    what: Annotated[What, typer.Argument(help="What to list.", show_default=False)],
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show one: its parameters, or the recipe's text.")
    ] = None,
    as_json: flags.Json = False,
) -> None:
    """List what recipes can name.

    With NAME: each of its parameters with type, range, default and meaning.
    """
    if name is None:
        rows = _rows(what)
        print(json.dumps(rows, indent=2) if as_json else _columns(rows))
    elif what is What.recipes:
        _show_recipe(name, as_json)
    else:
        entry = describe_entry(what, name)
        print(json.dumps(entry, indent=2) if as_json else _entry_text(entry))


def describe_entry(kind: str, name: str) -> dict[str, Any]:
    """Give a class's summary and parameters as plain data.

    Args:
        kind: "methods", "encoders", "decoders", "bottlenecks", "datasets" or "importers".
        name: file name, or `package.module:Class`.

    Raises:
        RecipeError: there is no such thing.
    """
    from halfmask.plugins import Kind, params_model, resolve
    from halfmask.schema import describe_field

    cls = resolve(cast(Kind, kind), name)
    meanings = argument_docs(inspect.getdoc(cls) or "")
    module_doc = inspect.getdoc(inspect.getmodule(cls)) or ""
    entry: dict[str, Any] = {
        "kind": kind,
        "name": name,
        "class": f"{cls.__module__}:{cls.__qualname__}",
        "summary": module_doc.partition("\n")[0],
        "about": module_doc.partition("\n")[2].strip("\n"),
    }
    if kind == "methods":
        entry |= {"paper": str(cited(module_doc) or ""), "networks": _networks(cls)}
        entry |= {"status": cls.status, "tasks": sorted(cls.tasks)}
    entry["parameters"] = [
        {
            "name": field,
            "type": describe_field(info).partition(", default ")[0],
            "default": None if info.is_required() else _plain(info.get_default(call_default_factory=True)),
            "required": info.is_required(),
            "meaning": meanings.get(field, ""),
        }
        for field, info in params_model(cls).model_fields.items()
    ]
    return entry


def _networks(method: type[Any]) -> str:
    """Count a method's networks, "1 + 1 averaged", in a tiny one; "" where it cannot be made without parameters."""
    from halfmask.models.model import Model
    from halfmask.testing import tiny_builder, tiny_task

    task = tiny_task("segmentation" if "segmentation" in method.tasks else next(iter(sorted(method.tasks))))
    try:
        made = method(task, tiny_builder(task))
    except (HalfmaskError, TypeError):
        return ""
    models = [module for module in made.modules() if isinstance(module, Model)]
    trained = sum(any(parameter.requires_grad for parameter in model.parameters()) for model in models)
    return f"{trained}" + (f" + {len(models) - trained} averaged" if len(models) > trained else "")


class Paper(NamedTuple):
    """What a method follows.

    Args:
        authors: "Sohn et al.".
        title: of the paper.
        venue: with the year.
        arxiv: number there, or "".
    """

    authors: str
    title: str
    venue: str
    arxiv: str

    def __str__(self) -> str:
        return f"{self.authors}, {self.venue}" + (f", arXiv:{self.arxiv}" if self.arxiv else "")


def cited(docstring: str) -> Paper | None:
    r"""Find the first paper that a docstring cites.

    >>> str(cited('A method.\n\nSohn et al., "FixMatch", NeurIPS 2020, arXiv:2001.07685; the form for pixels.'))
    'Sohn et al., NeurIPS 2020, arXiv:2001.07685'
    """
    for paragraph in docstring.split("\n\n"):
        found = _CITATION.match(" ".join(paragraph.split()))
        if found is not None:
            return Paper(found["authors"].strip(", "), found["title"], found["venue"], found["arxiv"] or "")
    return None


def argument_docs(docstring: str) -> dict[str, str]:
    r"""Read the `Args:` section of a Google-style docstring.

    >>> argument_docs("Do.\n\nArgs:\n    a: first,\n        and more.\n    b: second.\n")
    {'a': 'first, and more.', 'b': 'second.'}
    """
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", docstring, flags=re.MULTILINE)
    if section is None:
        return {}
    meanings: dict[str, str] = {}
    name = ""
    for line in textwrap.dedent(section[1]).splitlines():
        start = re.match(r"(\w[\w, ]*): (.*)", line)
        if start is not None:
            name, text = start[1], start[2]
            meanings[name] = text
        elif name and line.strip():
            meanings[name] += f" {line.strip()}"
    return {one.strip(): text for names, text in meanings.items() for one in names.split(",")}


def _rows(what: What) -> list[dict[str, Any]]:
    if what is What.recipes:
        from halfmask.shipped import recipe_facts, recipe_names, recipe_summary

        return [{"name": name, "summary": recipe_summary(name), **recipe_facts(name)} for name in recipe_names()]
    from halfmask.plugins import Kind, documentation, names

    kind = cast(Kind, what.value)
    abouts = {name: documentation(kind, name) for name in names(kind)}
    rows = [{"name": name, "summary": about.partition("\n")[0]} for name, about in abouts.items()]
    if what is What.methods:
        rows = [{**row, "paper": str(cited(abouts[row["name"]]) or "")} for row in rows]
    return rows


def _show_recipe(name: str, as_json: bool) -> None:
    from halfmask.shipped import find_recipe, recipe_names

    if name not in recipe_names():
        raise RecipeError(
            f"there is no shipped recipe {name!r}.{nearest(name, recipe_names())} See halfmask list recipes", "H304"
        )
    text = find_recipe(name).read_text(encoding="utf-8")
    if as_json:
        import yaml

        print(json.dumps(yaml.safe_load(text), indent=2))
    else:
        print(text, end="")


def _columns(rows: list[dict[str, Any]]) -> str:
    width = max((len(row["name"]) for row in rows), default=0)
    return "\n".join(f"{row['name']:<{width}}  {row['summary']}{_beside(row)}".rstrip() for row in rows)


def _beside(row: dict[str, Any]) -> str:
    """What is said after the summary: the paper of a method, the published scores of a recipe."""
    if row.get("paper"):
        return f" [{row['paper']}]"
    if not row.get("published"):
        return ""
    sure = (
        row["confidence"] if isinstance(row["confidence"], dict) else dict.fromkeys(row["published"], row["confidence"])
    )
    scores = [
        f"{100 * value:.4g}" + (f" ({', '.join(notes)})" if (notes := _notes(split, sure.get(split))) else "")
        for split, value in row["published"].items()
    ]
    return f" Published {METRIC_NAMES.get(row['metric'], row['metric'])}: {', '.join(scores)}."


def _notes(split: str, confidence: str | None) -> list[str]:
    return [text for text in (split, "" if confidence in {None, "high"} else "unverified") if text]


def _entry_text(entry: dict[str, Any]) -> str:
    lines = [f"{entry['name']}: {entry['summary']}", f"  {entry['class']}"]
    if entry.get("paper"):
        lines.append(f"  paper: {entry['paper']}")
    if "status" in entry:
        networks = f"networks: {entry['networks']}; " if entry["networks"] else ""
        lines.append(f"  {networks}status: {entry['status']}; tasks: {', '.join(entry['tasks'])}")
    if entry["about"]:
        lines += ["", textwrap.indent(entry["about"], "  ")]
    lines += ["", "Parameters:" if entry["parameters"] else "No parameters."]
    columns = min(shutil.get_terminal_size().columns, 120)
    for parameter in entry["parameters"]:
        state = "required" if parameter["required"] else f"default {json.dumps(parameter['default'])}"
        lines.append(f"  {parameter['name']}: {parameter['type']}, {state}")
        lines += textwrap.wrap(parameter["meaning"], columns, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    """Make a default fit for JSON."""
    try:
        return json.loads(json.dumps(value))
    except TypeError:
        return str(value)
