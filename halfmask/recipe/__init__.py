"""Recipes: one YAML file holds one run.

Reading order: `sections` and `expected` (the keys and their defaults), `raw` (the file before it is checked),
`renamed` (keys of earlier versions), `read` (files, overrides, checks), `explain` (what a failed check says), `shipped`
(the recipes that come with the package).
"""

from typing import Any


def __getattr__(name: str) -> Any:
    # On first use: names of shipped recipes must cost no import of pydantic.
    from halfmask.recipe import read

    if name.startswith("__") or not hasattr(read, name):
        raise AttributeError(f"module 'halfmask.recipe' has no attribute {name!r}")
    return getattr(read, name)
