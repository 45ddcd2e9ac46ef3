"""Options that several verbs share, and how they join with positional `key=value`, which wins over a flag."""

import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from halfmask.errors import RecipeError

if TYPE_CHECKING:
    from halfmask.recipe.read import Recipe

_PACKAGE = str(Path(__file__).parents[1])

Data = Annotated[str | None, typer.Option("--data", metavar="DIR", help="Folder of the dataset [data.root].")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Limit = Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N images.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run wrote there.")]
Predictor = Annotated[
    str | None, typer.Option("--predictor", metavar="NAME", help="Another network of the run: teacher, student, ...")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only results and warnings.")]
Readers = Annotated[int, typer.Option("--workers", metavar="N", min=0, help="Threads that read images ahead.")]
Run = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="Run folder, folder of a bundle, or a checkpoint of a run.", show_default=False),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also show what the libraries log.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Any key of the recipe.", show_default=False)
]


@dataclass(frozen=True)
class Reading:
    """How images are read, and where they are computed on."""

    device: Device = "auto"
    workers: Readers = 2
    limit: Limit = None


@dataclass(frozen=True)
class Output:
    """What is printed."""

    as_json: Json = False
    quiet: Quiet = False


def set_verbosity(quiet: bool, verbose: bool) -> None:
    """Set what libraries log: nothing, warnings, or everything.

    Raises:
        RecipeError: both are asked for.
    """
    if quiet and verbose:
        raise RecipeError("--quiet and --verbose contradict each other: give one.")
    level = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(level=level, format="%(name)s: %(message)s")
    if not quiet:
        # Ours are few and matter: the license of the weights in use, a download that begins.
        logging.getLogger("halfmask").setLevel(min(level, logging.INFO))
    if quiet:
        warnings.simplefilter("ignore")
    warnings.showwarning = _show_plainly


def _show_plainly(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show warnings of ours without the line of code that gives them."""
    ours = filename.startswith(_PACKAGE)
    text = f"warning: {message}\n" if ours else warnings.formatwarning(message, category, filename, lineno, line)
    print(text, end="", file=file or sys.stderr)


def chosen(run: Path, predictor: str | None, quiet: bool = False) -> Path:
    """Return the run, or the bundle of one of its predictors or checkpoints; say which where that is not plain."""
    if predictor is None and run.suffix != ".ckpt":
        from halfmask.infer.bundle import shipped_folder
        from halfmask.infer.devices import is_first_rank

        if (shipped := shipped_folder(run)) != run and is_first_rank():
            why = "validation found it better than the run's own (--predictor NAME takes that one)"
            say(f"model    {shipped}: {why}", quiet)
        return run
    from halfmask.run.predictor import bundle_of

    return bundle_of(run, predictor)


def say(text: str, quiet: bool = False) -> None:
    """Print a line of progress on stderr; stdout is for results."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def split_arguments(arguments: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """Tell the recipe (or run) apart from the overrides that follow it.

    >>> split_arguments(["fixmatch/folder", "data.crop=96"])
    ('fixmatch/folder', ['data.crop=96'])
    >>> split_arguments(["data.crop=96"])
    (None, ['data.crop=96'])

    Raises:
        RecipeError: a further argument is not of the form key=value.
    """
    first, rest = None, list(arguments or ())
    if rest and "=" not in rest[0]:
        first, *rest = rest
    check_overrides(rest, recipe_first=first is None)
    return first, rest


def check_overrides(overrides: Sequence[str], folder: str = "--data", recipe_first: bool = False) -> None:
    """Refuse arguments that are not of the form key=value, before anything slow is imported.

    Args:
        overrides: the arguments.
        folder: option that a folder was probably meant for; empty: the verb has none.
        recipe_first: a recipe may come before them, and none did.

    Raises:
        RecipeError: one has another form.
    """
    wrong = [item for item in overrides if item.partition("=")[0] == "" or "=" not in item]
    if wrong:
        cure = ""
        if folder and Path(wrong[0]).is_dir():
            cure = f" Did you mean {folder} {wrong[0]}?"
        elif recipe_first:
            cure = " A recipe comes first: halfmask train RECIPE key=value ..."
        raise RecipeError(
            f"{', '.join(map(repr, wrong))}: expected key=value, for example data.crop=320.{cure}", "H303"
        )


def merge(flags: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Join flags (those that were given) with positional overrides, which come later and win."""
    from halfmask.recipe.read import parse_override

    given = {key: value for key, value in flags.items() if value is not None}
    for item in overrides:
        key, value = parse_override(item)
        given.pop(key, None)  # so that the later one also comes later
        given[key] = value
    return given


def numbers(text: str, flag: str) -> list[int]:
    """Read `0,1,2`.

    Raises:
        RecipeError: something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise RecipeError(f"{flag} {text}: expected numbers with commas, such as 0,1,2.", "H303")
    return [int(part) for part in parts]


def load_recipe(source: str | None, flags: dict[str, Any], overrides: Sequence[str]) -> "Recipe":
    """Load a recipe file or a shipped recipe with flags and overrides applied; all that is wrong comes in one error."""
    from halfmask.data.splits.opening import load_checked

    return load_checked(source, merge(flags, overrides))
