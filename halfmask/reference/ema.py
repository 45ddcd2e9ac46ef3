"""Moving average of a network, tensor by tensor."""

import torch
from torch import nn


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Average every floating-point tensor, copy the others, in place."""
    theirs = student.state_dict()
    for name, tensor in teacher.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(decay * tensor + (1 - decay) * theirs[name])
        else:
            tensor.copy_(theirs[name])
