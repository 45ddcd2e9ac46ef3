"""Reports of runs: from run folders to one HTML page with everything inside.

    halfmask.report("runs/first")                      writes runs/first/report.html
    halfmask.report("runs/a", "runs/b", out="cmp")     compares; writes cmp/report.html, table.md, table.tex, table.json

Arguments and errors of the call are those of `halfmask.report.make.report`. Its three steps, in reading order:

    read      `records` (small files of a run), `evidence` (images, counts, the last checkpoint)
    compute   `material` (what takes time), `pseudo`, `of_method/` (chapters of single methods), `charts`, `chapters`
              (values of each chapter); `comparison` for several runs
    draw      `draw` (pages and pictures) with `templates/` and `style.css`
"""

from halfmask.on_demand import make_callable

make_callable(__name__, "halfmask.report.make:report")
