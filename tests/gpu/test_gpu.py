"""What only an accelerator can show; skipped where there is none. Run with `pytest -m gpu -n 0`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from halfmask.batch import Progress
from halfmask.engine.train import train
from halfmask.plugins import names, resolve
from halfmask.testing import no_host_sync, tiny_batch, tiny_builder, tiny_task
from tests.engine.tiny import recipe, write_dataset

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("name", names("methods"))
def test_no_step_makes_the_host_wait(name: str) -> None:
    """The device's own check, set to raise, finds what the operations of a CPU run cannot show."""
    task = tiny_task("segmentation")
    method = resolve("methods", name)(task, tiny_builder(task)).to(DEVICE).train()
    batch = tiny_batch(task, draws=method.draws, device=DEVICE)
    for step in range(3):  # caches fill in the first one
        with no_host_sync() if step else torch.enable_grad():
            for update in method.updates(batch, Progress(step, 8, 4)):
                update.output.loss.backward()
    assert update.output.loss.isfinite()


@pytest.mark.parametrize("override", ["run.compile=true", "run.stream_loss=true", "run.recompute=true"])
def test_each_switch_trains_on_the_device_like_the_plain_run(tmp_path: Path, override: str) -> None:
    data = write_dataset(tmp_path / "data")
    losses = []
    for number, extra in enumerate(([], [override])):
        out = tmp_path / str(number)
        train(recipe(data, "run.accelerator=gpu", "run.steps=4", "data.val=none", *extra), out, quiet=True)
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append(torch.tensor([record["train/loss"] for record in records]))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-4)


def test_every_row_of_the_benchmark_agrees_on_the_device() -> None:
    """Agreement with the reference is checked before anything is timed; disagreement is exit code 1."""
    command = [sys.executable, "-m", "halfmask", "bench", "--quick", "--no-memory", "--device", DEVICE, "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
