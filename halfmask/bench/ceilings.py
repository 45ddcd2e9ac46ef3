"""What this device can do at most: multiply matrices and copy memory. Measured once per process."""

import functools

import torch
from torch.utils.flop_counter import FlopCounterMode

from halfmask.bench.row import Compute
from halfmask.bench.timing import measure

# Step rates are compared with this share of the matmul rate: what well-tuned training reaches on one device.
GOOD_SHARE = 0.4


def count_flops(compute: Compute) -> int:
    """Count the operations of all matrix products and convolutions of a call, 2 per multiply-add.

    >>> count_flops(lambda: torch.ones(2, 3) @ torch.ones(3, 4))
    48
    """
    with FlopCounterMode(display=False) as counter:
        compute()
    return int(counter.get_total_flops())


@functools.cache
def matmul_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Return the operations per second of a large matrix product."""
    side = 4096 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side).to(device, dtype) for _ in range(2))  # not zeros: they multiply faster
    return 2 * side**3 / _best_seconds(lambda: a @ b, device)


@functools.cache
def copy_rate(device: torch.device) -> float:
    """Return bytes per second of a large copy, read and written bytes counted."""
    source = torch.rand(2**28 if device.type == "cuda" else 2**25).to(device)  # beyond every cache
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best_seconds(lambda: target.copy_(source), device)


def _best_seconds(compute: Compute, device: torch.device, runs: int = 5) -> float:
    return min([measure(compute, device).own for _ in range(runs + 1)][1:])
