"""Run a function in two processes that form a group."""

import os
import socket
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_two_processes(check: Callable[[int], None]) -> None:
    """Call an importable function with each rank; what it raises is raised here. It may end the group itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_begin, args=(port, check), nprocs=2)


def _begin(rank: int, port: int, check: Callable[[int], None]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    check(rank)
    if dist.is_initialized():
        dist.destroy_process_group()
