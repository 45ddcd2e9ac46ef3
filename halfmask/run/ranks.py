"""The processes of one command, as torchrun starts them: `torchrun --nproc-per-node 4 -m halfmask evaluate RUN`.

Training has them from its trainer; evaluation and prediction join them here, share the images and add up what they
found. Without torchrun there is one process.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

import torch
from torch import distributed as dist

from halfmask.run.device import pick_device

T = TypeVar("T")
_JOINED: "ContextVar[Ranks | None]" = ContextVar("joined_ranks", default=None)


class Ranks(NamedTuple):
    """This process among all that share a piece of work.

    Args:
        rank: number of this process.
        world: number of processes.
        device: of this process.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def lists(self, mine: list[T]) -> list[T]:
        """Give the lists of all processes as one, in every process; a barrier, too."""
        if self.world == 1:
            return mine
        parts: list[list[T]] = [[] for _ in range(self.world)]
        dist.all_gather_object(parts, mine)
        return [item for part in parts for item in part]


@contextmanager
def joined_ranks(device: str = "auto") -> Iterator[Ranks]:
    """Join the processes that torchrun started.

    Args:
        device: as for `pick_device`; of several GPUs each process takes the one of its local rank.

    Raises:
        RecipeError: there is no such device.
    """
    joined = _JOINED.get()
    if joined is not None:  # by the caller, for several pieces of work
        yield joined
        return
    where, world = pick_device(device), int(os.environ.get("WORLD_SIZE", 1))
    started = world > 1 and {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if not started or dist.is_initialized():  # in a group of someone else's making nobody waits for us
        yield Ranks(0, 1, where)
        return
    if where.type == "cuda" and where.index is None:
        where = pick_device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
        torch.cuda.set_device(where)
    dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    ranks = Ranks(dist.get_rank(), world, where)
    token = _JOINED.set(ranks)
    try:
        yield ranks
    finally:
        _JOINED.reset(token)
        dist.destroy_process_group()


def is_first_rank() -> bool:
    """Tell by the environment of torchrun, SLURM or Lightning whether this process speaks for all."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "RANK"))
