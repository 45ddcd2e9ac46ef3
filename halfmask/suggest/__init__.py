"""Choose the images to label next.

    halfmask.suggest("runs/first", 5)     arguments and errors: `halfmask.suggest.suggest.suggest`

Reading order: `suggest` (the verb), `pool` (the images, and what the networks say of each), `scores`, `files`.
"""

from halfmask.on_demand import make_callable

make_callable(__name__, "halfmask.suggest.suggest:suggest")
