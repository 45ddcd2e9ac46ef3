"""Reports of runs: from run folders to one HTML page with everything inside.

    halfmask.report("runs/first")                      writes runs/first/report.html
    halfmask.report("runs/a", "runs/b", out="cmp")     compares; writes cmp/report.html, table.md, table.tex, table.json

The package itself is what is called; arguments and errors are those of `halfmask.report.make.report`.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halfmask.report.make import ReportResult


class _Reports(ModuleType):
    """A package that can be called: the verb `halfmask report` and this package share their name."""

    def __call__(self, *runs: Any, **options: Any) -> "ReportResult":
        from halfmask.report.make import report as write

        return write(*runs, **options)


report = sys.modules[__name__]
report.__class__ = _Reports
