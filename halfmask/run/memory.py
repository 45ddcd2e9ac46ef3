"""How much memory a piece of work takes: of the allocator on a GPU, of the resident set on a CPU."""

import contextlib
import math
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Peak:
    """The most memory that was taken while it watched.

    Args:
        before: bytes taken at its start.
        most: bytes taken at the most; on a CPU of the whole process.
    """

    def __init__(self, before: int) -> None:
        self.before = self.most = before

    @property
    def added(self) -> int:
        """Bytes above what was taken before."""
        return max(self.most - self.before, 0)


@contextlib.contextmanager
def watch_peak(device: torch.device) -> Iterator[Peak]:
    """Watch the memory of a block.

    >>> with watch_peak(torch.device("cpu")) as peak:
    ...     _ = torch.ones(2**22)
    >>> peak.most > 2**24
    True
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        peak = Peak(torch.cuda.memory_allocated(device))
        yield peak
        torch.cuda.synchronize(device)
        peak.most = torch.cuda.max_memory_allocated(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts anew
    peak = Peak(_status("VmRSS") or _ever())
    yield peak
    peak.most = _status("VmHWM") or _ever()


def parse_bytes(text: str) -> int:
    """Read `8GB`, `8GiB`, `500M`; units are powers of 1024, as tools that show memory use them.

    >>> parse_bytes("8GB") == parse_bytes("8 GiB") == 8 * 2**30
    True

    Raises:
        ValueError: something else.
    """
    compact = text.strip().upper().replace(" ", "").removesuffix("B").removesuffix("I")
    number, unit = (compact[:-1], compact[-1]) if compact[-1:] in {*"KMGT"} else (compact, "")
    size = float(number) * _UNITS[unit]
    if not 1 <= size < math.inf:
        raise ValueError(text)
    return int(size)


def _status(key: str) -> int | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def max_resident_unit() -> int:
    """Bytes in a unit of `ru_maxrss`, which differs between systems."""
    return 1 if sys.platform == "darwin" else 1024


def _ever() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * max_resident_unit()
