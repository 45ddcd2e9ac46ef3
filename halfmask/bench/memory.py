"""Saved bytes and peak memory of one form, in a process of its own.

saved   bytes of distinct storages that the graph holds for the backward pass, at the most at one time
peak    memory at the most during one call, above what the inputs take: of the allocator on a GPU, of the
resident set on a CPU (freed blocks go back to the system at once, by the setting of glibc's `malloc`
that the process is started with)
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halfmask.bench.row import Compute, Pair, Row, Setting
from halfmask.run.cost import watch_peak

# A block of 64 KiB or more gets pages of its own, which go back when it is freed.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def in_own_process(row: Row, form: str, setting: Setting) -> dict[str, int]:
    """Return `{"peak": bytes, "saved": bytes}` of one form (`reference` or `fast`) of a row.

    Raises:
        RuntimeError: the process failed; its last words are in the message.
    """
    # The row's name travels with its settings: the process makes the same inputs from the same seed.
    order = {
        "family": row.family,
        "row": [row.id, row.size],
        "form": form,
        "device": str(setting.device),
        "quick": setting.quick,
        "threads": torch.get_num_threads(),
        "data": None if setting.data is None else str(setting.data),
    }
    done = subprocess.run(
        [sys.executable, "-m", "halfmask.bench.memory", json.dumps(order)],
        env={**os.environ, **_MALLOC},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the memory of {row.id} ({form}) could not be measured: {done.stderr.strip()[-400:]}")
    measured: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return measured


class SavedBytes:
    """Counts what graphs hold for backward passes while it is active."""

    def __init__(self) -> None:
        self.live = self.peak = 0
        self._holders: dict[int, int] = {}

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count tensors that are saved inside the block."""
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Saved(tensor, self), lambda saved: saved.tensor):
            yield

    def hold(self, tensor: Tensor) -> int:
        """Count a storage when its first holder comes; give its key."""
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if not self._holders.get(key):
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
        self._holders[key] = self._holders.get(key, 0) + 1
        return key

    def release(self, key: int, size: int) -> None:
        """Forget a storage when its last holder goes."""
        self._holders[key] -= 1
        if not self._holders[key]:
            self.live -= size


class _Saved:
    """A saved tensor; the graph lets go of it when it is done."""

    def __init__(self, tensor: Tensor, counter: SavedBytes) -> None:
        self.tensor, self.counter = tensor.detach(), counter
        self.key, self.size = counter.hold(tensor), tensor.untyped_storage().nbytes()

    def __del__(self) -> None:
        self.counter.release(self.key, self.size)


def saved_bytes(compute: Compute) -> int:
    """Return the most bytes that graphs hold at one time during a call.

    >>> x = torch.ones(1000, requires_grad=True)
    >>> saved_bytes(lambda: x.exp().sum().backward())
    4000
    """
    counter = SavedBytes()
    with counter.counting():
        result = compute()
    del result
    return counter.peak


def _main(order: dict[str, Any]) -> None:
    from halfmask.bench.cases import rows_of

    torch.set_num_threads(order["threads"])
    data = None if order["data"] is None else Path(order["data"])
    setting = Setting(torch.device(order["device"]), quick=order["quick"], data=data)
    [row] = [row for row in rows_of(order["family"]) if [row.id, row.size] == order["row"]]
    pair = row.work(setting)
    assert isinstance(pair, Pair)
    compute = pair.reference if order["form"] == "reference" else pair.fast
    compute()  # libraries set themselves up in the first call
    with watch_peak(setting.device) as peak:
        compute()
    print(json.dumps({"peak": peak.added, "saved": saved_bytes(compute)}))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
