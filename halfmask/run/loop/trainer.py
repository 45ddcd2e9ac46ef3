"""Build the Lightning trainer of a recipe's `run` section: device, precision, activation checkpointing.

From the recipe's `run` section to a device, a precision and a Lightning trainer.

Activation checkpointing: the blocks of an encoder keep their input only, and compute the rest again for backward.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv:1604.06174. About a third more time for an
encoder whose stored activations shrink to one map per block. Gradients are the same: dropout repeats its draws, and
batch-norm statistics are moved by the first pass only.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.checkpoint import checkpoint

from halfmask.errors import RecipeError
from halfmask.method import Method
from halfmask.models.model import Model
from halfmask.recipe.read import Recipe, RunRecipe
from halfmask.run.checkpoint import AtomicCheckpointIO


def uses_gpu(recipe: RunRecipe) -> bool:
    """Tell whether the run is on GPUs.

    Raises:
        RecipeError: the recipe asks for a GPU, or for more of them, than there is.
    """
    gpu = recipe.accelerator in {"auto", "gpu"} and torch.cuda.is_available()
    if recipe.accelerator == "gpu" and not gpu:
        raise RecipeError("run.accelerator=gpu, but torch sees no GPU here. Use run.accelerator=auto or cpu.", "H503")
    if gpu and recipe.devices > torch.cuda.device_count():
        raise RecipeError(
            f"run.devices={recipe.devices}, but this machine has {torch.cuda.device_count()} GPU(s).", "H503"
        )
    return gpu


def with_precision(recipe: Recipe) -> Recipe:
    """Resolve `run.precision: auto`, so that the run folder says what was used and a resume keeps it.

    bfloat16 autocast where the device computes in it natively, else float32.
    """
    if recipe.run.precision != "auto":
        return recipe
    if uses_gpu(recipe.run):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = recipe.run.accelerator != "mps" and bool(torch.cpu._is_avx512_bf16_supported())
    run = recipe.run.model_copy(update={"precision": "bf16-mixed" if native else "32-true"})
    origins = recipe.origins | {"run.precision": "auto: native on this device" if native else "auto"}
    return recipe.model_copy(update={"run": run, "origins": origins})


def prepare_networks(method: Method, recipe: RunRecipe) -> None:
    """Apply what the recipe says about memory and compilation; state-dict keys stay as they are.

    Raises:
        RecipeError: an encoder cannot do what it asks for.
    """
    if recipe.channels_last:
        for tensor in (*method.parameters(), *method.buffers()):
            if tensor.dim() == 4:  # `Module.to` also tries those of five dimensions, and fails
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    if recipe.compile and recipe.recompute:
        raise RecipeError("run.recompute and run.compile together are not tested: choose one of them.")
    for module in method.modules():
        if isinstance(module, Model):
            module.streams_loss = recipe.stream_loss
            if recipe.recompute and not recompute_blocks(module.encoder):
                raise RecipeError(
                    f"run.recompute: encoder {type(module.encoder).__name__} has no list of blocks to compute again. "
                    "Leave run.recompute out; a smaller data.batch or data.crop saves memory, too."
                )
            if recipe.compile:
                module.encoder.compile(dynamic=False)
                module.decoder.compile(dynamic=False)


def make_trainer(recipe: RunRecipe, out: Path, method: Method, callbacks: list[L.Callback]) -> L.Trainer:
    """Make the Lightning trainer of one run: one long epoch, our own checkpoints and progress."""
    _quiet_lightning()
    many = recipe.devices * recipe.nodes > 1
    gpu = uses_gpu(recipe)
    return L.Trainer(
        accelerator="gpu" if gpu else ("mps" if recipe.accelerator == "mps" else "cpu"),
        devices=recipe.devices,
        num_nodes=recipe.nodes,
        # Buffers are not broadcast: what ranks share is explicit in the method.
        strategy=DDPStrategy(find_unused_parameters=method.partial_updates, broadcast_buffers=False)
        if many
        else "auto",
        sync_batchnorm=many and gpu,
        precision=cast(Any, recipe.precision),
        max_epochs=1,
        deterministic=recipe.deterministic or None,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=_logger(recipe.logger, out),
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=out,
    )


def _logger(name: str, out: Path) -> Any:
    if name == "none":
        return False
    from halfmask.run.loop.progress import make_logger

    return make_logger(name, out)


def _quiet_lightning() -> None:
    """Silence lines that tell a user nothing: hardware tables, worker hints, our own way of resuming."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")


_SEVERAL = 2  # layers with weights: what has fewer is no block


def recompute_blocks(encoder: nn.Module) -> int:
    """Make the blocks of an encoder recompute; state-dict keys stay as they are.

    A block is a member of a list or sequence of modules and holds at least two layers with weights.

    Returns:
        How many blocks there are.
    """
    blocks = list(_blocks(encoder))
    for block in blocks:
        # On the instance, so that neither names nor types of modules change.
        block.forward = partial(_recomputed, block, block.forward)
    return len(blocks)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        inside = isinstance(module, nn.ModuleList | nn.Sequential)
        layers = sum(any(True for _ in part.parameters(recurse=False)) for part in child.modules())
        # A sequence of blocks is descended into: a segment of one block holds less than one of a whole stage.
        if inside and layers >= _SEVERAL and not isinstance(child, nn.ModuleList | nn.Sequential):
            yield child
        else:
            yield from _blocks(child)


def _recomputed(block: nn.Module, forward: Any, *arguments: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments)
    return checkpoint(forward, *arguments, use_reentrant=False, context_fn=partial(_contexts, block))


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _statistics_at_rest(block)


@contextmanager
def _statistics_at_rest(block: nn.Module) -> Iterator[None]:
    """Leave running statistics and their counters as they are: a momentum of 0 moves nothing."""
    norms = [part for part in block.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
