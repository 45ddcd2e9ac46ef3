"""What a user sees while files are looked at."""

import pytest

from halfmask.run.progress import LookingLine


def look(every: float, quiet: bool = False) -> None:
    with LookingLine(quiet, every) as on_file:
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
