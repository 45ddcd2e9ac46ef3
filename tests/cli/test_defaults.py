"""Defaults of the command line against those of the functions behind it, which it repeats to start without them."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from halfmask.app.app import app as serve
from halfmask.bench.speed import measure_recipe
from halfmask.cli.app import app
from halfmask.data.check.check import check
from halfmask.data.convert.convert import convert
from halfmask.demo.run import run_demo
from halfmask.infer.domains import evaluate_domains
from halfmask.infer.evaluate import evaluate
from halfmask.infer.export import export
from halfmask.infer.inference import READERS
from halfmask.infer.predict.predict import predict
from halfmask.report.make import report
from halfmask.run.train import train
from halfmask.suggest.scores import Weights
from halfmask.suggest.suggest import suggest

COMMANDS = {command.name: command.callback for command in app.registered_commands}
BEHIND = (
    ("check", check),
    ("train", train),
    ("evaluate", evaluate),
    ("evaluate", evaluate_domains),
    ("predict", predict),
    ("suggest", suggest),
    ("suggest", Weights),
    ("report", report),
    ("export", export),
    ("app", serve),
    ("convert", convert),
    ("demo", run_demo),
    ("bench", measure_recipe),
)


def given(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Parameters that have a default; where it is `None`, nothing was given and the function decides."""
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default not in (inspect.Parameter.empty, None):
            yield name.rstrip("_"), parameter.default


@pytest.mark.parametrize(("command", "function"), BEHIND)
def test_a_command_and_the_function_behind_it_have_the_same_defaults(
    command: str, function: Callable[..., Any]
) -> None:
    behind = dict(given(function))
    here = {name: value for name, value in given(COMMANDS[command]) if name in behind}
    assert here == {name: behind[name] for name in here}


def test_the_defaults_that_are_compared_are_there() -> None:
    assert {"port", "host", "max_mb", "device"} <= dict(given(COMMANDS["app"])).keys() & dict(given(serve)).keys()
    assert {"images", "format"} <= dict(given(COMMANDS["export"])).keys() & dict(given(export)).keys()
    readers = {name for name, callback in COMMANDS.items() if dict(given(callback)).get("workers") == READERS}
    assert readers == {"evaluate", "predict", "suggest", "report"}
