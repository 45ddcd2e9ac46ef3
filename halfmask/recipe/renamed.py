"""Keys that earlier versions had under another name: their recipes, runs and bundles load as before.

    method.ohem_min_kept=500  ->  method.loss={name: ohem, min_kept: 500}

One table holds them all. Its rows are of parameters, which belong to the class that a recipe names. A class that has a
parameter of the old name keeps it.
"""

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from pydantic import BaseModel

from halfmask.recipe.explain import section_in


class Renamed(NamedTuple):
    """Where the value of an old key belongs now."""

    section: str  # parameter that holds it
    key: str  # in that section
    of: str  # what the section must name. Beside another name the old key had no effect, so it is dropped


RENAMED = {
    ("method", "ohem_threshold"): Renamed("loss", "threshold", of="ohem"),
    ("method", "ohem_min_kept"): Renamed("loss", "min_kept", of="ohem"),
}


def with_present_names(
    part: str, params: Mapping[str, Any], schema: type[BaseModel], *, keep_idle: bool = False
) -> dict[str, Any]:
    """Copy the parameters of a class, those of earlier versions under their present names; warn of each that counts.

    Where both names are given, the present one counts.

    Args:
        part: of a recipe: `method`, `encoder`, `decoder`, `bottleneck` or `dataset`.
        params: as a recipe gives them.
        schema: of the class's own parameters.
        keep_idle: leave old keys that have no effect where they are (an override may change that), do not drop them.
    """
    found = dict(params)
    for old in old_names(part, params):
        new = RENAMED[part, old]
        if old in schema.model_fields or not _has(schema, new):
            continue
        if present_key(part, old, found, schema):
            value, section = found.pop(old), found[new.section]
            section = {"name": section} if isinstance(section, str) else section
            if new.key not in section:
                note(part, old, value)
            found[new.section] = {"name": new.of, new.key: value, **section}
        elif not keep_idle:
            del found[old]
    return found


def old_names(part: str, params: Mapping[str, Any]) -> list[str]:
    """List the keys among the parameters that earlier versions had."""
    return [old for of_part, old in RENAMED if of_part == part and old in params]


def present_key(part: str, old: str, params: Mapping[str, Any], schema: type[BaseModel]) -> str | None:
    """Return the dotted key that an old one stands for beside these parameters; `None` where it stands for none."""
    new = RENAMED.get((part, old))
    if new is None or old in schema.model_fields or not _has(schema, new):
        return None
    section = params.get(new.section)
    name = section.get("name") if isinstance(section, dict) else section
    return f"{new.section}.{new.key}" if name == new.of else None


def note(part: str, old: str, value: Any) -> None:
    """Warn, once, that a value is given under an old name."""
    new = RENAMED[part, old]
    present = f"{part}.{new.section}={{name: {new.of}, {new.key}: {value}}}"
    _warn(f"{part}.{old} is a name of earlier versions. It is taken as {present}.")


def _has(schema: type[BaseModel], new: Renamed) -> bool:
    field = schema.model_fields.get(new.section)
    section = None if field is None else section_in(field.annotation)
    return section is not None and new.key in section.model_fields


@cache  # a recipe is read many times in a run
def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)
