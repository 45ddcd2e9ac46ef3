"""Choose the device of evaluation and prediction, and join the processes of one command.

`torchrun --nproc-per-node 4 -m halfmask evaluate RUN` starts four processes. Training gets them from its trainer.
Evaluation and prediction join them here, share the images, and add up their results. Without torchrun there is one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

import torch
from torch import distributed as dist

from halfmask.errors import RecipeError

T = TypeVar("T")
_JOINED: "ContextVar[Ranks | None]" = ContextVar("joined_ranks", default=None)


class Ranks(NamedTuple):
    """This process among all that share a piece of work."""

    rank: int  # number of this process
    world: int  # number of processes
    device: torch.device  # of this process

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def lists(self, mine: list[T]) -> list[T]:
        """Return the lists of all processes as one, in every process; a barrier, too."""
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
    import_before_groups()
    dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    ranks = Ranks(dist.get_rank(), world, where)
    token = _JOINED.set(ranks)
    try:
        yield ranks
    finally:
        _JOINED.reset(token)
        dist.destroy_process_group()


def import_before_groups() -> None:
    """Load a module of torch that must not be imported first while processes are joined.

    Its functions have the group of all processes as a default argument, taken at the import. A later import, by
    whatever needs it, would keep that group and its threads alive after `destroy_process_group`, and a thread that
    still runs when Python ends may abort the process: "terminate called without an active exception".
    """
    import torch.distributed.nn.functional  # noqa: F401


def is_first_rank() -> bool:
    """Tell by the environment of torchrun, SLURM or Lightning whether this process speaks for all."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "RANK"))


def pick_device(name: str = "auto") -> torch.device:
    """Return the device for a name; `auto` takes an accelerator when there is one.

    Raises:
        RecipeError: the name is unknown or this machine has no such device.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else found
    try:
        device = torch.device("cuda" if name == "gpu" else name)
    except RuntimeError:
        raise RecipeError(f"device {name!r} is unknown. Use auto, cpu, cuda, cuda:1, ... or mps.", "H303") from None
    if device.type == "cpu":
        return device
    module = torch.get_device_module(device) if device.type in {"cuda", "mps", "xpu"} else None
    if module is None or not module.is_available():
        raise RecipeError(
            f"device {name!r}: this machine has none, or torch was built without it. Use --device cpu.", "H503"
        )
    if device.index is not None and device.index >= module.device_count():
        raise RecipeError(f"device {name!r}: this machine has {module.device_count()}, numbered from 0.", "H503")
    return device
