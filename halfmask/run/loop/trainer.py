"""Build the Lightning trainer of a recipe's `run` section: device, precision, activation checkpointing.

With activation checkpointing the blocks of an encoder keep only their input, and compute the rest again in the backward
pass (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv:1604.06174). It takes about a third more
time for an encoder whose stored activations shrink to one map per block. Gradients are the same: dropout repeats its
draws, and batch-norm statistics are moved by the first pass only.
"""

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from halfmask.errors import RecipeError
from halfmask.infer.devices import import_before_groups
from halfmask.method import Method
from halfmask.models.model import Model
from halfmask.models.statistics import set_passes
from halfmask.models.timm_library import convert_sync_batchnorm
from halfmask.recipe.read import Recipe, RunRecipe
from halfmask.run.checkpoint import AtomicCheckpointIO
from halfmask.run.loop.lightning_library import DDPStrategy, L
from halfmask.run.loop.progress import make_logger


def uses_gpu(recipe: RunRecipe) -> bool:
    """Tell whether the run is on GPUs. Raises RecipeError: it asks for a GPU, or for more of them, than there is."""
    gpu = recipe.accelerator in {"auto", "gpu"} and torch.cuda.is_available()
    if recipe.accelerator == "gpu" and not gpu:
        raise RecipeError("run.accelerator=gpu, but torch sees no GPU here. Use run.accelerator=auto or cpu.", "H503")
    if gpu and recipe.devices > torch.cuda.device_count():
        raise RecipeError(
            f"run.devices={recipe.devices}, but this machine has {torch.cuda.device_count()} GPU(s).", "H503"
        )
    return gpu


def check_device(recipe: RunRecipe) -> None:
    """Check that this machine has the devices that a run asks for.

    Raises:
        RecipeError: it has not, or has fewer of them.
    """
    gpu = uses_gpu(recipe)
    if recipe.accelerator == "mps" and not torch.backends.mps.is_available():
        raise RecipeError("run.accelerator=mps, but torch sees no Apple GPU here. Use run.accelerator=auto.", "H503")
    if recipe.accelerator == "auto" and recipe.devices > 1 and not gpu:
        raise RecipeError(
            f"run.devices={recipe.devices}, but torch sees no GPU here. Use run.devices=1; or run.accelerator=cpu, if "
            f"{recipe.devices} processes are to share the CPU.",
            "H503",
        )


def with_precision(recipe: Recipe, method: Method) -> Recipe:
    """Resolve `run.precision: auto`, so that the run folder says what was used and a resume keeps it.

    bfloat16 autocast where the device computes in it natively, else float32; on a CPU float32 also for encoders of
    depthwise convolutions, which bfloat16 slows down there. A rule, so that the same recipe gives the same run; a plan
    (`halfmask.plan`) times both and sets the precision itself.

    Raises:
        RecipeError: the recipe asks for a GPU, or for more of them, than there is.
    """
    gpu = uses_gpu(recipe.run)
    if recipe.run.precision != "auto":
        return recipe
    native = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else has_fast_bf16(recipe.run)
    reason = "auto: native on this device" if native else "auto"
    encoders = [module.encoder for module in method.modules() if isinstance(module, Model)]
    if native and not gpu and any(is_depthwise(encoder) for encoder in encoders):
        native, reason = False, "auto: depthwise convolutions are slower in bfloat16 on a CPU"
    run = recipe.run.model_copy(update={"precision": "bf16-mixed" if native else "32-true"})
    return recipe.model_copy(update={"run": run, "origins": recipe.origins | {"run.precision": reason}})


def has_fast_bf16(recipe: RunRecipe) -> bool:
    """Tell whether a run without GPU is on a CPU with instructions for bfloat16."""
    return recipe.accelerator != "mps" and bool(torch.cpu._is_avx512_bf16_supported())


def is_depthwise(encoder: nn.Module) -> bool:
    """Tell whether at least a sixth of the layers convolve each channel for itself.

    Time of forward and backward in bfloat16 by that in float32, on a CPU with native bfloat16: EfficientNet-Lite0 1.3
    to 1.7, MobileNetV3 2.0, ConvNeXt 1.0 (a fifth to a third of their layers); MiT-B1 0.8 (a seventh); ResNet-18 0.7.

    >>> is_depthwise(nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)))
    True
    """
    layers = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    alone = [layer for layer in layers if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1]
    return 6 * len(alone) >= len(layers) > 0


def prepare_networks(method: Method, recipe: RunRecipe) -> None:
    """Apply what the recipe says about memory and compilation; state-dict keys stay as they are.

    Raises:
        RecipeError: an encoder cannot do what it asks for.
    """
    if recipe.channels_last:
        for tensor in (*method.parameters(), *method.buffers()):
            if tensor.dim() == 4:  # `Module.to` also tries those of five dimensions, and fails
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    check_compilation(recipe)
    check_recompute(method, recipe)
    set_passes(method, recipe.passes)
    if recipe.devices * recipe.nodes > 1 and uses_gpu(recipe):
        synchronize_batch_norm(method)
    for module in method.modules():
        if isinstance(module, Model):
            module.streams_loss = recipe.stream_loss
            if recipe.recompute:
                recompute_blocks(module.encoder)
            if recipe.compile:
                module.encoder.compile(dynamic=False)
                module.decoder.compile(dynamic=False)


def check_recompute(method: Method, recipe: RunRecipe) -> None:
    """Check that the encoders have blocks to compute again, where the recipe asks for it.

    Raises:
        RecipeError: one has none.
    """
    encoders = [module.encoder for module in method.modules() if isinstance(module, Model)] if recipe.recompute else []
    for encoder in encoders:
        if next(_blocks(encoder), None) is None:
            raise RecipeError(
                f"run.recompute: encoder {type(encoder).__name__} has no list of blocks to compute again. "
                "Leave run.recompute out; a smaller data.batch or data.crop saves memory, too."
            )


def check_compilation(recipe: RunRecipe) -> None:
    """Check that networks can be compiled, where the recipe asks for it.

    Raises:
        RecipeError: no compiler, or it is asked for together with activation checkpointing.
    """
    if recipe.compile and recipe.recompute:
        raise RecipeError("run.recompute and run.compile together are not tested: choose one of them.")
    if recipe.compile and not uses_gpu(recipe):
        check_compiler()


def check_compiler() -> None:
    """Check that there is the C++ compiler by which torch compiles for a CPU.

    Raises:
        RecipeError: there is none; torch would say so in the first step, in many lines.
    """
    name = os.environ.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"))  # as torch looks for it
    if shutil.which(name) is None:
        raise RecipeError(
            f"run.compile=true needs a C++ compiler on a CPU, but {name} is not installed here. Install it, name "
            "another one by the environment variable CXX, or leave run.compile out."
        )


def synchronize_batch_norm(method: Method) -> None:
    """Make batch norm take its statistics over all processes, in place; the names of parameters stay.

    timm's layers that hold batch norm and activation keep the activation, which torch's own conversion drops.
    """
    for name, part in list(method.named_children()):
        setattr(method, name, convert_sync_batchnorm(part))  # type: ignore[no-untyped-call]


def make_trainer(recipe: RunRecipe, out: Path, method: Method, callbacks: list[L.Callback]) -> L.Trainer:
    """Make the Lightning trainer of one run: one long epoch, our own checkpoints and progress."""
    _quiet_lightning()
    many = recipe.devices * recipe.nodes > 1
    if many:
        import_before_groups()
    gpu = uses_gpu(recipe)
    return L.Trainer(
        accelerator="gpu" if gpu else ("mps" if recipe.accelerator == "mps" else "cpu"),
        devices=recipe.devices,
        num_nodes=recipe.nodes,
        # Buffers are not broadcast: what ranks share is explicit in the method.
        strategy=DDPStrategy(find_unused_parameters=method.partial_updates, broadcast_buffers=False)
        if many
        else "auto",
        precision=cast(Any, recipe.precision),
        max_epochs=1,
        deterministic=recipe.deterministic or None,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False if recipe.logger == "none" else make_logger(recipe.logger, out),
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        default_root_dir=out,
    )


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
    """Keep running statistics and their counters as they are: a momentum of 0 moves nothing."""
    norms = [part for part in block.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
