"""Run a comparison: every method with every seed, over processes and devices, and the tables after each run."""

import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from halfmask.atomic import require_writable
from halfmask.compare.cell import (
    Lists,
    Order,
    forget,
    lists_of,
    other_images,
    other_settings,
    record_of,
    run_cell,
    write_record,
)
from halfmask.compare.forms import Cell, Settings
from halfmask.compare.table import Board, write_board
from halfmask.errors import Interrupted, RecipeError
from halfmask.progress import duration
from halfmask.recipe.read import Recipe
from halfmask.run.loop.progress import ProgressLine

_MOST_NAMED = 4
_INTERRUPTED = (130, 143)  # exit codes of `Interrupted`


def compare(
    settings: Settings, out: str | Path, *, jobs: int | None = None, overwrite: bool = False, quiet: bool = False
) -> Board:
    """Train and score every run of a comparison that is not done, and write its tables into the folder.

    Finished runs are kept, interrupted ones resumed, failed ones tried again; a run that fails does not stop the
    others, and its cell of the table says why.

    Args:
        settings: rows, seeds, and what they share.
        out: folder of the runs and tables.
        jobs: runs at a time; `None`: one per GPU, without a GPU one.
        overwrite: begin all runs anew.
        quiet: no progress.

    Raises:
        RecipeError, DataError: before any training: a recipe that does not fit, a part without masks, or runs of other
            settings or images in the folder.
        Interrupted: Ctrl-C; the runs in progress are saved.
    """
    out = Path(out)
    require_writable(out)
    recipes = {cell: settings.recipe(cell) for cell in settings.cells()}
    first = next(iter(recipes.values()))
    orders = _orders(recipes, out, settings.part, overwrite)
    for order in orders.values():
        if overwrite:
            forget(order.folder)
    left = [cell for cell in recipes if overwrite or record_of(cell.folder(out)).get("state") != "done"]
    done = len(recipes) - len(left)
    line = ProgressLine(quiet)
    line.say(f"compare  {len(recipes)} runs of {first.run.steps} steps in {out}, {done} of them done")
    board = write_board(settings, out)
    slots = _slots(jobs, first)
    try:
        began = time.monotonic()
        for ended, index in enumerate(_finished([orders[cell] for cell in left], slots, line), 1):
            board = write_board(settings, out)
            rest = (
                (time.monotonic() - began) / ended * (len(left) - ended)
            )  # methods differ: a rough figure, from two on
            about = f"; about {duration(rest)} left" if 1 < ended < len(left) else ""
            line.say(f"[{done + ended}/{len(recipes)}] {board.describe(left[index])}{about}")
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; runs in progress are saved. The same command goes on: --out {out}") from None
    return board


def _finished(orders: Sequence[Order], slots: Sequence[Mapping[str, str]], line: ProgressLine) -> Iterator[int]:
    """Run orders, as many at a time as there are slots; say when one starts, and yield the number of each as it ends.

    Each runs in a process of its own: what it leaves in memory, or dies of, is no matter of the next one.
    """
    # A server that has the libraries loaded makes such a process at once; where there is none, each loads them.
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(kind)
    if kind == "forkserver":
        context.set_forkserver_preload(["halfmask.compare.cell"])
    free, waiting = list(slots), list(range(len(orders)))
    running: dict[int, tuple[BaseProcess, int, Mapping[str, str]]] = {}  # by what `wait` waits for
    try:
        while waiting or running:
            while waiting and free:
                index, slot = waiting.pop(0), free.pop(0)
                process = context.Process(target=run_cell, args=(orders[index], dict(slot)))
                process.start()
                line.tell(f"start    {orders[index].folder.parent.name} {orders[index].folder.name}")
                running[process.sentinel] = (process, index, slot)
            for sentinel in wait(list(running)):
                process, index, slot = running.pop(int(sentinel))  # type: ignore[arg-type]
                process.join()
                free.append(slot)
                note_death(orders[index], process.exitcode or 0)
                yield index
    finally:
        for process, _, _ in running.values():  # Ctrl-C reached them too: each saves its run
            process.join()


def note_death(order: Order, code: int) -> None:
    """Record what a process could not record itself; a code below zero is the signal that killed it."""
    if record_of(order.folder).get("state") in ("done", "failed"):
        return
    if code < 0:
        memory = ": probably the machine ran out of memory" if code == -9 else ""
        write_record(order, state="failed", problem=f"the process was killed by signal {-code}{memory}")
    elif code in _INTERRUPTED:
        write_record(order, state="interrupted", problem="interrupted")
    else:
        told = order.folder.with_suffix(".txt").name
        write_record(order, state="failed", problem=f"the process ended with exit code {code}; {told} may say why")


def _slots(jobs: int | None, recipe: Recipe) -> list[dict[str, str]]:
    """Return what each run at a time gets: a GPU, or a share of the cores, as variables of the environment."""
    gpus = 0 if recipe.run.accelerator == "cpu" else torch.cuda.device_count()
    count = jobs or max(gpus, 1)
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        return [{"CUDA_VISIBLE_DEVICES": visible[number % gpus]} for number in range(count)]
    return [{"threads": str(max(torch.get_num_threads() // count, 1))} for _ in range(count)]


def _orders(recipes: Mapping[Cell, Recipe], out: Path, part: str, overwrite: bool) -> dict[Cell, Order]:
    """Return what each process will be told; runs of the same data section have the same lists."""
    lists: dict[str, Lists] = {}
    orders = {}
    for cell, recipe in recipes.items():
        data = recipe.data.model_dump_json()
        if data not in lists:
            lists[data] = lists_of(recipe.data, part)
        order = Order(cell.folder(out), recipe.model_dump(mode="json"), part, overwrite, lists[data])
        if not overwrite:
            check_same(order)
        orders[cell] = order
    return orders


def check_same(order: Order) -> None:
    """Refuse a folder whose run had other settings, or learned from or was scored on other images.

    Raises:
        RecipeError: says in what they differ.
    """
    folder, record = order.folder, record_of(order.folder)
    differing = [*other_settings(record, order.recipe), *other_images(record, order)]
    if differing:
        keys = ", ".join(differing[:_MOST_NAMED]) + (" ..." if len(differing) > _MOST_NAMED else "")
        raise RecipeError(
            f"{folder} was trained with other settings ({keys}). Choose another --out, train all anew with "
            f"--overwrite, or remove that run ({folder} and the files of its name beside it).",
            "H408",
        )
