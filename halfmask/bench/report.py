"""The results for people (a table) and for files (JSON)."""

import os
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from halfmask.bench.ceilings import GOOD_SHARE
from halfmask.bench.row import Measure, Setting
from halfmask.bench.run import Outcome
from halfmask.run.folder import environment

FORMAT = 1
_WIDTH = 120
_ROW_WIDTH = 34


def to_dict(outcomes: list[Outcome], setting: Setting) -> dict[str, Any]:
    """Return plain data: device, versions, settings, and every measure of every row."""
    state = environment()
    # Results are made to be shared: of files and folders only their names.
    state["command"] = [_without_folder(word) for word in state["command"]]
    return {
        "format": FORMAT,
        "device": device_name(setting.device),
        "environment": state,
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "settings": {"device": setting.device.type, "quick": setting.quick, "rounds": setting.rounds},
        "rows": [_row(outcome) for outcome in outcomes],
    }


def _without_folder(word: str) -> str:
    """Shorten a path, alone or after `--option=`.

    >>> _without_folder("/a/b.json"), _without_folder("--out=/a/b.json"), _without_folder("--quick")
    ('b.json', '--out=b.json', '--quick')
    """
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + Path(value).name


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or the CPU's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(torch.backends.cpu.get_cpu_capability()) + f" CPU, {os.cpu_count()} cores"


def print_table(outcomes: list[Outcome], setting: Setting, console: Console | None = None) -> None:
    """Print one line per measure; ratios are reference / fast, so below 1 the fast form loses."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("row", max_width=_ROW_WIDTH)
    table.add_column("measure")
    for column in ("reference", "fast", "ratio", "range", "target"):
        table.add_column(column, justify="right")
    table.add_column("limit")
    for outcome in outcomes:
        _add(table, outcome)
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)  # a file has room
    console.print(table)
    clock = "time on the GPU" if setting.device.type == "cuda" else "CPU time of this process"
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    console.print(
        f"{device_name(setting.device)}; torch {torch.__version__}; {torch.get_num_threads()} thread(s); load {load}\n"
        f"ratio = reference / fast, median and range of {setting.rounds} rounds; time is {clock}, wall its ratio by "
        "the clock;\nlimit: copy = share of the rate of a large copy, matmul = of a large matrix product "
        f"(good training: {GOOD_SHARE:.0%}), decode = part that decoding takes, ideal = of the processes",
        highlight=False,
    )
    if setting.quick:
        console.print("--quick: tiny sizes, two rounds. The ratios say nothing.", highlight=False)


def verdict(measure: Measure) -> str:
    """Say the target, and whether it is reached.

    >>> from halfmask.bench.row import Target
    >>> verdict(Measure("time", 2.5, target=Target(least=2.0)))
    '>= 2 reached'
    """
    if measure.target is None:
        return ""
    return f"{measure.target} {'reached' if measure.target.holds(measure.value) else 'MISSED'}"


def _add(table: Table, outcome: Outcome) -> None:
    row = outcome.row
    name = f"[bold]{row.id}[/bold] {escape(row.size)}"
    if outcome.problem:
        table.add_row(name, f"[bold red]{escape(outcome.problem)}[/bold red]")
    for measure in outcome.measures:
        span = "" if measure.low is None or measure.high is None else f"{measure.low:.3g}-{measure.high:.3g}"
        table.add_row(
            name,
            measure.name,
            _amount(measure.reference, measure.base_unit),
            _amount(measure.fast, measure.base_unit),
            f"{measure.value:.3g} {measure.unit}" if measure.unit else f"{measure.value:.5g}",
            span,
            verdict(measure),
            "" if measure.limit is None else f"{measure.limit[0]:.0%} {measure.limit[1]}",
        )
        name = ""
    table.add_section()


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "B":
        return f"{value / 2**20:.1f} MiB"
    return f"{value * 1e3:.3g} ms"


def _row(outcome: Outcome) -> dict[str, Any]:
    return {
        "id": outcome.row.id,
        "size": outcome.row.size,
        "agreement": outcome.agreement,
        "problem": outcome.problem,
        "measures": [_measure(measure) for measure in outcome.measures],
    }


def _measure(measure: Measure) -> dict[str, Any]:
    target = measure.target
    return {
        "name": measure.name,
        "value": measure.value,
        "low": measure.low,
        "high": measure.high,
        "unit": measure.unit,
        "reference": measure.reference,
        "fast": measure.fast,
        "base_unit": measure.base_unit,
        "limit": None if measure.limit is None else {"share": measure.limit[0], "name": measure.limit[1]},
        "target": None if target is None else str(target),
        "reached": None if target is None else target.holds(measure.value),
    }
