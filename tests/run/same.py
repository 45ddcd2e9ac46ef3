"""Whether two runs are the same one: every tensor, every record, every file that is shipped."""

import json
from pathlib import Path
from typing import Any

import torch

from halfmask.run.checkpoint import read_checkpoint

_TIMES = ("train/img_per_s", "sys/mem_gb")


def records(out: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl, without what a clock or the device's memory says."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in _TIMES} for line in lines]


def differences(first: Any, second: Any, place: str = "") -> list[str]:
    """Name every place where two nested values differ; tensors are compared bit by bit."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same = first.dtype == second.dtype and first.shape == second.shape
        return [] if same and torch.equal(first.nan_to_num(), second.nan_to_num()) else [place]
    if isinstance(first, dict) and isinstance(second, dict):
        both = [key for key in first if key in second]
        inside = [where for key in both for where in differences(first[key], second[key], f"{place}/{key}")]
        return [f"{place}/{key}" for key in first.keys() ^ second.keys()] + inside
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        pairs = enumerate(zip(first, second, strict=False))
        inside = [where for number, pair in pairs for where in differences(*pair, f"{place}/{number}")]
        return inside if len(first) == len(second) else [f"{place}: {len(first)}, {len(second)} entries", *inside]
    return [] if first == second else [f"{place}: {first!r} and {second!r}"]


def run_differences(first: Path, second: Path, *, best: bool = True) -> list[str]:
    """Compare the checkpoints, the records, the bundle and the lists of two runs by the same recipe.

    Args:
        first: folder of the unbroken run.
        second: folder of the other.
        best: compare the checkpoints of the best validations, too; not where these files were taken away.
    """
    found = []
    names = {path.name for run in (first, second) for path in (run / "checkpoints").glob("best-*.ckpt")} if best else ()
    for name in ("last.ckpt", *sorted(names)):
        one, two = (read_checkpoint(run / "checkpoints" / name) for run in (first, second))
        found += differences(one, two, name)
    found += differences(records(first), records(second), "metrics.jsonl")
    for name in ("model.safetensors", "split.json"):
        if (first / name).read_bytes() != (second / name).read_bytes():
            found.append(name)
    meta = [json.loads((run / "model.json").read_text()) for run in (first, second)]
    return found + differences(*meta, "model.json")


def assert_same_run(first: Path, second: Path, *, best: bool = True) -> None:
    """Fail with the names of all that differs."""
    found = run_differences(first, second, best=best)
    assert not found, "\n".join(found)
