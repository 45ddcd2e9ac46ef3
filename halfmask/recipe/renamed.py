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
    """Where the value of an old key belongs now.

    Args:
        section: parameter that holds it.
        key: in that section.
        of: what the section must name. Beside another name the old key had no effect, so it is dropped.
    """

    section: str
    key: str
    of: str


RENAMED = {
    ("method", "ohem_threshold"): Renamed("loss", "threshold", of="ohem"),
    ("method", "ohem_min_kept"): Renamed("loss", "min_kept", of="ohem"),
}


def with_present_names(part: str, params: Mapping[str, Any], schema: type[BaseModel]) -> dict[str, Any]:
    """Copy the parameters of a class, those of earlier versions under their present names; warn of each that counts.

    Args:
        part: of a recipe: `method`, `encoder`, `decoder`, `bottleneck` or `dataset`.
        params: as a recipe gives them.
        schema: of the class's own parameters.
    """
    found = dict(params)
    for (of_part, old), new in RENAMED.items():
        if of_part != part or old not in found or old in schema.model_fields or not _has(schema, new):
            continue
        value, section = found.pop(old), found.get(new.section)
        section = {"name": section} if isinstance(section, str) else section
        if isinstance(section, dict) and section.get("name") == new.of:
            found[new.section] = {**section, new.key: value}
            present = f"{part}.{new.section}={{name: {new.of}, {new.key}: {value}}}"
            _note(f"{part}.{old} is a name of earlier versions. It is taken as {present}.")
    return found


def _has(schema: type[BaseModel], new: Renamed) -> bool:
    field = schema.model_fields.get(new.section)
    section = None if field is None else section_in(field.annotation)
    return section is not None and new.key in section.model_fields


@cache  # a recipe is read many times in a run
def _note(text: str) -> None:
    warnings.warn(text, stacklevel=3)
