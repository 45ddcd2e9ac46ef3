"""Ctrl-C and SIGTERM, sent to the command as a terminal or a cluster sends them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from halfmask.run.checkpoint import read_checkpoint
from tests.run.tiny import recipe, write_dataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    made = recipe(write_dataset(folder / "data"), "run.steps=100000", "run.eval_every=100000", "run.log_every=1")
    (folder / "recipe.yaml").write_text(made.to_yaml())
    return folder


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "halfmask", "train", *arguments]
    # A group of its own: Ctrl-C, and SIGTERM from `timeout` or a cluster, reach the whole group, workers included.
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(process: "subprocess.Popen[str]", sign: Path) -> None:
    for _ in range(1200):
        if sign.exists() and sign.stat().st_size:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError(f"{sign} did not appear")


@pytest.mark.parametrize(("number", "code", "workers"), [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 2)])
def test_a_stopped_run_saves_and_says_how_to_continue(
    folder: Path, number: signal.Signals, code: int, workers: int
) -> None:
    out = f"run-{number.name}-{workers}"
    process = start(folder, "recipe.yaml", "--out", out, f"data.workers={workers}")
    wait_for(process, folder / out / "metrics.jsonl")
    os.killpg(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    assert "stopping after this step" in stderr
    assert f"halfmask train --resume {out}" in stderr
    step = read_checkpoint(folder / out / "checkpoints" / "last.ckpt")["halfmask"]["step"]
    assert f"stopped at step {step} of 100000 ({number.name}). The checkpoint of step {step} is saved" in stderr


def test_an_interrupt_before_the_first_step_is_no_crash(folder: Path) -> None:
    process = start(folder, "recipe.yaml", "--out", "early")
    wait_for(process, folder / "early" / "log.txt")  # written just before the trainer starts
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "stopped" in stderr or "interrupted" in stderr
