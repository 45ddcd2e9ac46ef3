"""Two processes on one CPU compute what one process computes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from halfmask.engine.checkpoint import read_checkpoint

from .tiny import recipe, write_dataset

pytestmark = pytest.mark.slow

NETWORK = (
    "model.encoder={name: timm, model: test_convnext}",
    "model.decoder={name: 'plain_decoder:PlainDecoder'}",
)
RUN = """
import sys
from halfmask.engine.train import train

if __name__ == "__main__":
    recipe, out, *overrides = sys.argv[1:]
    train(recipe, out, overrides=tuple(overrides), quiet=True)
"""


def run(folder: Path, name: str, *overrides: str) -> Path:
    script = folder / "run.py"
    script.write_text(RUN)
    out = folder / name
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(folder / "recipe.yaml"), str(out), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        # Crops never reach over the image, so every rank counts the same number of pixels.
        made = recipe(
            write_dataset(folder / "data"),
            *NETWORK,
            "optim.name=sgd",
            "data.batch={labeled: 4, unlabeled: 4}",
            "data.scale=[1.0, 1.0]",
            "run.steps=4",
            "run.eval_every=4",
        )
    finally:
        sys.path.pop(0)
    (folder / "recipe.yaml").write_text(made.to_yaml())
    return folder


def test_two_processes_train_the_weights_of_one(folder: Path) -> None:
    settings = ("method={name: supervised}", "run.log_every=1")
    one = run(folder, "one", *settings)
    two = run(folder, "two", *settings, "run.devices=2")
    # Gradients are summed in another order; 4 steps of float32 stay far below this.
    torch.testing.assert_close(losses(two), losses(one), rtol=1e-5, atol=1e-6)
    weights, others = (read_checkpoint(out / "checkpoints" / "last.ckpt")["state_dict"] for out in (one, two))
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-4, atol=1e-6)
    scores = [json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["val/miou"] for out in (one, two)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_a_method_with_a_teacher_trains_on_two_ranks(folder: Path) -> None:
    out = run(folder, "fixmatch", "run.devices=2")
    saved = read_checkpoint(out / "checkpoints" / "last.ckpt")
    assert saved["halfmask"]["step"] == 4
    assert set(saved["halfmask"]["best"]) == {"teacher", "student"}
    assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())
