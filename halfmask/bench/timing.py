"""Interleaved timing: reference, fast, fast, reference, so that a drifting machine hits both alike."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from halfmask.bench.row import Compute, Setting


class Duration(NamedTuple):
    """Seconds of one call: what counts (CPU time, or time on the GPU), and on the wall."""

    own: float
    wall: float


@dataclass
class Timing:
    """Per round and call, in seconds.

    Args:
        reference: two blocks per round.
        fast: likewise.
    """

    reference: list[Duration]
    fast: list[Duration]

    def ratios(self, clock: Callable[[Duration], float]) -> list[float]:
        """Return one ratio reference / fast per round."""
        both = zip(_by_round(self.reference, clock), _by_round(self.fast, clock), strict=True)
        return [reference / max(fast, 1e-12) for reference, fast in both]

    @staticmethod
    def median(durations: list[Duration]) -> float:
        """Return the median seconds of one call."""
        return statistics.median(duration.own for duration in durations)


def interleave(reference: Compute, fast: Compute, setting: Setting) -> Timing:
    """Time both forms in turn; they must have run once before, which is their warm-up."""
    repeats = {form: _repeats(form, setting) for form in (reference, fast)}
    timing = Timing([], [])
    for _ in range(setting.rounds):
        for form in (reference, fast, fast, reference):
            durations = timing.reference if form is reference else timing.fast
            durations.append(measure(form, setting.device, repeats[form]))
    return timing


def measure(compute: Compute, device: torch.device, repeats: int = 1) -> Duration:
    """Time some calls: CPU time of this process, or events on the GPU around the block."""
    if device.type != "cuda":
        wall, own = time.perf_counter(), time.process_time()
        _repeat(compute, repeats)
        return Duration((time.process_time() - own) / repeats, (time.perf_counter() - wall) / repeats)
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    wall = time.perf_counter()
    began.record()
    _repeat(compute, repeats)
    ended.record()
    torch.cuda.synchronize(device)
    return Duration(began.elapsed_time(ended) / 1000 / repeats, (time.perf_counter() - wall) / repeats)


def _repeat(compute: Compute, repeats: int) -> None:
    result: Any = None
    for _ in range(repeats):
        result = compute()
    del result


def _repeats(compute: Compute, setting: Setting) -> int:
    once = measure(compute, setting.device).wall
    return max(1, math.ceil(setting.seconds / max(once, 1e-6)))


def _by_round(durations: list[Duration], clock: Callable[[Duration], float]) -> list[float]:
    return [clock(first) + clock(second) for first, second in zip(durations[::2], durations[1::2], strict=True)]
