"""Measure what this device can do at most, once per process."""

import functools
import os

import torch
from torch.utils.benchmark import Timer

# Step rates are compared with this share of the matmul rate: what well-tuned training reaches on one device.
GOOD_SHARE = 0.4


@functools.cache
def matmul_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Return the operations per second of a large matrix product."""
    side = 4096 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side).to(device, dtype) for _ in range(2))  # not zeros: they multiply faster
    timer = Timer("a @ b", globals={"a": a, "b": b}, num_threads=torch.get_num_threads())
    return 2 * side**3 / min(timer.blocked_autorange(min_run_time=0.3).times)


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or the CPU's instruction set and number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.backends.cpu.get_cpu_capability()} CPU, {os.cpu_count()} cores"
