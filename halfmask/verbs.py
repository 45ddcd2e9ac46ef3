"""Packages that can be called: `halfmask.report(...)` although `halfmask/report/` is a package of that name."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def make_callable(package: str, function: str) -> None:
    """Make a package call one of its functions, which is imported at the first call.

    Args:
        package: full name, for example `halfmask.report`.
        function: where the function is, for example `halfmask.report.make:report`.
    """
    module, _, name = function.partition(":")

    class Verb(ModuleType):
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return getattr(import_module(module), name)(*arguments, **options)

    sys.modules[package].__class__ = Verb
