"""Show on stderr how far work has come: with bars in a terminal, with lines elsewhere. Stdout is for results.

`duration` writes times for people, here and in plans and reports.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Bars:
    """Bars in a terminal, one for each piece of work, while a `with` block runs. Elsewhere nothing is shown.

    Args:
        quiet: show nothing.
        console: where to draw; stderr when `None`.
        keep: leave the bars on the screen at the end.
        patience: seconds that the work may take before the first bar appears.
    """

    def __init__(
        self, quiet: bool = False, *, console: Console | None = None, keep: bool = False, patience: float = 0.0
    ) -> None:
        self.console = console or Console(file=sys.stderr, highlight=False)
        self._off = quiet or not self.console.is_terminal
        self._patience, self._began = patience, time.monotonic()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),  # names of files may hold brackets
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}", markup=False),
            TextColumn("eta"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=not keep,
            disable=self._off,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Bars":
        """Start the clock."""
        self._began = time.monotonic()
        return self

    def __exit__(self, *failure: object) -> None:
        """Remove the bars, which leaves the terminal as it was."""
        self.stop()

    def show(self, what: str, done: int, total: int | None, note: str | None = None) -> None:
        """Move the bar of a piece of work, which appears at its first call.

        Args:
            what: name of the work, at the left of the bar.
            done: pieces that are done.
            total: pieces in all; `None`: not known yet.
            note: text at the right of the bar; `None` leaves it as it is.
        """
        if self._off or (not self._tasks and time.monotonic() - self._began < self._patience):
            return
        if what not in self._tasks:
            self._bars.start()
            self._tasks[what] = self._bars.add_task(what, total=total, note="")
        fields: dict[str, Any] = {} if note is None else {"note": note}
        self._bars.update(self._tasks[what], completed=done, total=total, **fields)

    def counter(self, what: str, total: int, done: int = 0) -> Callable[[int], None]:
        """Show a bar, and return the function that moves it on by a number of pieces."""

        def count(more: int) -> None:
            nonlocal done
            done += more
            self.show(what, done, total)

        count(0)
        return count

    def hide(self, what: str) -> None:
        """Take a bar away."""
        if what in self._tasks:
            self._bars.remove_task(self._tasks.pop(what))

    def stop(self) -> None:
        """Remove the bars, which leaves the terminal as it was."""
        self._bars.stop()


@contextmanager
def looking_at_files(quiet: bool = False, every: float = 5.0) -> Iterator[Callable[[int, int], None]]:
    """Say that files are being looked at, where that takes longer than a moment: with a bar, or a line now and then.

    Args:
        quiet: show nothing.
        every: seconds between plain lines, and before the first of them.

    Yields:
        the function to call with the number of files that are done, and of all.
    """
    said = time.monotonic()
    with Bars(quiet, patience=1.0) as bars:

        def on_file(done: int, total: int) -> None:
            nonlocal said
            bars.show("looking at files", done, total)
            if not quiet and not bars.console.is_terminal and time.monotonic() - said > every:
                said = time.monotonic()
                bars.console.print(f"looked at {done} of {total} files", markup=False)

        yield on_file


@contextmanager
def timed(work: str) -> Iterator[None]:
    """Log what a block took; `--verbose` shows it.

    Args:
        work: what the block does.
    """
    cpu, wall = time.process_time(), time.monotonic()
    try:
        yield
    finally:
        taken = time.process_time() - cpu, time.monotonic() - wall
        logging.getLogger("seconds").info("%5.1f CPU %5.1f wall  %s", *taken, work)


def duration(seconds: float) -> str:
    """Write a time span for people.

    >>> duration(0.4), duration(75.0), duration(5400.0)
    ('0.4 s', '1.2 min', '1.5 h')
    """
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
