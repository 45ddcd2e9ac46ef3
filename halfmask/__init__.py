"""Semi-supervised semantic segmentation: train from few masks and many images.

The public names below are imported when they are first used, so that `import halfmask` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halfmask.data.splits import make_split as split
    from halfmask.engine.app import app
    from halfmask.engine.bundle import load_bundle
    from halfmask.engine.check import check
    from halfmask.engine.convert import convert
    from halfmask.engine.doctor import examine as doctor
    from halfmask.engine.evaluate import evaluate
    from halfmask.engine.export import export
    from halfmask.engine.predict import predict
    from halfmask.engine.suggest import suggest
    from halfmask.errors import HalfmaskError
    from halfmask.importers import import_checkpoint
    from halfmask.methods import Method
    from halfmask.plan import make_plan
    from halfmask.plugins import names as list_plugins
    from halfmask.recipe import Recipe
    from halfmask.recipe import load as load_recipe
    from halfmask.report.make import report
    from halfmask.task import Task
    from halfmask.training import train

__version__ = "0.1.0"

__all__ = [
    "HalfmaskError",
    "Method",
    "Recipe",
    "Task",
    "__version__",
    "app",
    "check",
    "convert",
    "doctor",
    "evaluate",
    "export",
    "import_checkpoint",
    "list_plugins",
    "load_bundle",
    "load_recipe",
    "make_plan",
    "predict",
    "report",
    "split",
    "suggest",
    "train",
]

# public name -> (module, name there); `list_plugins("methods")` reads file names only
_HOMES = {
    "HalfmaskError": ("halfmask.errors", "HalfmaskError"),
    "Method": ("halfmask.methods", "Method"),
    "Recipe": ("halfmask.recipe", "Recipe"),
    "Task": ("halfmask.task", "Task"),
    "app": ("halfmask.engine.app", "app"),
    "check": ("halfmask.engine.check", "check"),
    "convert": ("halfmask.engine.convert", "convert"),
    "doctor": ("halfmask.engine.doctor", "examine"),
    "evaluate": ("halfmask.engine.evaluate", "evaluate"),
    "export": ("halfmask.engine.export", "export"),
    "import_checkpoint": ("halfmask.importers", "import_checkpoint"),
    "list_plugins": ("halfmask.plugins", "names"),
    "load_bundle": ("halfmask.engine.bundle", "load_bundle"),
    "load_recipe": ("halfmask.recipe", "load"),
    "make_plan": ("halfmask.plan", "make_plan"),
    "predict": ("halfmask.engine.predict", "predict"),
    "report": ("halfmask.report", "report"),
    "split": ("halfmask.data.splits", "make_split"),
    "suggest": ("halfmask.engine.suggest", "suggest"),
    "train": ("halfmask.training", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'halfmask' has no attribute {name!r}; it offers {', '.join(__all__)}")
    module, attribute = _HOMES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value  # later uses skip this function
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
