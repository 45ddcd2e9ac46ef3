"""Parameter groups, optimizers, and the learning rate as a pure function of the step."""

import math
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from halfmask.method import Method
from halfmask.recipe.read import OptimRecipe

_ENCODER = "encoder"


def rate_factor(step: int, total_steps: int, optim: OptimRecipe) -> float:
    """Return the factor on the base rate that step `step` (counted from 0) runs at.

    Poly: (1 - t/T)^power with t = step - schedule_lag (not below 0), as in Chen et al., DeepLab, TPAMI 2018.
    Cosine: (1 + cos(pi t/T)) / 2. Cosine_7_16: cos(7 pi t / (16 T)), of FixMatch (Sohn et al., NeurIPS 2020,
    arXiv:2001.07685); it ends at 0.195.

    >>> optim = OptimRecipe(schedule="poly", power=0.9, schedule_lag=1)
    >>> [round(rate_factor(step, 20, optim), 6) for step in (0, 1, 2)]
    [1.0, 1.0, 0.954885]
    """
    warmup = min(1.0, (step + 1) / optim.warmup_steps) if optim.warmup_steps else 1.0
    done = min(max(step - optim.schedule_lag, 0) / total_steps, 1.0)
    if optim.schedule == "poly":
        return float(warmup * (1 - done) ** optim.power)
    if optim.schedule == "cosine":
        return float(warmup * 0.5 * (1 + math.cos(math.pi * done)))
    if optim.schedule == "cosine_7_16":
        return float(warmup * math.cos(7 / 16 * math.pi * done))
    return warmup


def base_rate(optim: OptimRecipe, labeled_batch: int) -> float:
    """Scale the recipe's rate linearly with the labeled batch where `reference_batch` is given."""
    return optim.lr if optim.reference_batch is None else optim.lr * labeled_batch / optim.reference_batch


def make_optimizers(method: Method, optim: OptimRecipe, lr: float, fused: bool = False) -> dict[str, Optimizer]:
    """Make one optimizer per key of `method.parameter_groups()`.

    Each torch parameter group keeps its base rate under `base_lr`, from which `set_rates` computes `lr`.
    """
    optimizers: dict[str, Optimizer] = {}
    for key, groups in method.parameter_groups().items():
        torch_groups: list[dict[str, Any]] = []
        for group in groups:
            base_lr = lr * (1.0 if group.name == _ENCODER else optim.decoder_lr_scale)
            for params, decay in _by_decay(group.params, optim):
                if params:
                    settings = {"name": group.name, "base_lr": base_lr, "lr": base_lr, "weight_decay": decay}
                    torch_groups.append({"params": params, **settings})
        optimizers[key] = _optimizer(torch_groups, optim, fused)
    return optimizers


def set_rates(optimizers: dict[str, Optimizer], factor: float) -> None:
    """Write `base_lr * factor` to every parameter group."""
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor


def _by_decay(params: list[nn.Parameter], optim: OptimRecipe) -> list[tuple[list[nn.Parameter], float]]:
    if optim.decay_norm_bias:
        return [(params, optim.weight_decay)]
    matrices = [parameter for parameter in params if parameter.ndim > 1]
    vectors = [parameter for parameter in params if parameter.ndim <= 1]
    return [(matrices, optim.weight_decay), (vectors, 0.0)]


def _optimizer(groups: list[dict[str, Any]], optim: OptimRecipe, fused: bool) -> Optimizer:
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, fused=fused or None)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=fused or None)
