"""Import when it is needed: a large library without its rarely used parts, and a verb at its first call.

    with on_demand("scipy.signal"):
        import lightning

While the block runs, a stand-in has the part's name: its functions, and any other name of it, import the real one when
they are called or asked for.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any


class _OnDemand(ModuleType):
    def __init__(self, name: str, functions: tuple[str, ...], values: dict[str, Any]) -> None:
        super().__init__(name)
        self.__dict__.update(values)
        for function in functions:
            setattr(self, function, self._late(function))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by the import system
            raise AttributeError(name)
        return getattr(self._real(), name)

    def _late(self, function: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            return getattr(self._real(), function)(*arguments, **named)

        return call

    def _real(self) -> ModuleType:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return import_module(self.__name__)


@contextmanager
def on_demand(name: str, *functions: str, **values: Any) -> Iterator[None]:
    """Put a stand-in in a module's place, unless the module is imported already.

    Args:
        name: of the module.
        functions: of it, which the block imports by name or looks for.
        **values: of the stand-in, for what does without the real module.
    """
    if name in sys.modules:
        yield
        return
    stand_in = _OnDemand(name, functions, values)
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


def make_callable(package: str, function: str) -> None:
    """Make a package call one of its functions, which is imported at the first call: `halfmask.report(...)`.

    Args:
        package: full name, for example `halfmask.report`.
        function: where the function is, for example `halfmask.report.make:report`.
    """
    module, _, name = function.partition(":")

    class Verb(ModuleType):
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return getattr(import_module(module), name)(*arguments, **options)

    sys.modules[package].__class__ = Verb
