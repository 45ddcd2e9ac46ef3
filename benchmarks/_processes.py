"""Commands in processes of their own: CPU and wall seconds, and memory at the peak."""

import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from halfmask.bench.speed import device_name
from halfmask.run.cost import max_resident_unit
from halfmask.run.folder import environment

# A process begins with the peak of the one that starts it, so a small one stands between: libraries and networks of the
# benchmark itself would count otherwise. What is measured is its only child.
_BETWEEN = """
import json, os, sys
pid = os.fork()
if not pid:
    os.execvp(sys.argv[2], sys.argv[2:])
_, status, usage = os.wait4(pid, 0)
with open(sys.argv[1], "w") as file:
    json.dump([usage.ru_utime + usage.ru_stime, usage.ru_maxrss], file)
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""


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
    with tempfile.TemporaryFile() as output, tempfile.NamedTemporaryFile("r") as usage:
        between = [sys.executable, "-I", "-S", "-c", _BETWEEN, usage.name]
        if subprocess.run([*between, *command], stdout=output, stderr=subprocess.STDOUT).returncode:
            output.seek(0)
            raise SystemExit(f"{shlex.join(command)} failed:\n{output.read()[-2000:].decode(errors='replace')}")
        cpu, peak = json.load(usage)
    return Taken(cpu, time.monotonic() - began, peak * max_resident_unit())


def heading(format: int) -> dict[str, Any]:
    """Return what every file of results begins with: by what command, on what machine, with how many threads."""
    state = environment()
    state["command"] = [Path(word).name for word in state["command"]]
    device = device_name(torch.device("cpu"))
    return {"format": format, "device": device, "environment": state, "threads": torch.get_num_threads()}


def take_earlier(out: Path | None, content: dict[str, Any], rows: str) -> None:
    """Put the rows of an earlier call into `content`, so that only what is missing is measured.

    Args:
        out: file of the results, which need not exist.
        content: what `heading` returned.
        rows: key of the rows in file and content.

    Raises:
        SystemExit: the file was measured in another setting, so that its rows cannot stand in one table with new ones.
    """
    content[rows] = []
    if out is None or not out.is_file():
        return
    earlier = json.loads(out.read_text(encoding="utf-8"))
    then, now = ((one["device"], one["threads"], one["environment"]["packages"]["torch"]) for one in (earlier, content))
    if then != now:
        shown = " and ".join("{}, {} thread(s), torch {}".format(*one) for one in (then, now))
        raise SystemExit(f"{out} and this call differ: {shown}. Name another file with --out.")
    content[rows] = earlier[rows]
    call = {name: earlier["environment"].get(name) for name in ("command", "git")}
    content["earlier_calls"] = [*earlier.get("earlier_calls", []), call]
