"""Activation checkpointing: the blocks of an encoder keep their input only, and compute the rest again for backward.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv:1604.06174. About a third more time for an
encoder whose stored activations shrink to one map per block. Gradients are the same: dropout repeats its draws, and
batch-norm statistics are moved by the first pass only.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

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
