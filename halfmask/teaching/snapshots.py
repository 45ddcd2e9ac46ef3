"""Earlier states of a network, kept to teach with later: PrevMatch keeps those of its best epochs.

Shin et al., "Revisiting and Maximizing Temporal Knowledge in Semi-supervised Semantic Segmentation" (PrevMatch), 2024,
arXiv:2405.20610. With n drawn from 1 .. most, n snapshots g_i drawn without repetition, and weights from Dirichlet(1):

    logits(x) = sum_i w_i g_i(x),   sum_i w_i = 1
"""

import copy
import random
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from halfmask.errors import CheckpointError

Net = TypeVar("Net", bound=nn.Module)


class SnapshotPool(nn.Module, Generic[Net]):
    """Room for a fixed number of copies of a network; when it is full, a new one replaces the oldest.

    All copies exist from the beginning, so a checkpoint has the same tensors whether the pool is empty or full. They
    receive no gradients and stay in evaluation mode.

    Args:
        net: the network whose states will be kept.
        size: largest number of snapshots; each takes the memory of the network.

    >>> net = nn.Linear(2, 1)
    >>> pool = SnapshotPool(net, size=2)
    >>> len(pool), len(pool.push(net).push(net).push(net))
    (0, 2)
    """

    def __init__(self, net: Net, size: int) -> None:
        super().__init__()
        copies = [copy.deepcopy(net).requires_grad_(False) for _ in range(size)]
        self.models = nn.ModuleList(copies)
        self.pushed = 0  # on the host: which copies are in use decides what is computed
        self.train(False)
        self.register_load_state_dict_pre_hook(_check_complete)  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return min(self.pushed, len(self.models))

    @torch.no_grad()
    def push(self, net: Net) -> "SnapshotPool[Net]":
        """Keep the network as it is now."""
        self.models[self.pushed % len(self.models)].load_state_dict(net.state_dict())
        self.pushed += 1
        return self

    def draw(self, most: int) -> list[nn.Module]:
        """Draw 1 to `most` of the snapshots; none of an empty pool.

        The draw follows the seed of the step and needs no value of the device.
        """
        if not len(self):
            return []
        chance = random.Random(torch.initial_seed())
        count = min(chance.randint(1, most), len(self))
        return [self.models[place] for place in chance.sample(range(len(self)), count)]

    @torch.no_grad()
    def forward(self, image: Float[Tensor, "B *T C H W"], *, most: int = 3) -> Float[Tensor, "B K ..."]:
        """Compute the logits of some snapshots, mixed with random weights; the pool must not be empty."""
        logits = torch.stack([model(image) for model in self.draw(most)])
        weights = torch.empty(len(logits), device=logits.device).exponential_()  # normalized, they are Dirichlet(1)
        return torch.einsum("n,n...->...", (weights / weights.sum()).to(logits.dtype), logits)

    def train(self, mode: bool = True) -> "SnapshotPool[Net]":
        """Keep evaluation mode."""
        return super().train(False)

    def get_extra_state(self) -> Tensor:
        """Return what the state holds beside the networks: how many were pushed."""
        return torch.tensor(self.pushed)

    def set_extra_state(self, state: Any) -> None:
        """Restore how many were pushed."""
        self.pushed = int(state)


def _check_complete(pool: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Refuse a state of another number of snapshots, as a checkpoint that was cut, or is of another `size`, has.

    Raises:
        CheckpointError: some are missing, too many, or it is not said how many are in use.
    """
    assert isinstance(pool, SnapshotPool)
    start = f"{prefix}models."
    found = {key.removeprefix(start).partition(".")[0] for key in state if key.startswith(start)}
    wanted = {str(place) for place in range(len(pool.models))}
    if found != wanted or f"{prefix}_extra_state" not in state:
        raise CheckpointError(
            f"the checkpoint holds {len(found & wanted)} of {len(wanted)} earlier networks"
            f"{f' and {len(found - wanted)} more' if found - wanted else ''}: not the pool that was saved. "
            "Use an intact checkpoint (checkpoints/previous.ckpt is the one before), or train anew.",
            "H402",
        )
