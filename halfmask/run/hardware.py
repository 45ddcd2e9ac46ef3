"""From the recipe's `run` section to a device, a precision and a Lightning trainer."""

import logging
import warnings
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy

from halfmask.errors import RecipeError
from halfmask.method import Method
from halfmask.models.model import Model
from halfmask.recipe.read import Recipe, RunRecipe
from halfmask.run.checkpoint import AtomicCheckpointIO
from halfmask.run.recompute import recompute_blocks


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
            module.streams_loss = recipe.stream_loss and not recipe.reference
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
    from halfmask.run import loggers

    return loggers.make(name, out)


def _quiet_lightning() -> None:
    """Silence lines that tell a user nothing: hardware tables, worker hints, our own way of resuming."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
