"""What a user waits for before anything happens."""

import os
import statistics
import subprocess
import sys

from halfmask.bench.row import Measure, Row, Setting, Target, at_least


def _seconds(*arguments: str) -> float:
    before = os.times()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def _startup(setting: Setting) -> list[Measure]:
    torch_seconds, help_seconds = [], []
    for _ in range(2 if setting.quick else setting.rounds):
        torch_seconds.append(_seconds("-c", "import torch"))
        help_seconds += [_seconds("-m", "halfmask", "--help"), _seconds("-m", "halfmask", "train", "--help")]
    reference, fast = statistics.median(torch_seconds), statistics.median(help_seconds)
    ratios = [seconds / fast for seconds in torch_seconds]
    return [
        Measure("time", reference / fast, min(ratios), max(ratios), reference=reference, fast=fast),
        Measure("seconds", fast, min(help_seconds), max(help_seconds), unit="s"),
    ]


_TARGETS = {**at_least(time=20.0), "seconds": Target(most=0.15)}

ROWS = [
    Row(
        "startup",
        "halfmask --help",
        _startup,
        "CPU time: import torch | a help screen",
        {"cpu": _TARGETS, "cuda": _TARGETS},
    )
]
