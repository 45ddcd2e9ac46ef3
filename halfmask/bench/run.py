"""Run rows: agreement first, then time, then memory."""

import statistics
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from halfmask.bench.ceilings import copy_rate, count_flops, matmul_rate
from halfmask.bench.memory import in_own_process
from halfmask.bench.row import Compute, Disagreement, Measure, Pair, Row, Setting
from halfmask.bench.timing import interleave, measure

_ABSOLUTE = {"s", "images/s"}  # units that say more about the machine than about the code
_MEASURED_PEAK = 2**20  # smaller differences of the resident set are noise


@dataclass
class Outcome:
    """What a row gave.

    Args:
        row: the row.
        measures: its numbers.
        agreement: how far the two forms are apart, in words.
        problem: why there are no numbers; empty if there are.
    """

    row: Row
    measures: list[Measure] = field(default_factory=list)
    agreement: str = ""
    problem: str = ""

    def summary(self) -> str:
        """Write one line: the first measure, and the agreement or the problem."""
        first = "".join(f"{measured.value:.3g} {measured.unit}  " for measured in self.measures[:1])
        return f"{self.row.id}  {self.row.size}  {first}{self.problem or self.agreement}".rstrip()

    def missed(self, allowance: float = 0.0) -> list[Measure]:
        """List ratios that do not keep their targets; absolute times and speeds are never judged here."""
        judged = [found for found in self.measures if found.unit not in _ABSOLUTE]
        return [
            found for found in judged if found.target is not None and not found.target.holds(found.value, allowance)
        ]


def run_rows(rows: list[Row], setting: Setting) -> Iterator[Outcome]:
    """Run rows one after the other; a row that fails does not stop the others."""
    for row in rows:
        torch.manual_seed(setting.seed)
        try:
            yield run_row(row, setting)
        except Disagreement as error:
            yield Outcome(row, problem=f"disagrees with its reference: {error}")
        except Exception as error:
            traceback.print_exc()
            yield Outcome(row, problem=f"{type(error).__name__}: {error}")


def run_row(row: Row, setting: Setting) -> Outcome:
    """Run one row.

    Raises:
        Disagreement: the two forms give different results; nothing is timed then.
    """
    pair = row.work(setting)
    if isinstance(pair, Pair):
        outcome = Outcome(row, agreement=pair.agree(pair.reference(), pair.fast()))
        outcome.measures = [*_times(pair, setting), *(_memory(row, pair, setting) if setting.memory else [])]
        if setting.device.type == "cuda":
            outcome.measures += _launches(pair)
    else:
        outcome = Outcome(row, pair)
    targets = {} if setting.quick else row.targets.get(setting.device.type, {})
    outcome.measures = [replace(measured, target=targets.get(measured.name)) for measured in outcome.measures]
    return outcome


def _times(pair: Pair, setting: Setting) -> list[Measure]:
    timing = interleave(pair.reference, pair.fast, setting)
    own = timing.ratios(lambda duration: duration.own)
    wall = timing.ratios(lambda duration: duration.wall)
    fast = timing.median(timing.fast)
    return [
        Measure(
            "time",
            statistics.median(own),
            min(own),
            max(own),
            reference=timing.median(timing.reference),
            fast=fast,
            limit=_limit(pair, fast, setting.device),
        ),
        Measure("wall", statistics.median(wall), min(wall), max(wall)),
    ]


def _limit(pair: Pair, seconds: float, device: torch.device) -> tuple[float, str] | None:
    if pair.floor is not None:
        pair.floor()
        return statistics.median(measure(pair.floor, device).own for _ in range(5)) / seconds, "decode"
    if pair.flops:
        share = count_flops(pair.fast) / matmul_rate(device, pair.dtype) / seconds
        return share, "matmul"
    if pair.traffic is not None:
        return pair.traffic / copy_rate(device) / seconds, "copy"
    return None


def _memory(row: Row, pair: Pair, setting: Setting) -> list[Measure]:
    reference, fast = (in_own_process(row, form, setting) for form in ("reference", "fast"))
    measures = []
    for name in ("saved", "peak") if pair.graph else ("peak",):
        if max(reference[name], fast[name]) < _MEASURED_PEAK:
            continue
        value = reference[name] / max(fast[name], _MEASURED_PEAK if name == "peak" else 1)
        measures.append(Measure(name, value, reference=float(reference[name]), fast=float(fast[name]), base_unit="B"))
    return measures


def _launches(pair: Pair) -> list[Measure]:
    """Count the kernels of one fast call, and how often the host waits for the device in it."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        pair.fast()
        torch.cuda.synchronize()
    kernels = sum(event.count for event in profiler.key_averages())
    return [
        Measure("launches", float(kernels), unit=""),
        Measure("syncs", float(_syncs(pair.fast)), unit=""),
    ]


def _syncs(compute: Compute) -> int:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            compute()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)
