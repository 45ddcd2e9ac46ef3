"""The `halfmask` command: its verbs, and nothing heavy, so that every `--help` is instant."""

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from halfmask import __version__
from halfmask.cli.bench import bench
from halfmask.cli.check import check
from halfmask.cli.compare import compare
from halfmask.cli.convert import convert
from halfmask.cli.demo import demo
from halfmask.cli.doctor import doctor
from halfmask.cli.evaluate import evaluate
from halfmask.cli.exits import reporting_errors
from halfmask.cli.export import export
from halfmask.cli.import_ import import_
from halfmask.cli.listing import list_
from halfmask.cli.page import app as page
from halfmask.cli.predict import predict
from halfmask.cli.recipe_flags import RecipeCommand
from halfmask.cli.report import report
from halfmask.cli.split import split
from halfmask.cli.suggest import suggest
from halfmask.cli.train import train

_SETTINGS = {"help_option_names": ["--help", "-h"]}

# Plain help and errors: rich would double the start-up time. `default_map`: an option without a value makes
# typer import pydantic (0.2 s) to convert None, even when only a verb's help is asked for.
app = typer.Typer(
    name="halfmask",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
    context_settings={**_SETTINGS, "default_map": {"help": False}},
)
_VERBS: dict[str, Callable[..., Any]] = {
    "check": check,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "suggest": suggest,
    "compare": compare,
    "report": report,
    "export": export,
    "app": page,
    "import": import_,
    "split": split,
    "convert": convert,
    "list": list_,
    "demo": demo,
    "doctor": doctor,
    "bench": bench,
}
for _verb, _function in _VERBS.items():
    _class = RecipeCommand if _verb == "train" else None
    app.command(_verb, cls=_class, context_settings=_SETTINGS)(reporting_errors(_function))


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit
    return wanted


@app.callback()
def _halfmask(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Semi-supervised semantic segmentation: train from few masks and many images.

    Results go to stdout, progress to stderr. Exit codes: 0 ok, 1 a check failed or a bug, 2 usage, recipe or
    shape, 3 data or checkpoint, 4 out of memory, 5 missing optional dependency, 130 Ctrl-C, 143 SIGTERM.
    """


def main() -> None:
    """Run the command line; the entry point of the `halfmask` script."""
    # As `python -m` does: `method.name=mine:Mine` finds mine.py in the folder the user is in.
    if "" not in sys.path:
        sys.path.insert(0, "")
    app(prog_name="halfmask")


if __name__ == "__main__":
    main()
