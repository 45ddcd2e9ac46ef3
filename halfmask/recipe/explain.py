"""Describe pydantic schemas and their errors the way a user reads them: dotted key, allowed values, nearest name."""

import types
import typing
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel

from halfmask.errors import nearest


def explain_all(
    items: Sequence[Any], schema: type[BaseModel], raw: Any, prefix: str = "", owner: str = ""
) -> list[str]:
    """Explain all errors of a validation: one line per key, even where each member of a union complains."""
    by_key: dict[str, list[Any]] = {}
    for item in items:
        by_key.setdefault(".".join(_key_path([str(part) for part in item["loc"]], schema)), []).append(item)
    lines = []
    for key, found in by_key.items():
        if any(other.startswith(f"{key}.") for other in by_key):
            continue  # `{root: .., typo: ..}` is no string either, but the typo says it
        if len(found) == 1:
            lines.append(explain(found[0], schema, raw, prefix, owner))
            continue
        dotted, field = ".".join(filter(None, [prefix, key])), _field_at(schema, key.split("."))
        allowed = f" Allowed: {describe_field(field)}." if field is not None else ""
        lines.append(f"{dotted}={_value_at(raw, key, found[0])!r} is not possible.{allowed}")
    return lines


def explain(item: Any, schema: type[BaseModel], raw: Any, prefix: str = "", owner: str = "") -> str:
    """Say in one line what is wrong with one key, what is allowed, and the nearest name."""
    location = [str(part) for part in item["loc"]]
    keys = _key_path(location, schema)
    dotted = ".".join(filter(None, [prefix, *keys]))
    if item["type"] == "extra_forbidden":
        parent = _schema_at(schema, keys[:-1])
        known = [name for name, field in parent.model_fields.items() if not field.exclude] if parent else []
        place = f" of {owner}" if owner else ""
        return f"{dotted} is not a parameter{place}.{_nearest_field(keys[-1], parent)} Known: {', '.join(known)}."
    field = _field_at(schema, keys)
    allowed = f" Allowed: {describe_field(field)}." if field is not None else ""
    if item["type"] == "missing":
        return f"{dotted} is required and has no default.{allowed}"
    if item["type"] == "literal_error" and keys[-1] == "name" and len(keys) > 1:
        owner_field = _field_at(schema, keys[:-1])
        names = [
            get_args(member)
            for member in get_args(getattr(owner_field, "annotation", None))
            if get_origin(member) is Literal
        ]
        if any(item["input"] in alone for alone in names):
            key, name, known = dotted.removesuffix(".name"), item["input"], item["ctx"]["expected"].strip("'")
            return f"{key}: {name!r} has no parameters. Write {key}={name} or {key}={{name: {known}}}."
    return f"{dotted}={item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}.{allowed}"


def _key_path(location: list[str], schema: type[BaseModel]) -> list[str]:
    """Drop pydantic's names of union members from an error location."""
    keys: list[str] = []
    inside_union = False
    for part in location:
        parent = _schema_at(schema, keys)
        if parent is None:
            break
        if inside_union:
            inside_union = False
            continue
        keys.append(part)
        field = parent.model_fields.get(part)
        inside_union = field is not None and _is_choice(field.annotation)
    return keys


def _is_choice(annotation: Any) -> bool:
    members = [member for member in get_args(annotation) if member is not type(None)]
    return get_origin(annotation) in (typing.Union, types.UnionType) and len(members) > 1


def _value_at(raw: Any, key: str, item: Any) -> Any:
    for part in key.split("."):
        if not isinstance(raw, dict) or part not in raw:
            return item["input"]
        raw = raw[part]
    return raw


def _schema_at(schema: type[BaseModel], keys: list[str]) -> type[BaseModel] | None:
    current: type[BaseModel] | None = schema
    named = False  # the next key is a name of the user's
    for key in keys:
        if named:
            named = False
            continue
        if current is None or key not in current.model_fields:
            return None
        annotation = current.model_fields[key].annotation
        current, named = section_in(annotation), _is_table(annotation)
    return current


def _is_table(annotation: Any) -> bool:
    """Tell whether a field holds sections by name."""
    if get_origin(annotation) is dict:
        return section_in(annotation) is not None
    return any(_is_table(member) for member in get_args(annotation))


def section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field may hold, or `None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for member in get_args(annotation):
        found = section_in(member)
        if found is not None:
            return found
    return None


def _field_at(schema: type[BaseModel], keys: list[str]) -> Any:
    parent = _schema_at(schema, keys[:-1]) if keys else None
    return parent.model_fields.get(keys[-1]) if parent else None


def _nearest_field(key: str, parent: type[BaseModel] | None) -> str:
    if parent is None:
        return ""
    hint = nearest(key, parent.model_fields)
    if hint:
        name = hint.split("`")[1]
        return f"{hint[:-1]} ({describe_field(parent.model_fields[name])})?"
    return ""


def describe_field(field: Any) -> str:
    """Describe type, range and default of a field: `float in [0, 1], default 0.95`."""
    section = section_in(field.annotation)
    if section is not None and not _is_entry(section):
        choices = [describe_type(member) for member in get_args(field.annotation) if get_origin(member) is Literal]
        return " | ".join([*choices, "a section with the keys " + ", ".join(section.model_fields)])
    text = "a name or {name, **params}" if section is not None else describe_type(field.annotation)
    text += _range(field.metadata)
    if field.is_required():
        return text
    default = field.get_default(call_default_factory=True)
    return f"{text}, default {default.model_dump()['name'] if isinstance(default, BaseModel) else default!r}"


def _range(constraints: Iterable[Any]) -> str:
    lower, upper = "", ""
    for constraint in constraints:
        if getattr(constraint, "ge", None) is not None:
            lower = f"[{constraint.ge}"
        if getattr(constraint, "gt", None) is not None:
            lower = f"({constraint.gt}"
        if getattr(constraint, "le", None) is not None:
            upper = f"{constraint.le}]"
        if getattr(constraint, "lt", None) is not None:
            upper = f"{constraint.lt})"
    return f" in {lower or '(-inf'}, {upper or 'inf)'}" if lower or upper else ""


def _is_entry(section: type[BaseModel]) -> bool:
    return section.model_config.get("extra") == "allow"


def describe_type(annotation: Any) -> str:
    """Write a type annotation the way a user would: `a | b`, `int`, `one of 'x', 'y'`."""
    origin = get_origin(annotation)
    if origin is Literal:
        return "one of " + ", ".join(repr(value) for value in get_args(annotation))
    if origin is Annotated:
        inner, *constraints = get_args(annotation)
        # `Field(ge=1)` holds its constraints, others are constraints themselves.
        return describe_type(inner) + _range(item for one in constraints for item in getattr(one, "metadata", [one]))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(describe_type(member) for member in get_args(annotation))
    if origin is not None:
        inner = ", ".join("..." if member is Ellipsis else describe_type(member) for member in get_args(annotation))
        return f"{getattr(origin, '__name__', origin)}[{inner}]"
    if annotation is type(None):
        return "null"
    return getattr(annotation, "__name__", str(annotation))
