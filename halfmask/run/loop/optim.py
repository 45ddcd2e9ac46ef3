"""Parameter groups, optimizers, and the learning rate as a pure function of the step."""

import math
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from torch.optim import Optimizer

from halfmask.errors import RecipeError, bullet_list, nearest
from halfmask.method import Method, optimizers_of
from halfmask.recipe.explain import explain_all
from halfmask.recipe.read import Recipe
from halfmask.recipe.sections import OptimRecipe
from halfmask.run.loop.eager import without_compiler

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


def resolve_optimizers(method: Method, optim: OptimRecipe) -> OptimRecipe:
    """Return the section with what the method says about each of its optimizers; the recipe's own values win.

    Raises:
        RecipeError: the recipe names an optimizer that the method does not have, or the method a wrong value.
    """
    groups = optimizers_of(method)
    if odd := [key for key in optim.optimizers if key not in groups]:
        raise RecipeError(
            f"optim.optimizers names {', '.join(odd)}, but method {type(method).__name__} has the optimizers "
            f"{', '.join(groups)}.{nearest(odd[0], groups)}"
        )
    merged = {key: {**found.overrides, **optim.optimizers.get(key, {})} for key, found in groups.items()}
    plain = optim.model_dump(exclude={"optimizers"})
    try:
        return OptimRecipe.model_validate({**plain, "optimizers": {key: own for key, own in merged.items() if own}})
    except ValidationError as error:
        problems = explain_all(error.errors(), OptimRecipe, {}, prefix="optim")
        raise RecipeError(
            f"method {type(method).__name__}: parameter_groups() asks for an optimizer that there is not\n"
            f"{bullet_list(problems)}",
            "H303",
        ) from None


def with_optimizers(recipe: Recipe, method: Method) -> Recipe:
    """Write into the recipe what the method says about its optimizers, so that the run folder and a resume know it."""
    optim = resolve_optimizers(method, recipe.optim)
    added = {
        f"optim.optimizers.{key}.{name}": "method"
        for key, own in optim.optimizers.items()
        for name in own
        if name not in recipe.optim.optimizers.get(key, {})
    }
    return recipe.model_copy(update={"optim": optim, "origins": recipe.origins | added})


def make_optimizers(method: Method, optim: OptimRecipe, lr: float, fused: bool = False) -> dict[str, Optimizer]:
    """Make one optimizer per key of `method.parameter_groups()`.

    Each torch parameter group keeps its base rate under `base_lr`, from which `set_rates` computes `lr`.

    Args:
        method: whose parameters.
        optim: section of the recipe.
        lr: base rate after scaling with the batch; an optimizer with a rate of its own takes that as it is.
        fused: update a parameter in one pass over its memory (CPU and GPU): AdamW 3.0, SGD 1.8 times as fast on a CPU.
    """
    optim = resolve_optimizers(method, optim)
    optimizers: dict[str, Optimizer] = {}
    for key, found in optimizers_of(method).items():
        own = optim.of(key)
        rate = own.lr if "lr" in optim.optimizers.get(key, {}) else lr
        torch_groups: list[dict[str, Any]] = []
        for group in found.groups:
            base_lr = rate * (1.0 if group.name == _ENCODER else own.decoder_lr_scale)
            for params, decay in _by_decay(group.params, own):
                if params:
                    settings = {"name": group.name, "base_lr": base_lr, "lr": base_lr, "weight_decay": decay}
                    torch_groups.append({"params": params, **settings})
        with without_compiler():
            made = optimizers[key] = _optimizer(torch_groups, own, fused)
            _ask_once(made)
    return optimizers


def _ask_once(optimizer: Optimizer) -> None:
    """Call what asks for the compiler at its first call, on a spare optimizer: gradients of the network stay."""
    spare = type(optimizer)([nn.Parameter(torch.zeros(1))], lr=0.1)  # type: ignore[call-arg]
    spare.zero_grad(), spare.state_dict()


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
    made = torch.optim.AdamW if optim.name == "adamw" else torch.optim.Adam
    return made(groups, lr=optim.lr, betas=optim.betas, fused=fused or None)
