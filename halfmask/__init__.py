"""Semi-supervised semantic segmentation: train from few masks and many images.

The public names below are imported when they are first used, so that `import halfmask` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halfmask.app.app import app
    from halfmask.batch import Batch, Progress, Samples
    from halfmask.data.check.check import check
    from halfmask.data.convert.convert import convert
    from halfmask.data.splits.split import make_split as split
    from halfmask.errors import HalfmaskError
    from halfmask.importers import import_checkpoint
    from halfmask.infer.bundle import load_bundle, save_bundle
    from halfmask.infer.evaluate import evaluate
    from halfmask.infer.export import export
    from halfmask.infer.predict.predict import predict
    from halfmask.method import Method
    from halfmask.models.build import create_model
    from halfmask.plan import make_plan
    from halfmask.plan.machine import examine as doctor
    from halfmask.plugins import list_methods, list_models
    from halfmask.plugins import names as list_plugins
    from halfmask.recipe.read import Recipe
    from halfmask.recipe.read import load as load_recipe
    from halfmask.report.make import report
    from halfmask.run.own_loop import build_method, loaders
    from halfmask.run.train import train
    from halfmask.suggest.suggest import suggest
    from halfmask.task import Task

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "HalfmaskError",
    "Method",
    "Progress",
    "Recipe",
    "Samples",
    "Task",
    "__version__",
    "app",
    "build_method",
    "check",
    "convert",
    "create_model",
    "doctor",
    "evaluate",
    "export",
    "import_checkpoint",
    "list_methods",
    "list_models",
    "list_plugins",
    "load_bundle",
    "load_recipe",
    "loaders",
    "make_plan",
    "predict",
    "report",
    "save_bundle",
    "split",
    "suggest",
    "train",
]

# public name -> (module, name there); `list_plugins("methods")` reads file names only
_HOMES = {
    "Batch": ("halfmask.batch", "Batch"),
    "HalfmaskError": ("halfmask.errors", "HalfmaskError"),
    "Method": ("halfmask.method", "Method"),
    "Progress": ("halfmask.batch", "Progress"),
    "Recipe": ("halfmask.recipe.read", "Recipe"),
    "Samples": ("halfmask.batch", "Samples"),
    "Task": ("halfmask.task", "Task"),
    "app": ("halfmask.app", "app"),
    "build_method": ("halfmask.run.own_loop", "build_method"),
    "check": ("halfmask.data.check.check", "check"),
    "convert": ("halfmask.data.convert.convert", "convert"),
    "create_model": ("halfmask.models.build", "create_model"),
    "doctor": ("halfmask.plan.machine", "examine"),
    "evaluate": ("halfmask.infer.evaluate", "evaluate"),
    "export": ("halfmask.infer.export", "export"),
    "import_checkpoint": ("halfmask.importers", "import_checkpoint"),
    "list_methods": ("halfmask.plugins", "list_methods"),
    "list_models": ("halfmask.plugins", "list_models"),
    "list_plugins": ("halfmask.plugins", "names"),
    "load_bundle": ("halfmask.infer.bundle", "load_bundle"),
    "load_recipe": ("halfmask.recipe.read", "load"),
    "loaders": ("halfmask.run.own_loop", "loaders"),
    "make_plan": ("halfmask.plan", "make_plan"),
    "predict": ("halfmask.infer.predict.predict", "predict"),
    "report": ("halfmask.report", "report"),
    "save_bundle": ("halfmask.infer.bundle", "save_bundle"),
    "split": ("halfmask.data.splits.split", "make_split"),
    "suggest": ("halfmask.suggest", "suggest"),
    "train": ("halfmask.run.train", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'halfmask' has no attribute {name!r}; it offers {', '.join(__all__)}")
    module, attribute = _HOMES[name]
    found = import_module(module)
    value = found if found.__name__ == f"halfmask.{name}" else getattr(found, attribute)  # a package that is called
    globals()[name] = value  # later uses skip this function
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
