"""Find a method, encoder, decoder or dataset by name: the name is the file name.

`resolve(kind, name)` tries, in this order: `"package.module:Class"`; a module of that name in the kind's
folder; an installed entry point of group `halfmask.<kind>`; otherwise an error with the near names.
Nothing is imported until it is asked for.
"""

import ast
import importlib
import inspect
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, create_model

from halfmask.errors import RecipeError, nearest

Kind = Literal["methods", "encoders", "decoders", "bottlenecks", "datasets", "importers"]

# kind -> (package, class that the public class of each file derives from)
_PACKAGES: dict[str, tuple[str, str]] = {
    "methods": ("halfmask.methods", "Method"),
    "encoders": ("halfmask.models.encoders", "Encoder"),
    "decoders": ("halfmask.models.decoders", "Decoder"),
    "bottlenecks": ("halfmask.models.bottlenecks", "Bottleneck"),
    "datasets": ("halfmask.data.datasets", "Dataset"),
    "importers": ("halfmask.importers", "Importer"),
}


def names(kind: Kind) -> list[str]:
    """List the names available for a kind, without importing any of them."""
    found = {path.stem for path in _folder(kind).glob("*.py") if not path.stem.startswith("_")}
    return sorted(found | _installed(kind).names)


def list_methods() -> list[str]:
    """Return the names of the methods, without importing any of them.

    >>> "fixmatch" in list_methods()
    True
    """
    return names("methods")


def list_models() -> dict[str, list[str]]:
    """Return the names of the encoders and decoders, without importing any of them.

    Any network of timm is an encoder, too: `{"name": "timm", "model": "convnext_tiny"}`.

    >>> sorted(list_models())
    ['decoders', 'encoders']
    """
    return {"encoders": names("encoders"), "decoders": names("decoders")}


def documentation(kind: Kind, name: str) -> str:
    """Return a file's docstring, without importing it; its first line is the summary."""
    path = _folder(kind) / f"{name}.py"
    if not path.exists():
        return "(installed plugin)"
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def resolve(kind: Kind, name: str) -> type[Any]:
    """Return the class a recipe names.

    Raises:
        RecipeError: nothing of that name exists, or the module holds no such class.
    """
    if ":" in name:
        module_name, _, class_name = name.partition(":")
        try:
            return getattr(importlib.import_module(module_name), class_name)  # type: ignore[no-any-return]
        except ImportError as error:
            raise RecipeError(
                f"{kind[:-1]} {name!r}: cannot import {module_name} ({error}). "
                "Run from the folder that holds the file, or set PYTHONPATH to it.",
                "H303",
            ) from error
        except AttributeError as error:
            raise RecipeError(f"{kind[:-1]} {name!r}: {module_name} has no {class_name}.", "H303") from error
    if name in names(kind) and (_folder(kind) / f"{name}.py").exists():
        return _public_class(kind, importlib.import_module(f"{_PACKAGES[kind][0]}.{name}"))
    if name not in _installed(kind).names:
        _all_entry_points.cache_clear()  # it may have been installed since, for example from a notebook
    if name in _installed(kind).names:
        return _installed(kind)[name].load()  # type: ignore[no-any-return]
    known = names(kind)
    raise RecipeError(
        f"there is no {kind[:-1]} {name!r}.{nearest(name, known)} Known: {', '.join(known)}; "
        f"your own file works as {kind[:-1]} name 'package.module:Class'.",
        "H303",
    )


def params_model(cls: type[Any]) -> type[BaseModel]:
    """Make the pydantic model of a class's keyword-only constructor arguments."""
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(cls, eval_str=True).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[parameter.name] = (parameter.annotation, default)
    return create_model(
        f"{cls.__name__}Params",
        __config__=ConfigDict(extra="forbid", arbitrary_types_allowed=True, validate_default=True, allow_inf_nan=False),
        **fields,
    )


def arguments(cls: type[Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return all keyword-only arguments of a class, from a recipe's plain values, in the types its constructor names.

    Raises:
        ValidationError: a value that is not allowed.
    """
    checked = params_model(cls).model_validate(params)
    return {name: getattr(checked, name) for name in type(checked).model_fields}


def _installed(kind: Kind) -> EntryPoints:
    return _all_entry_points().select(group=f"halfmask.{kind}")  # type: ignore[no-any-return]


@cache
def _all_entry_points() -> Any:  # Python 3.11 gives another class than later ones; both have `select`
    """Read the entry points of every installed package: a look into hundreds of folders, so once per process."""
    return entry_points()


def _folder(kind: Kind) -> Path:
    package = _PACKAGES[kind][0].split(".")[1:]
    return Path(__file__).parent.joinpath(*package)


def _public_class(kind: Kind, module: Any) -> type[Any]:
    base = _PACKAGES[kind][1]
    found = [
        value
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and not name.startswith("_")
        and value.__module__ == module.__name__
        and any(parent.__name__ == base for parent in value.__mro__[1:])
    ]
    if len(found) != 1:
        raise RecipeError(f"{module.__name__} must define exactly one public {base}, found {len(found)}.", "H303")
    return found[0]
