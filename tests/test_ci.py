"""`.ci/run`: its verdict and its time limit, with the checks themselves replaced; the workflow and the issue forms."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
RUN = ROOT / ".ci" / "run"


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
    done = ci(tmp_path, '*pytest*) echo "slow tests: $HALFMASK_SLOW";;', 100)
    assert done.returncode == 0, done.stderr
    assert "slow tests: 1" in done.stdout
    titles = [line.partition(" (")[0] for line in done.stdout.splitlines() if "at most" in line]
    assert sorted(titles) == ["== format", "== lint", "== spelling", "== tests", "== types"]


def test_a_failed_check_is_named_and_the_others_still_run(tmp_path: Path) -> None:
    done = ci(tmp_path, "*mypy*) exit 3;;", 100)
    assert done.returncode == 1
    assert "FAILED  types: exit code 3" in done.stdout
    assert "== tests took" in done.stdout


@pytest.mark.parametrize("endless", ["mypy", "pytest"])
def test_the_budget_ends_a_check_that_does_not_end_and_says_so(tmp_path: Path, endless: str) -> None:
    done = ci(tmp_path, f"*'{endless}'*) exec env --default-signal=INT tail -f /dev/null;;", 2)
    assert done.returncode == 1
    title = "types" if endless == "mypy" else "tests"
    assert f"FAILED  {title}: stopped after" in done.stdout
    assert "the budget of 2 s for all checks is spent" in done.stdout


def test_a_check_without_time_is_not_started_and_fails(tmp_path: Path) -> None:
    done = ci(tmp_path, "", 0)
    assert done.returncode == 1
    assert "FAILED  tests: not started, the other checks took the whole budget of 0 s" in done.stdout


def test_the_workflow_runs_the_same_checks_as_a_laptop() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    job = workflow["jobs"]["checks"]
    assert "bash .ci/run" in [step.get("run") for step in job["steps"]]
    assert "3.11" in job["strategy"]["matrix"]["python"]
    assert job["timeout-minutes"] * 60 > 1200  # the budget of the script, and the installation


@pytest.mark.parametrize("kind", ["bug", "data_problem", "method_request"])
def test_a_report_asks_for_the_machine(kind: str) -> None:
    form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{kind}.yml").read_text())
    questions = [part["attributes"] for part in form["body"] if part["type"] != "markdown"]
    assert any("halfmask doctor" in question["label"] for question in questions)
    assert any(part.get("validations", {}).get("required") for part in form["body"])
