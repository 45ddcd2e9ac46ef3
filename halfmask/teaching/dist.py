"""What ranks share, spelled out; every function is the identity in a run of one process."""

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(x: Shaped[Tensor, "N *rest"]) -> Shaped[Tensor, "_M *rest"]:
    """Concatenate the tensors of all ranks along the first axis, in rank order; shapes must agree.

    No gradient flows to other ranks.

    >>> gather(torch.ones(2)).tolist()
    [1.0, 1.0]
    """
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def broadcast(x: Shaped[Tensor, "*S"], source: int = 0) -> Shaped[Tensor, "*S"]:
    """Overwrite `x` with the tensor of rank `source`, in place, and return it."""
    if world_size() > 1:
        dist.broadcast(x, source)
    return x


def all_sum(x: Shaped[Tensor, "*S"]) -> Shaped[Tensor, "*S"]:
    """Sum over ranks; `x` itself is left as it is."""
    if world_size() == 1:
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total
