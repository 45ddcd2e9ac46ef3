"""What only an accelerator can show; skipped where there is none. Run with `pytest -m gpu -n 0`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from halfmask.plugins import names, resolve
from halfmask.run.fit import fit
from halfmask.testing import check_method
from tests.run.tiny import recipe, write_dataset

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("name", names("methods"))
def test_every_method_keeps_the_contract_on_the_device(name: str) -> None:
    """Among its rules: no step makes the host wait, watched by the device itself."""
    check_method(resolve("methods", name), device=DEVICE)


@pytest.mark.parametrize("override", ["run.compile=true", "run.stream_loss=true", "run.recompute=true"])
def test_each_switch_trains_on_the_device_like_the_plain_run(tmp_path: Path, override: str) -> None:
    data = write_dataset(tmp_path / "data")
    losses = []
    for number, extra in enumerate(([], [override])):
        out = tmp_path / str(number)
        fit(recipe(data, "run.accelerator=gpu", "run.steps=4", "data.val=none", *extra), out, quiet=True)
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append(torch.tensor([record["train/loss"] for record in records]))
    # Float32 sums in another order, over four steps of training.
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-4)


def test_every_row_of_the_benchmark_agrees_on_the_device() -> None:
    """Agreement with the plain form is checked before anything is timed; disagreement is exit code 1."""
    script = Path(__file__).parents[2] / "benchmarks" / "operations.py"
    command = [sys.executable, str(script), "--quick", "--no-memory", "--device", DEVICE]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
