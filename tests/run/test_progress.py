"""What a user sees while files are looked at."""

import io

import pytest
from rich.console import Console

from halfmask.progress import Bars, looking_at_files


def look(every: float, quiet: bool = False) -> None:
    with looking_at_files(quiet, every) as on_file:
        for done in range(1, 4):
            on_file(done, 3)


def test_a_log_file_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    look(every=-1.0)
    out, err = capsys.readouterr()
    assert err.splitlines() == [f"looked at {done} of 3 files" for done in (1, 2, 3)]
    assert out == ""


def test_what_takes_a_moment_is_not_mentioned_and_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    look(every=1000.0)
    look(every=-1.0, quiet=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("terminal", "quiet"), [(True, False), (True, True), (False, False)])
def test_each_piece_of_work_has_its_bar_in_a_terminal_only(terminal: bool, quiet: bool) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100)
    with Bars(quiet, console=console) as bars:
        count = bars.counter("predict", 5, done=2)
        bars.show("rows of a[1].png", 3, 7, "note")
        count(2)
    text = stream.getvalue()
    if terminal and not quiet:
        assert all(part in text for part in ("predict", "4/5", "rows of a[1].png", "3/7", "note"))
    else:
        assert text == ""


def test_a_bar_waits_for_work_that_takes_long() -> None:
    stream = io.StringIO()
    with Bars(console=Console(file=stream, force_terminal=True), patience=1000.0) as bars:
        bars.show("looking at files", 1, 2)
    assert stream.getvalue() == ""
