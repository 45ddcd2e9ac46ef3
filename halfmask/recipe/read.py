"""Recipes: one YAML file holds one run, every value is checked before any heavy work.

    load("recipes/fixmatch/pascal.yaml", ["data.split=183", "model.encoder.size=base"]) -> Recipe

There is no inheritance between files; variation is by dotted overrides. The entries `method`,
`model.encoder`, `model.decoder`, `model.bottleneck` and `data.dataset` are `{name, **params}`, and the named
class's constructor signature is the schema of the params. All problems are reported in one error.
"""

import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError

from halfmask.errors import RecipeError, bullet_list
from halfmask.plugins import Kind, params_model, resolve
from halfmask.recipe.expected import ExpectedRecipe
from halfmask.recipe.explain import explain_all
from halfmask.recipe.raw import drop_retired, read_yaml
from halfmask.recipe.renamed import note, old_names, present_key, with_present_names
from halfmask.recipe.sections import (
    BatchRecipe,
    DataRecipe,
    DomainRecipe,
    Entry,
    EvalRecipe,
    ModelRecipe,
    Named,
    OptimRecipe,
    RunRecipe,
    Section,
    UnlabeledRecipe,
    WeakRecipe,
    named,
)
from halfmask.recipe.shipped import find_recipe

__all__ = [
    "BatchRecipe",
    "DataRecipe",
    "DomainRecipe",
    "Entry",
    "EvalRecipe",
    "ExpectedRecipe",
    "ModelRecipe",
    "OptimRecipe",
    "Recipe",
    "RunRecipe",
    "UnlabeledRecipe",
    "WeakRecipe",
    "load",
]


_KINDS: dict[str, Kind] = {
    "method": "methods",
    "encoder": "encoders",
    "decoder": "decoders",
    "bottleneck": "bottlenecks",
    "dataset": "datasets",
}

# Keys of `data` that say which files there are, and what each is for.
WHICH_FILES = ("root", "dataset", "split", "splits", "labeled", "labeled_seed", "unlabeled", "val")


class Recipe(Section):
    """Everything that defines a run."""

    method: Named = Entry(name="fixmatch")
    model: ModelRecipe = ModelRecipe()
    data: DataRecipe = DataRecipe()
    optim: OptimRecipe = OptimRecipe()
    eval: EvalRecipe = EvalRecipe()
    run: RunRecipe = RunRecipe()
    expected: ExpectedRecipe | None = None
    origins: dict[str, str] = Field(default_factory=dict, exclude=True, repr=False)

    def to_yaml(self, origins: bool = False) -> str:
        """Write the recipe with every default filled in; with `origins`, each value's source as a comment."""
        return _dump(self.model_dump(mode="json"), self.origins if origins else None)


def load(
    source: str | Path | Mapping[str, Any] | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    only: str = "",
) -> Recipe:
    """Read a recipe, apply dotted overrides, and check everything at once.

    Args:
        source: a YAML file, the name of a shipped recipe (`fixmatch/folder`), a mapping, or `None` for the defaults.
        overrides: `["data.split=183", ...]` or `{"data.split": "183"}`; they win over the file.
        only: the one section that is wanted ("data"): default classes of others are not looked up, because to import
            a method or an encoder imports torch.

    Raises:
        RecipeError: all problems together: unknown keys with the nearest name, wrong types, values out of range.
    """
    where = str(source) if isinstance(source, str | Path) else "recipe"
    raw = _read(source) if isinstance(source, str | Path) else _plain(source or {})
    raw = present_names(raw)
    origins = {key: f"file {where}" if isinstance(source, str | Path) else "argument" for key in _flatten(raw)}
    problems: list[str] = []
    pairs = overrides.items() if isinstance(overrides, Mapping) else [parse_override(item) for item in overrides]
    for given, value in pairs:
        key = _present_override(raw, given, value)
        _set(raw, key, value, problems)
        origins = {known: origin for known, origin in origins.items() if not f"{known}.".startswith(f"{key}.")}
        origins |= {known: "override" for known in (_flatten({key: value}) if isinstance(value, dict) else [key])}
    drop_retired(raw)
    _name_entries(raw)
    recipe = None
    try:
        recipe = Recipe.model_validate(raw)
        problems += recipe.eval.contradictions(recipe.data.crop)
    except ValidationError as error:
        problems += explain_all(error.errors(), Recipe, raw)
    filled = _check_entries(raw, problems, only)
    if problems:
        raise RecipeError(
            f"{where}: {len(problems)} problem{'s' if len(problems) > 1 else ''}\n{bullet_list(problems, limit=30)}",
            "H303",
        )
    assert recipe is not None
    for dotted, params in filled.items():
        recipe = _replace_entry(recipe, dotted, params)
    keys = _flatten(recipe.model_dump(mode="json"))
    return recipe.model_copy(update={"origins": {key: _origin(key, origins) for key in keys}})


def missing_sections(raw: Mapping[str, Any]) -> list[str]:
    """Return the sections that a resolved recipe always has and this one lacks: then its file was cut short."""
    return [name for name in ("method", "model", "data", "optim", "eval", "run") if name not in raw]


def present_names(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a recipe, with parameters of earlier versions that have an effect under their present names."""
    found: dict[str, Any] = _plain(raw)
    for dotted, part in _classes(found).items():
        entry = _get(found, dotted)
        if isinstance(entry, dict) and old_names(part, entry) and (schema := _schema(found, dotted, part)):
            parent, _, last = dotted.rpartition(".")
            (_get(found, parent) if parent else found)[last] = with_present_names(part, entry, schema, keep_idle=True)
    return found


def _present_override(raw: dict[str, Any], dotted: str, value: Any) -> str:
    """Return the present name of the key that an override sets."""
    owner, _, old = dotted.rpartition(".")
    part, entry = _classes(raw).get(owner), _get(raw, owner)
    if part and isinstance(entry, dict) and old_names(part, {old: value}) and (schema := _schema(raw, owner, part)):
        if present := present_key(part, old, entry, schema):
            note(part, old, value)
            return f"{owner}.{present}"
    return dotted


def _classes(raw: dict[str, Any]) -> dict[str, str]:
    """Return the dotted keys that name a class, with the part of a recipe; also of a method that another one wraps."""
    found = {dotted: kind[:-1] for dotted, kind in entry_kinds(raw).items()}
    return found | {f"{dotted}.method": part for dotted, part in found.items() if part == "method"}


def _schema(raw: dict[str, Any], dotted: str, part: str) -> type[BaseModel] | None:
    """Return the schema of the parameters of the class that a key names; `None` if there is no such class."""
    name = _get(raw, f"{dotted}.name") or (Recipe.model_fields["method"].default.name if dotted == "method" else None)
    try:
        return params_model(resolve(_KINDS[part], name)) if isinstance(name, str) else None
    except RecipeError:
        return None  # reported by the check of all entries


def entry_kinds(raw: Any = None) -> dict[str, Kind]:
    """Return the dotted keys that name a class, with the kind of class; with a recipe, also those of its own names."""
    return {dotted: kind for dotted, (kind, _) in _entries(Recipe, raw, "").items()}


def _entries(section: type[Section], raw: Any, prefix: str) -> dict[str, tuple[Kind, Entry | None]]:
    """Find the entries of a section and of the sections in it: dotted key -> kind of class, default."""
    given = raw if isinstance(raw, dict) else {}
    found: dict[str, tuple[Kind, Entry | None]] = {}
    for name, field in section.model_fields.items():
        value, dotted = given.get(name), f"{prefix}{name}"
        for kind, by_name in _kinds_of(field.annotation):
            if kind is Entry:
                found[dotted] = (_KINDS[name], field.default)
            elif by_name and isinstance(value, dict):
                for key, item in value.items():
                    found |= _entries(kind, item, f"{dotted}.{key}.")
            elif not by_name and (isinstance(value, dict) or isinstance(field.default, Section)):
                found |= _entries(kind, value, f"{dotted}.")
    return found


def _kinds_of(annotation: Any, by_name: bool = False) -> list[tuple[Any, bool]]:
    """Return the sections and entries that a field may hold, and whether it holds them by names of the user."""
    if isinstance(annotation, type) and issubclass(annotation, Section | Entry):
        return [(annotation, by_name)]
    by_name = by_name or typing.get_origin(annotation) is dict
    return [pair for part in typing.get_args(annotation) for pair in _kinds_of(part, by_name)]


def _read(path: str | Path) -> dict[str, Any]:
    try:
        text = find_recipe(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as a text file ({error}).", "H304") from None
    try:
        raw = read_yaml(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {error}", "H304") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: a recipe is a mapping with the keys {', '.join(_sections())}.", "H304")
    return raw


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def parse_override(text: str) -> tuple[str, Any]:
    """Split `key=value` and read the value as YAML.

    >>> parse_override("optim.lr=1e-4"), parse_override("data.split=1_16")
    (('optim.lr', 0.0001), ('data.split', '1_16'))

    Raises:
        RecipeError: no `=`, or a value that is not YAML.
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise RecipeError(f"override {text!r} is not of the form key=value, for example data.split=183.", "H303")
    try:
        parsed = read_yaml(value)
        if "_" in value and isinstance(parsed, int | float):
            parsed = value  # YAML 1.1 reads the split name 1_16 as 116
        # YAML 1.1 reads 1e-4 as a string.
        return key, float(parsed) if isinstance(parsed, str) and _is_number(parsed) else parsed
    except yaml.YAMLError as error:
        raise RecipeError(f"override {text!r}: the value is not valid YAML ({error}).", "H303") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.lower() not in {"nan", "inf", "-inf", "infinity", "-infinity"} and "_" not in text


def _set(raw: dict[str, Any], dotted: str, value: Any, problems: list[str]) -> None:
    *parents, last = dotted.split(".")
    node: Any = raw
    for depth, part in enumerate(parents):
        # A bare name has no params yet: of a class, or in the params of one (`loss: ohem`).
        around = {".".join(parents[:depth]), ".".join(parents[: depth + 1])}
        if isinstance(node.get(part), str) and around & _classes(raw).keys():
            node[part] = {"name": node[part]}
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            problems.append(f"{dotted}: {'.'.join(parents[: depth + 1])} is a value, not a section.")
            return
    entry = dotted.removesuffix(".name")
    if last == "name" and entry in entry_kinds(raw) and node.get("name") != value:
        node.clear()
    old = node.get(last)
    within = any(f"{dotted}.".startswith(f"{key}.") for key in entry_kinds(raw))  # a class, or in its params
    if within and isinstance(value, str) and isinstance(old, dict) and old.get("name") == value:
        return  # the same one named again: its params stay
    node[last] = value


def _name_entries(raw: dict[str, Any]) -> None:
    """Return the default name to entries of which only params are set."""
    for dotted, (_, default) in _entries(Recipe, raw, "").items():
        entry = _get(raw, dotted)
        if isinstance(entry, dict) and "name" not in entry and default is not None:
            entry["name"] = default.name


def _check_entries(raw: dict[str, Any], problems: list[str], only: str = "") -> dict[str, dict[str, Any]]:
    """Check each `{name, **params}` against its class; give the params with defaults filled in."""
    filled: dict[str, dict[str, Any]] = {}
    for dotted, (kind, default) in _entries(Recipe, raw, "").items():
        value = _get(raw, dotted)
        if value is None and dotted.endswith("unlabeled.dataset"):
            continue
        if _get(raw, "model.name") == "smp" and dotted in {"model.encoder", "model.decoder"}:
            continue  # names of the smp library
        if value is None and only and not dotted.startswith(f"{only}."):
            continue
        if value is None and default is not None:
            value = default.model_dump()
        entry = named(value)
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            continue  # reported by the section's schema
        try:
            cls = resolve(kind, entry["name"])
        except RecipeError as error:
            problems.append(f"{dotted}: {error}")
            continue
        schema = params_model(cls)
        given = {key: item for key, item in entry.items() if key != "name"}
        params = with_present_names(kind[:-1], given, schema)
        try:
            checked = schema.model_validate(params)
        except ValidationError as error:
            owner = f"{kind} {entry['name']}"
            problems += explain_all(error.errors(), schema, params, prefix=dotted, owner=owner)
            continue
        filled[dotted] = {"name": entry["name"], **checked.model_dump(mode="json")}
    return filled


def _replace_entry(recipe: Recipe, dotted: str, params: dict[str, Any]) -> Recipe:
    def replace(section: Any, parts: list[str]) -> Any:
        if isinstance(section, dict):
            return section | {parts[0]: replace(section[parts[0]], parts[1:])}
        if len(parts) == 1:
            return section.model_copy(update={parts[0]: Entry.model_validate(params)})
        child = getattr(section, parts[0])
        return section.model_copy(update={parts[0]: replace(child, parts[1:])})

    return typing.cast(Recipe, replace(recipe, dotted.split(".")))


def _get(raw: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        if not isinstance(raw, dict) or part not in raw:
            return None
        raw = raw[part]
    return raw


def _flatten(raw: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in raw.items():
        dotted = f"{prefix}{key}"
        keys += _flatten(value, f"{dotted}.") if isinstance(value, dict) and value else [dotted]
    return keys


def _origin(key: str, origins: dict[str, str]) -> str:
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in origins:
            return origins[prefix]
    # `method: fixmatch` in a file is `method.name` when resolved.
    return "default"


def _sections() -> list[str]:
    return [name for name in Recipe.model_fields if name != "origins"]


def _dump(value: dict[str, Any], origins: dict[str, str] | None) -> str:
    if origins is None:
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    lines: list[str] = []

    def write(node: dict[str, Any], prefix: str, indent: str) -> None:
        for key, item in node.items():
            dotted = f"{prefix}{key}"
            if isinstance(item, dict) and item:
                lines.append(f"{indent}{key}:")
                write(item, f"{dotted}.", f"{indent}  ")
            else:
                text = yaml.safe_dump(item, default_flow_style=True, allow_unicode=True, width=10_000)
                text = text.removesuffix("...\n").strip()
                lines.append(f"{indent}{key}: {text}  # {origins.get(dotted, 'default')}")

    write(value, "", "")
    return "\n".join(lines) + "\n"
