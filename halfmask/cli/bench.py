"""`halfmask bench`: fast against plain, as ratios; and where the time of a training step goes."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfmask.cli import flags
from halfmask.errors import RecipeError

if TYPE_CHECKING:
    from halfmask.bench.profile import Profile
    from halfmask.bench.row import Row


def bench(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ID KEY=VALUE",
            help="Rows to run (default: all); with --profile, keys of the recipe.",
            show_default=False,
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="List the rows and their targets, and stop.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny sizes: does everything run and agree? Ratios say nothing then.")
    ] = False,
    device: flags.Device = "cpu",
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=1, help="CPU threads.")] = 1,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=1, help="Timed rounds: reference, fast, fast, reference.")
    ] = 5,
    memory: Annotated[bool, typer.Option("--memory/--no-memory", help="Measure memory, too.")] = True,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if a ratio is more than 15 % below its target.")
    ] = False,
    profile: Annotated[
        str | None, typer.Option("--profile", metavar="RECIPE", help="Where does a training step spend its time?")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=2, help="Steps to profile.")] = 20,
    data: flags.Data = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Also write the JSON here.")] = None,
    as_json: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Measure the speed of this machine's halfmask.

    Every row computes the same thing plainly and fast, in turns, and reports the ratio of the two times, saved
    bytes and peak memory, after checking that both agree.
    """
    if profile is not None:
        result = _profile(profile, arguments or [], steps, data)
        print(json.dumps(result.to_dict(), indent=2) if as_json else result.table())
        _write(out, result.to_dict())
        return
    from halfmask.bench.cases import find

    rows = find(arguments or [])
    if show:
        _list(rows)
        return
    import torch

    from halfmask.bench import report
    from halfmask.bench.row import Setting
    from halfmask.bench.run import run_rows
    from halfmask.infer.devices import pick_device

    torch.set_num_threads(threads)
    rounds, seconds = (2, 0.0) if quick else (rounds, 0.2)
    folder = None if data is None else Path(data)
    setting = Setting(pick_device(device), quick, rounds, seconds, memory, folder)
    rows = [row for row in rows if (data is not None or not row.needs_data) and setting.device.type in row.devices]
    outcomes = []
    for outcome in run_rows(rows, setting):
        flags.say(outcome.summary(), quiet)
        outcomes.append(outcome)
    plain = report.to_dict(outcomes, setting)
    if as_json:
        print(json.dumps(plain, indent=2))
    else:
        report.print_table(outcomes, setting)
    _write(out, plain)
    if any(outcome.problem or (check and outcome.missed(0.15)) for outcome in outcomes):
        raise typer.Exit(1)


def _list(rows: "list[Row]") -> None:
    for row in rows:
        bounds = [
            f"{name} {target}" + ("" if kind == "cpu" else f" ({kind})")
            for kind, targets in row.targets.items()
            for name, target in targets.items()
        ]
        print(
            f"{row.id:<16}{row.size}\n{'':<16}{row.title}" + (f"\n{'':<16}targets: {', '.join(bounds)}" * bool(bounds))
        )


def _write(out: Path | None, plain: object) -> None:
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


def _profile(source: str, overrides: list[str], steps: int, data: str | None) -> "Profile":
    flags.check_overrides(overrides)
    recipe = flags.load_recipe(source, {"data.root": data}, overrides)
    if not recipe.data.root:
        raise RecipeError("profile a recipe on which data? Add --data DIR.")
    from halfmask.bench.profile import profile_recipe

    return profile_recipe(recipe, steps)
