"""Processes started by torchrun share evaluation and prediction; the job file for SLURM starts a run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from halfmask.infer.devices import joined_ranks
from halfmask.infer.evaluate import evaluate
from halfmask.infer.predict.predict import predict
from halfmask.run.fit import fit
from tests.processes import Started, group, run_group, wait_for_all
from tests.run.tiny import recipe, write_dataset

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
JOB = ROOT / "docs" / "slurm" / "train.sbatch"


def call(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    everything = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=300, env=everything, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("torchrun") / "data")


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    out = data.parent / "run"
    fit(recipe(data, "run.steps=1", "run.eval_every=1"), out, quiet=True)
    return out


def two_processes(*arguments: str | Path) -> dict[str, Any]:
    """Run the command in two processes; return what the first says. The other is silent."""
    first, second = run_group(ROOT, *map(str, arguments), "--device", "cpu", "--json", "--quiet")
    assert (first.code, second.code, second.out) == (0, 0, ""), first.err[-3000:] + second.err[-3000:]
    return dict(json.loads(first.out))


def test_two_processes_evaluate_to_the_scores_of_one(run: Path) -> None:
    expected = evaluate(run, part="all", device="cpu", write=False, quiet=True).to_dict("all")
    assert two_processes("evaluate", run, "--part", "all") == expected  # one process speaks, for all images
    assert json.loads((run / "metrics.json").read_text())["metrics"] == expected
    assert json.loads((run / "metrics.json").read_text())["images"] == 6


def test_two_processes_predict_the_masks_of_one(run: Path, data: Path, tmp_path: Path) -> None:
    predict(run, data / "images", tmp_path / "one", device="cpu", quiet=True)
    # One mask is there already: the shares of the processes must not depend on it.
    predict(run, data / "images" / "shape_00.png", tmp_path / "two", device="cpu", quiet=True)
    done = two_processes("predict", run, "--input", data / "images", "--out", tmp_path / "two")
    assert done["images"] == 9
    masks = sorted(path.name for path in (tmp_path / "one").glob("*.png"))
    assert len(masks) == 10
    for name in masks:
        one, two = (np.asarray(Image.open(tmp_path / folder / name)) for folder in ("one", "two"))
        np.testing.assert_array_equal(one, two)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the names of threads from /proc")
def test_the_threads_of_a_group_end_with_it() -> None:
    ended = wait_for_all([Started(print_threads, **variables) for variables in group()])
    assert [(done.code, done.out.strip()) for done in ended] == [(0, "[]")] * 2, ended


def print_threads() -> None:
    """Join the group as the commands do, leave it, and print which of its threads are left."""
    with joined_ranks("cpu") as ranks:
        assert ranks.lists([ranks.rank]) == [0, 1]
        import torch.distributed.nn.functional  # noqa: F401  # as torch itself does, at its first need
    alive = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    print([name for name in alive if "gloo" in name], flush=True)


def test_the_job_file_is_sound_bash_and_asks_for_one_task_per_node() -> None:
    call("bash", "-n", JOB)
    text = JOB.read_text()
    assert "#SBATCH --ntasks-per-node=1" in text  # torchrun starts the other processes
    assert "#SBATCH --signal=TERM@" in text


def test_the_job_file_starts_a_run_of_two_processes(data: Path, tmp_path: Path) -> None:
    """With stand-ins for SLURM's own commands, everything else as on a cluster: torchrun, gloo, the trainer."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in {
        "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
        "scontrol": "echo localhost",
        "torchrun": f'exec "{sys.executable}" -m torch.distributed.run "$@"',
    }.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    made = recipe(data, "run.steps=2", "run.eval_every=2", method="supervised")
    (tmp_path / "recipe.yaml").write_text(made.to_yaml())
    slurm = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SLURM_NNODES": "1",
        "SLURM_GPUS_PER_NODE": "cpu:2",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "localhost",
    }
    # The smallest batch that two processes divide and batch norm takes.
    arguments = [tmp_path / "run", tmp_path / "recipe.yaml", "data.batch={labeled: 4, unlabeled: 4}"]
    dry = call("bash", JOB, *arguments, "--dry-run", **slurm)
    assert dry.stdout.count("dry run: recipe, data and model fit.") == 1
    assert not (tmp_path / "run").exists()
    call("bash", JOB, *arguments, "--quiet", **slurm)
    assert "devices: 2" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 2
