"""`halfmask list`: what can be named in a recipe. The plain list reads file names and docstrings, imports nothing."""

import enum
import inspect
import json
import re
import shutil
import textwrap
from typing import Annotated, Any, cast

import typer

from halfmask.cli import flags
from halfmask.errors import RecipeError, nearest


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


def _rows(what: What) -> list[dict[str, str]]:
    if what is What.recipes:
        from halfmask.shipped import recipe_names, recipe_summary

        return [{"name": name, "summary": recipe_summary(name)} for name in recipe_names()]
    from halfmask.plugins import Kind, names, summary

    kind = cast(Kind, what.value)
    return [{"name": name, "summary": summary(kind, name)} for name in names(kind)]


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


def _columns(rows: list[dict[str, str]]) -> str:
    width = max((len(row["name"]) for row in rows), default=0)
    return "\n".join(f"{row['name']:<{width}}  {row['summary']}".rstrip() for row in rows)


def _entry_text(entry: dict[str, Any]) -> str:
    lines = [f"{entry['name']}: {entry['summary']}", f"  {entry['class']}"]
    if "status" in entry:
        lines.append(f"  status: {entry['status']}; tasks: {', '.join(entry['tasks'])}")
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
