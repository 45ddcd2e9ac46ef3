"""Notice the first loss or gradient that is not finite, and keep the weights from before it.

Several processes agree on every step: what is not finite in one is forbidden in all, so that their weights and steps
stay alike. Whether a step is finite is known on the device. A GPU is asked at the logging cadence only: until then its
fused optimizers skip every update after the first bad one. On a CPU asking costs nothing.
"""

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer

_MARGIN = 10.0  # updates of AdamW may exceed the learning rate by about so much


class FiniteGuard:
    """Judges each update, and holds weights and buffers as they were before the first bad one.

    Args:
        method: whose buffers (running statistics, memories) a forward pass changes before the loss is known.
    """

    def __init__(self, method: nn.Module) -> None:
        self._method = method
        self._good: Tensor | None = None
        self._bad_step: Tensor | None = None
        self._kept: list[tuple[Tensor, Tensor]] = []

    def begin(self, device: torch.device) -> None:
        """Start to watch; the buffers are finite now."""
        self._good = torch.ones((), dtype=torch.bool, device=device)
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self.keep_buffers()

    def keep_buffers(self) -> None:
        """Remember the buffers of a moment when all was finite."""
        self._kept = [(buffer, buffer.detach().clone()) for buffer in self._method.buffers()]

    def restore_buffers(self) -> None:
        """Put back what `keep_buffers` remembered."""
        with torch.no_grad():
            for buffer, kept in self._kept:
                buffer.copy_(kept)

    def allows(self, loss: Tensor, optimizer: Optimizer, step: int) -> bool:
        """Return whether the optimizer may make an update: loss and gradient must be finite.

        A fused optimizer on a GPU is told on the device instead, and the answer is `True`.
        """
        if self._good is None or self._bad_step is None:
            return True
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else loss.new_zeros(())
        rate = max(group["lr"] for group in optimizer.param_groups)
        # The largest update must be a number, too; the margin keeps what is added to it in range.
        fine = loss.detach().isfinite().all() & ((norm + 1) * (rate * _MARGIN)).isfinite()
        fine = _in_all_processes(fine)
        first = self._good & ~fine
        self._bad_step = torch.where(first, step, self._bad_step)
        self._good = self._good & fine
        if loss.device.type == "cuda" and optimizer.defaults.get("fused"):
            optimizer.found_inf = (~self._good).float()  # type: ignore[attr-defined]  # as a gradient scaler tells it
            return True
        return bool(self._good)

    def bad_step(self) -> int | None:
        """Return the step that was not finite, counted from 0, or `None`; this waits for the device."""
        if self._bad_step is None:
            return None
        found = int(self._bad_step)
        return found if found >= 0 else None

    def weights_are_finite(self) -> bool:
        """Return whether all weights are numbers."""
        return all(bool(parameter.isfinite().all()) for parameter in self._method.parameters())


def _in_all_processes(fine: Tensor) -> Tensor:
    """Return whether it holds in every process; a small number, and no wait for the device."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return fine
    shared = fine.to(torch.int32)
    dist.all_reduce(shared, dist.ReduceOp.MIN)
    return shared.bool()
