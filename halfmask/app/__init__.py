"""A local page to try a model on images.

    halfmask.app("runs/first")     arguments and errors: `halfmask.app.app.app`

Read `look` first (one image, from its bytes to its mask), then `results` (several images), `page` (what is shown, with
gradio) and `app` (the server).
"""

from halfmask.on_demand import make_callable

make_callable(__name__, "halfmask.app.app:app")
