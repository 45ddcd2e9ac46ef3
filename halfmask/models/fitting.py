"""Does a table of tensors fill a network exactly? The question of every file of weights."""

from collections.abc import Mapping

from torch import Tensor


def misfits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """List what keeps tensors from filling a network: missing and unexpected names, other shapes.

    Args:
        state: tensors of a file, by name.
        own: those of the network.

    >>> import torch
    >>> misfits({"a": torch.ones(2), "c": torch.ones(1)}, {"a": torch.ones(3), "b": torch.ones(1)})
    ['missing: b', 'unexpected: c', 'shape of a: (2,) in the file, (3,) in the network']
    """
    problems = [f"missing: {key}" for key in own if key not in state]
    problems += [f"unexpected: {key}" for key in state if key not in own]
    problems += [
        f"shape of {key}: {tuple(state[key].shape)} in the file, {tuple(own[key].shape)} in the network"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    return problems
