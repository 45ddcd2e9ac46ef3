"""The rows, one file per family: every module here has `ROWS`."""

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import replace

from halfmask.bench.row import Row
from halfmask.errors import RecipeError, nearest


def all_rows() -> list[Row]:
    """Return the rows of all families, in the order of their files' names."""
    return [row for module in pkgutil.iter_modules(__path__) for row in rows_of(module.name)]


def rows_of(family: str) -> list[Row]:
    """Return the rows of one file; the others, and the libraries they need, are not imported."""
    rows: list[Row] = importlib.import_module(f"{__name__}.{family}").ROWS
    return [replace(row, family=family) for row in rows]


def find(ids: Sequence[str]) -> list[Row]:
    """Return the rows of some ids, or all.

    Raises:
        RecipeError: an id is unknown.
    """
    rows = all_rows()
    known = list(dict.fromkeys(row.id for row in rows))
    for id in ids:
        if id not in known:
            raise RecipeError(f"no benchmark row {id!r}.{nearest(id, known)} Known: {', '.join(known)}.", "H303")
    return [row for row in rows if not ids or row.id in ids]
