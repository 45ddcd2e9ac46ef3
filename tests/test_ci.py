"""`.ci/run`: its verdict, and the time it allows, with the checks themselves replaced."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).parents[1] / ".ci" / "run"


def ci(folder: Path, checks: str, seconds: int) -> "subprocess.CompletedProcess[str]":
    """Run a copy of the script with a `python3` that does what `checks`, the branches of a shell `case`, say."""
    (folder / ".ci").mkdir()
    shutil.copy(RUN, folder / ".ci" / "run")
    stub = folder / "bin" / "python3"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\ncase "$*" in\n{checks}\n*) exit 0;;\nesac\n')
    stub.chmod(0o755)
    environment = os.environ | {"PATH": f"{stub.parent}:{os.environ['PATH']}", "HALFMASK_CI_SECONDS": str(seconds)}
    command = ["bash", str(folder / ".ci" / "run")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_all_checks_run_and_pass(tmp_path: Path) -> None:
    done = ci(tmp_path, "", 100)
    assert done.returncode == 0, done.stderr
    titles = [line.partition(" (")[0] for line in done.stdout.splitlines() if "at most" in line]
    assert titles == ["== lint", "== format", "== types", "== spelling", "== tests", "== slow tests"]


def test_a_failed_check_is_named_and_the_others_still_run(tmp_path: Path) -> None:
    done = ci(tmp_path, "*mypy*) exit 3;;", 100)
    assert done.returncode == 1
    assert "FAILED  types: exit code 3" in done.stdout
    assert "== slow tests took" in done.stdout


@pytest.mark.parametrize("endless", ["mypy", "pytest -m slow"])
def test_the_budget_ends_a_check_that_does_not_end_and_says_so(tmp_path: Path, endless: str) -> None:
    done = ci(tmp_path, f"*'{endless}'*) exec env --default-signal=INT tail -f /dev/null;;", 2)
    assert done.returncode == 1
    title = "types" if endless == "mypy" else "slow tests"
    assert f"FAILED  {title}: stopped after" in done.stdout
    assert "the budget of 2 s for all checks is spent" in done.stdout
    assert ("slow tests: not started" in done.stdout) == (endless == "mypy")
