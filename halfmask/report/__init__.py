"""Reports of runs: from run folders to one HTML page with everything inside.

    halfmask.report("runs/first")                      writes runs/first/report.html
    halfmask.report("runs/a", "runs/b", out="cmp")     compares; writes cmp/report.html, table.md, table.tex, table.json

Arguments and errors of the call are those of `halfmask.report.make.report`.
"""

from halfmask.verbs import make_callable

make_callable(__name__, "halfmask.report.make:report")
