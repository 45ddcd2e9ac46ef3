"""Moving average of a network, tensor by tensor."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Average every floating-point tensor, copy the others, in place."""
    theirs = student.state_dict()
    for name, tensor in teacher.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(decay * tensor + (1 - decay) * theirs[name])
        else:
            tensor.copy_(theirs[name])


def lerp_(average: list[Tensor], target: list[Tensor], weight: float) -> None:
    """Move each tensor of `average` the part `weight` of the way to its partner in `target`, in place."""
    for old, new in zip(average, target, strict=True):
        old.copy_((1 - weight) * old + weight * new)
