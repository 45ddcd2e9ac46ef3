"""Commands in processes of their own: CPU and wall seconds, and memory at the peak."""

import os
import shlex
import subprocess
import tempfile
import time
from typing import NamedTuple

from halfmask.run.cost import max_resident_unit


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
