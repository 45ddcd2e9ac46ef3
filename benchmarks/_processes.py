"""Commands in processes of their own: CPU and wall seconds, and memory at the peak."""

import os
import shlex
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from halfmask.bench.speed import device_name
from halfmask.run.cost import max_resident_unit
from halfmask.run.folder import environment


class Taken(NamedTuple):
    """What one process took: CPU and wall seconds, bytes at the peak."""

    cpu: float
    wall: float
    peak: int


def run(command: list[str]) -> Taken:
    """Run a command to its end.

    Raises:
        SystemExit: it failed; its last lines are shown.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{shlex.join(command)} failed:\n{output.read()[-2000:].decode(errors='replace')}")
    return Taken(usage.ru_utime + usage.ru_stime, time.monotonic() - began, usage.ru_maxrss * max_resident_unit())


def heading(format: int) -> dict[str, Any]:
    """Return what every file of results begins with: by what command, on what machine, with how many threads."""
    state = environment()
    state["command"] = [Path(word).name for word in state["command"]]
    device = device_name(torch.device("cpu"))
    return {"format": format, "device": device, "environment": state, "threads": torch.get_num_threads()}
