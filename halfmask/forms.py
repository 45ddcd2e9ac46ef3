"""One switch from the fast forms to the plain ones of `halfmask/reference/`: `run.reference`.

Two kinds of seams ask it, all other code knows one form only:

  * a function declared `@has_plain_form(plain)` gives way to `plain`, which takes the same arguments;
  * what chooses a form when it is built asks `plain_forms_wanted()` then: methods, data loaders, optimizers, and
    networks, in which `use_plain_layers` sets what their layers name `impl` or, as timm does, `fused_attn`.

Random draws are the same in both forms, so losses differ by rounding only. What the plain forms cost (loops over images
and classes, values read on the host) is what the fast ones save.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast

from torch import nn

Function = TypeVar("Function", bound=Callable[..., Any])

_WANTED: ContextVar[bool] = ContextVar("plain_forms_wanted", default=False)


@contextmanager
def plain_forms(wanted: bool = True) -> Iterator[None]:
    """Build and compute with plain forms inside this context.

    >>> with plain_forms():
    ...     plain_forms_wanted()
    True
    >>> plain_forms_wanted()
    False
    """
    token = _WANTED.set(wanted)
    try:
        yield
    finally:
        _WANTED.reset(token)


def plain_forms_wanted() -> bool:
    """Tell whether the plain forms are asked for."""
    return _WANTED.get()


def has_plain_form(plain: Callable[..., Any]) -> Callable[[Function], Function]:
    """Declare the plain form of a fast function.

    >>> @has_plain_form(lambda x: "plain")
    ... def double(x: int) -> int:
    ...     return 2 * x
    >>> double(2)
    4
    >>> with plain_forms():
    ...     double(2)
    'plain'
    """

    def declare(fast: Function) -> Function:
        @functools.wraps(fast)
        def chosen(*arguments: Any, **options: Any) -> Any:
            return (plain if _WANTED.get() else fast)(*arguments, **options)

        return cast(Function, chosen)

    return declare


def use_plain_layers(network: nn.Module) -> None:
    """Make every layer of a network that has several forms compute the plain one, if it is wanted."""
    if not _WANTED.get():
        return
    for layer in network.modules():
        if hasattr(layer, "impl"):
            layer.impl = "reference"  # type: ignore[assignment]  # a name, no tensor
        if hasattr(layer, "fused_attn"):
            layer.fused_attn = False  # type: ignore[assignment]
