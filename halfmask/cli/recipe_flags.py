"""Flags that set one key of the recipe: `--crop 96` is `data.crop=96`, and its help is what the section says of it."""

import ast
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

import halfmask.recipe
from halfmask.cli.groups import option
from halfmask.errors import RecipeError


class Flag(NamedTuple):
    """How a flag sets a key.

    Args:
        key: dotted key of the recipe.
        metavar: what help shows as value: `N` is a whole number, `X` a number, "" a switch without a value.
        help: where the flag takes something else than the key; "": what the section's docstring says of the key.
        read: turns the text into keys and values.
    """

    key: str
    metavar: str = ""
    help: str = ""
    read: Callable[[str], dict[str, Any]] | None = None

    @property
    def kind(self) -> type[Any]:
        """Type that the command line checks."""
        return {"N": int, "X": float, "": bool}.get(self.metavar, str)


def number_or_text(value: str) -> int | float | str:
    """Read `--labeled 12`, `--labeled 0.1` and `--labeled list.txt`.

    >>> number_or_text("12"), number_or_text("0.1"), number_or_text("list.txt")
    (12, 0.1, 'list.txt')
    """
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def batch_keys(value: str) -> dict[str, int]:
    """Read `--batch-size 8` (8 labeled and 8 unlabeled images) or `--batch-size 4+8`.

    >>> batch_keys("4+8")
    {'data.batch.labeled': 4, 'data.batch.unlabeled': 8}

    Raises:
        RecipeError: something else.
    """
    labeled, plus, unlabeled = value.partition("+")
    if not labeled.isdecimal() or (plus and not unlabeled.isdecimal()):
        raise RecipeError(f"--batch-size {value}: expected a number, or two as labeled+unlabeled: 4+8.", "H303")
    return {"data.batch.labeled": int(labeled), "data.batch.unlabeled": int(unlabeled if plus else labeled)}


def unlabeled_key(value: str) -> dict[str, str]:
    """Read `--unlabeled DIR` (images from another folder) or `--unlabeled list.txt`."""
    return {"data.unlabeled.root" if Path(value).is_dir() else "data.unlabeled": value}


FLAGS = {
    "--data": Flag("data.root", "DIR", "Folder of the dataset [data.root]."),
    "--method": Flag("method", "NAME", "See halfmask list methods; or package.module:Class [method.name]."),
    "--labeled": Flag("data.labeled", "N|LIST", read=lambda value: {"data.labeled": number_or_text(value)}),
    "--unlabeled": Flag("data.unlabeled", "DIR|LIST", "Images without masks [data.unlabeled].", unlabeled_key),
    "--seed": Flag("run.seed", "N"),
    "--epochs": Flag("run.epochs", "N"),
    "--steps": Flag("run.steps", "N"),
    "--batch-size": Flag("data.batch", "N|N+N", "Labeled+unlabeled images per step [data.batch].", batch_keys),
    "--crop": Flag("data.crop", "N"),
    "--lr": Flag("optim.lr", "X"),
    "--precision": Flag("run.precision", "NAME", "auto, 32-true or bf16-mixed [run.precision]."),
    "--devices": Flag("run.devices", "N"),
    "--workers": Flag("data.workers", "N|auto", read=lambda value: {"data.workers": number_or_text(value)}),
    "--twin": Flag("run.twin"),
}


class RecipeFlags:
    """The keys that flags have set, with their values: `given`.

    Args:
        values: of every flag by name; `None` (of a switch `False`) where it was not given.
    """

    def __init__(self, **values: Any) -> None:
        self.given: dict[str, Any] = {}
        for name, flag in FLAGS.items():
            value = values[_argument(name)]
            if value is not None and value is not False:
                self.given |= {flag.key: value} if flag.read is None else flag.read(value)

    @classmethod
    def options(cls) -> list[inspect.Parameter]:
        """Return the flags as parameters of a function."""
        return [_option(name, flag) for name, flag in FLAGS.items()]


class RecipeCommand(typer.core.TyperCommand):
    """A command that reads the meaning of the recipe's keys only when its help is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        for parameter in self.params:
            flag = FLAGS.get(parameter.opts[0])
            if flag is not None and isinstance(parameter, typer.core.TyperOption):
                parameter.help = flag.help or meaning(flag.key)
        super().format_help(ctx, formatter)


def meaning(key: str) -> str:
    """Return what the recipe's sections say of a key, as a sentence that names the key.

    >>> meaning("data.crop")
    'Side of the training crop in pixels [data.crop].'
    """
    section, _, name = key.rpartition(".")
    text = _section_docs()[f"{section.title()}Recipe"][name].replace("`", "").rstrip(".")
    return f"{text[0].upper()}{text[1:]} [{key}]."


@functools.cache
def _section_docs() -> dict[str, dict[str, str]]:
    """Read the arguments of each section off the source: importing it would import pydantic."""
    from halfmask.docstrings import argument_docs

    source = Path(halfmask.recipe.__path__[0], "sections.py").read_text(encoding="utf-8")
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return {node.name: argument_docs(ast.get_docstring(node) or "") for node in classes}


def _argument(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _option(name: str, flag: Flag) -> inspect.Parameter:
    if not flag.metavar:
        return option(_argument(name), Annotated[bool, typer.Option(name)], False)
    return option(_argument(name), Annotated[flag.kind | None, typer.Option(name, metavar=flag.metavar)], None)
