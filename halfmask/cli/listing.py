"""`halfmask list`: what can be named in a recipe. The plain list reads file names and docstrings, imports nothing."""

import enum
import inspect
import json
import shutil
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from halfmask.cli import flags
from halfmask.docstrings import argument_docs, cited
from halfmask.errors import RecipeError, nearest
from halfmask.task import METRIC_NAMES

if TYPE_CHECKING:
    from pydantic import BaseModel


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
        str | None,
        typer.Argument(
            metavar="[NAME]", help="Show one: its parameters, or the recipe's text; of recipes also a part of names."
        ),
    ] = None,
    long: Annotated[
        bool,
        typer.Option(
            "--long",
            "-l",
            help="Of each method also: networks, passes, needs, status and published scores. It takes a step of each.",
        ),
    ] = False,
    as_json: flags.Json = False,
) -> None:
    """List what recipes can name.

    With NAME: each of its parameters with type, range, default and meaning.
    `list recipes pascal` lists those with `pascal` in their names.
    """
    if long and (what is not What.methods or name is not None):
        raise RecipeError("--long is for the list of methods: halfmask list methods --long.", "H301")
    rows = _rows(what, long) if name is None else _recipes_like(name) if what is What.recipes else []
    if name is None or rows:
        print(json.dumps(rows, indent=2) if as_json else _columns(what, rows))
    elif what is What.recipes:
        _show_recipe(name, as_json)
    else:
        entry = describe_entry(what, name)
        if what is What.encoders:
            entry["weights"] = _published(name)
        if what is What.methods:
            entry["recipes"] = _targets(name)
        print(json.dumps(entry, indent=2) if as_json else _entry_text(entry))


def describe_entry(kind: str, name: str) -> dict[str, Any]:
    """Return a class's summary and parameters as plain data.

    Args:
        kind: "methods", "encoders", "decoders", "bottlenecks", "datasets" or "importers".
        name: file name, or `package.module:Class`.

    Raises:
        RecipeError: there is no such thing.
    """
    from halfmask.plugins import Kind, params_model, resolve

    cls = resolve(cast(Kind, kind), name)
    module_doc = inspect.getdoc(inspect.getmodule(cls)) or ""
    entry: dict[str, Any] = {
        "kind": kind,
        "name": name,
        "class": f"{cls.__module__}:{cls.__qualname__}",
        "summary": module_doc.partition("\n")[0],
        "about": module_doc.partition("\n")[2].strip("\n"),
    }
    if kind == "methods":
        from halfmask.testing.facts import facts_of

        facts = facts_of(cls)
        entry |= {"paper": str(cited(module_doc) or ""), "networks": facts.networks, "passes": facts.passes}
        entry |= {"needs": list(facts.needs), "status": cls.status, "tasks": sorted(cls.tasks)}
    entry["parameters"] = _parameters(params_model(cls), inspect.getdoc(cls) or "")
    return entry


def _parameters(schema: "type[BaseModel]", docstring: str, prefix: str = "") -> list[dict[str, Any]]:
    """Describe the fields of a schema; those of a section that a field may hold follow it, `loss.threshold`."""
    from halfmask.recipe.explain import describe_field, section_in

    meanings = argument_docs(docstring)
    rows = []
    for field, info in schema.model_fields.items():
        if prefix and field == "name":
            continue  # the choice itself
        row = {
            "name": f"{prefix}{field}",
            "type": describe_field(info).partition(", default ")[0],
            "default": None if info.is_required() else _plain(info.get_default(call_default_factory=True)),
            "required": info.is_required(),
            "meaning": meanings.get(field, ""),
        }
        section = section_in(info.annotation)
        rows += [row, *(_parameters(section, inspect.getdoc(section) or "", f"{field}.") if section else [])]
    return rows


def _targets(method: str) -> list[dict[str, Any]]:
    """List the shipped recipes of a method that aim at published scores."""
    from halfmask.recipe.shipped import recipe_facts, recipe_names

    found = [{"name": one, **recipe_facts(one)} for one in recipe_names() if one.startswith(f"{method}/")]
    return [row for row in found if row["published"]]


def _published(encoder: str) -> list[dict[str, str]]:
    """List the published weights of each size of an encoder, and where they are."""
    from halfmask.models.weights import published_for, whereabouts
    from halfmask.plugins import params_model, resolve

    fields = params_model(resolve("encoders", encoder)).model_fields
    if any(field.is_required() for field in fields.values()):  # the user names the network
        return []
    key = next((key for key in ("size", "depth") if key in fields), None)
    sizes: list[dict[str, Any]] = [{key: one} for one in get_args(fields[key].annotation)] if key else [{}]
    found = []
    for params in sizes:
        for tag, release in list(published_for(encoder, params).items())[:1]:
            of = " ".join(f"{name}={value}" for name, value in params.items())
            found.append({"of": of, "tag": tag, "license": release.license, "where": whereabouts(release)})
    return found


def _rows(what: What, long: bool = False) -> list[dict[str, Any]]:
    if what is What.recipes:
        from halfmask.recipe.shipped import recipe_facts, recipe_names, recipe_summary

        return [{"name": name, "summary": recipe_summary(name), **recipe_facts(name)} for name in recipe_names()]
    from halfmask.plugins import Kind, documentation, names

    kind = cast(Kind, what.value)
    abouts = {name: documentation(kind, name) for name in names(kind)}
    rows: list[dict[str, Any]] = [{"name": name, "summary": about.partition("\n")[0]} for name, about in abouts.items()]
    if what is What.methods:
        rows = [{**row, "paper": str(cited(abouts[row["name"]]) or "")} for row in rows]
    if long:
        facts = ("networks", "passes", "needs", "status", "tasks")
        entries = {row["name"]: describe_entry(kind, row["name"]) for row in rows}
        rows = [
            {**row, **{key: entries[row["name"]][key] for key in facts}, "recipes": _targets(row["name"])}
            for row in rows
        ]
    return rows


def _recipes_like(part: str) -> list[dict[str, Any]]:
    """Find recipes with this in their names; none where it is the name of one."""
    rows = _rows(What.recipes)
    return [] if part in [row["name"] for row in rows] else [row for row in rows if part in row["name"]]


def _show_recipe(name: str, as_json: bool) -> None:
    from halfmask.recipe.shipped import find_recipe, recipe_names

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


def _paper(row: dict[str, Any]) -> str:
    return f" [{row['paper']}]" if row["paper"] else ""


def _scores(row: dict[str, Any]) -> str:
    """Return the scores that a recipe aims at, if any: " Published mIoU: 69.4 (1464), 64 (1000, unverified)."."""
    scores = []
    for split, value in row["published"].items():
        notes = [split] if split else []
        if row["confidence"].get(split, "high") != "high":
            notes.append("unverified")
        scores.append(f"{100 * value:.4g}" + (f" ({', '.join(notes)})" if notes else ""))
    return f" Published {METRIC_NAMES.get(row['metric'], row['metric'])}: {', '.join(scores)}." if scores else ""


# What the plain list says after the summary.
_BESIDE: dict[What, Callable[[dict[str, Any]], str]] = {What.methods: _paper, What.recipes: _scores}


def _columns(what: What, rows: list[dict[str, Any]]) -> str:
    width = max((len(row["name"]) for row in rows), default=0)
    beside = _BESIDE.get(what)
    ends = [beside(row) if beside is not None else "" for row in rows]
    lines = []
    for row, end in zip(rows, ends, strict=True):
        lines.append(f"{row['name']:<{width}}  {row['summary']}{end}".rstrip())
        if "status" in row:
            lines += [f"{'':<{width}}    {line}" for line in (*_facts(row), *_aims(row))]
    return "\n".join(lines)


def _facts(row: dict[str, Any]) -> list[str]:
    """Say what a method takes, and what is known of it."""
    networks = f"networks: {row['networks']}; " if row["networks"] else ""
    if row["passes"]:
        networks += f"images through an encoder per step and image, with gradient + without: {row['passes']}; "
    needs = [f"needs: {', '.join(row['needs'])}"] if row["needs"] else []
    return [f"{networks}status: {row['status']}; tasks: {', '.join(row['tasks'])}", *needs]


def _aims(row: dict[str, Any]) -> list[str]:
    return [f"{recipe['name']} ({recipe['encoder']}):{_scores(recipe)}" for recipe in row.get("recipes", [])]


def _entry_text(entry: dict[str, Any]) -> str:
    lines = [f"{entry['name']}: {entry['summary']}", f"  {entry['class']}"]
    if entry.get("paper"):
        lines.append(f"  paper: {entry['paper']}")
    if "status" in entry:
        lines += [f"  {line}" for line in _facts(entry)]
    if entry["about"]:
        lines += ["", textwrap.indent(entry["about"], "  ")]
    lines += ["", "Parameters:" if entry["parameters"] else "No parameters."]
    columns = min(shutil.get_terminal_size().columns, 120)
    for parameter in entry["parameters"]:
        state = "required" if parameter["required"] else f"default {json.dumps(parameter['default'])}"
        lines.append(f"  {parameter['name']}: {parameter['type']}, {state}")
        lines += textwrap.wrap(parameter["meaning"], columns, initial_indent="      ", subsequent_indent="      ")
    if entry.get("recipes"):
        lines += ["", "Recipes with the settings of papers:", *(f"  {line}" for line in _aims(entry))]
    if entry.get("weights"):
        lines += ["", "Weights (the first tag of each size):"]
        lines += [f"  {one['of']} {one['tag']}: {one['where']}; {one['license']}" for one in entry["weights"]]
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    """Make a default fit for JSON."""
    try:
        return json.loads(json.dumps(value))
    except TypeError:
        return str(value)
