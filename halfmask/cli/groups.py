"""Groups of options: a verb takes one argument per group, and typer shows each option of the group.

A group is a dataclass whose fields are annotated like the options of a verb, or a class with a class method `options`
that lists them.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any


def with_options(verb: Callable[..., None]) -> Callable[..., None]:
    """Return the verb as a function that takes every option of its groups by name."""
    groups: dict[str, tuple[type[Any], list[str]]] = {}
    flat: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(verb).parameters.items():
        options = _options(parameter.annotation)
        if options is None:
            flat.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        else:
            groups[name] = parameter.annotation, [one.name for one in options]
            flat += options

    @functools.wraps(verb)
    def grouped(**values: Any) -> None:
        made = {name: group(**{key: values.pop(key) for key in keys}) for name, (group, keys) in groups.items()}
        verb(**values, **made)

    set_parameters(grouped, flat)
    return grouped


def option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """Make one keyword parameter."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def set_parameters(function: Callable[..., None], parameters: list[inspect.Parameter]) -> None:
    """Set the parameters of a function that typer reads."""
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}


def _options(annotation: Any) -> list[inspect.Parameter] | None:
    """Return the options of a group; `None` of an annotation that is no group."""
    if not inspect.isclass(annotation):
        return None
    if hasattr(annotation, "options"):
        return list(annotation.options())
    if dataclasses.is_dataclass(annotation):
        return [option(field.name, field.type, field.default) for field in dataclasses.fields(annotation)]
    return None
