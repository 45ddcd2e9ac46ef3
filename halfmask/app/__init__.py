"""A local page to try a model on images.

    halfmask.app("runs/first")     arguments and errors: `halfmask.app.app.app`

`app` is the page, `look` takes one image from its bytes to what the page shows.
"""

from halfmask.verbs import make_callable

make_callable(__name__, "halfmask.app.app:app")
