"""Find the recipes that come with the package: `fixmatch/folder` is recipes/fixmatch/folder.yaml.

In a checkout they lie beside the package, in an installed wheel inside it.
"""

from pathlib import Path
from typing import Any

import yaml

from halfmask.errors import RecipeError, nearest


def recipes_folder() -> Path:
    """Return the folder of the shipped recipes. Raises RecipeError: the installation is incomplete."""
    package = Path(__file__).parents[1]
    for folder in (package / "recipes", package.parent / "recipes"):
        if folder.is_dir():
            return folder
    raise RecipeError(
        f"no recipes beside {package}: the installation is incomplete. Give the path of a recipe file.", "H304"
    )


def recipe_names() -> list[str]:
    """List the shipped recipes as `<method>/<dataset>`."""
    folder = recipes_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def recipe_summary(name: str) -> str:
    """Return the first comment line of a shipped recipe."""
    for line in find_recipe(name).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            return line.lstrip("# ").strip()
        if line.strip():
            break
    return ""


def recipe_facts(name: str) -> dict[str, Any]:
    """Return the method, dataset and encoder that a shipped recipe names, and the published scores it aims at.

    `published` holds one fraction per split (or domain), `{"92": 0.7903}`, and `confidence` how sure each is,
    `{"92": "high"}`; one for all has the key "".
    """
    # The C parser where there is one: in Python a hundred recipes take half a second.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content = yaml.load(find_recipe(name).read_text(encoding="utf-8"), Loader=loader)
    data, expected = content.get("data", {}), content.get("expected", {})
    published = _by_split(expected.get("value"))
    confidence = expected.get("confidence")
    if isinstance(confidence, str):
        confidence = dict.fromkeys(published, confidence)
    datasets = [data.get("dataset"), *(domain.get("dataset") for domain in data.get("domains", {}).values())]
    return {
        "method": _named(content.get("method")),
        "dataset": ", ".join(_named(dataset) for dataset in datasets if dataset),
        "encoder": _named(content.get("model", {}).get("encoder")),
        "metric": expected.get("metric", "miou") if expected else "",
        "published": published,
        "confidence": confidence or {},
    }


def _by_split(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    return value if isinstance(value, dict) else {"": value}


def _named(entry: Any) -> str:
    return str(entry.get("name", "")) if isinstance(entry, dict) else str(entry or "")


def find_recipe(source: str | Path) -> Path:
    """Return the file that a path or the name of a shipped recipe means; an existing file wins.

    Raises:
        RecipeError: neither exists.
    """
    path = Path(source)
    if path.is_file():
        return path
    name = path.with_suffix("").as_posix() if path.suffix == ".yaml" else path.as_posix()
    known = recipe_names()
    for candidate in (name, name.removeprefix("recipes/")):
        if candidate in known:
            return recipes_folder() / f"{candidate}.yaml"
    raise RecipeError(
        f"{source}: no such recipe file, and no shipped recipe of that name.{nearest(name, known)} "
        "List them: halfmask list recipes",
        "H304",
    )
