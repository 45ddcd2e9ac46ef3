"""A table of key rules turns the tensor names of an official checkpoint into ours.

A rule is (pattern, replacement); the first pattern that matches the beginning of a name decides. A replacement of
`None` drops the tensor: it takes part in no forward pass, or belongs to the training and not to the network.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from halfmask.errors import CheckpointError, bullet_list

Rules = Sequence[tuple[str, str | None]]


class Renamed(NamedTuple):
    """What the rules made of a state dict."""

    state: dict[str, Tensor]  # tensors under our names
    origin: dict[str, str]  # our name -> official name
    dropped: list[str]  # official names of tensors a rule drops
    unknown: list[str]  # official names that no rule knows


def rename(state: Mapping[str, Tensor], rules: Rules) -> Renamed:
    r"""Apply the first matching rule to each name.

    >>> import torch
    >>> rules = [(r"head\.(\d)\.", r"decoder.\1."), (r"queue", None)]
    >>> made = rename({"head.0.weight": torch.ones(1), "queue": torch.ones(1), "x": torch.ones(1)}, rules)
    >>> list(made.state), made.dropped, made.unknown
    (['decoder.0.weight'], ['queue'], ['x'])
    """
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    made = Renamed({}, {}, [], [])
    for key, value in state.items():
        for pattern, replacement in compiled:
            if pattern.match(key) is None:
                continue
            if replacement is None:
                made.dropped.append(key)
            else:
                ours = pattern.sub(replacement, key, count=1)
                made.state[ours], made.origin[ours] = value, key
            break
        else:
            made.unknown.append(key)
    return made


def misfits(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], origin: Mapping[str, str] | None = None
) -> list[str]:
    """List what keeps tensors from filling a network: missing and unexpected names, other shapes.

    >>> import torch
    >>> misfits({"a": torch.ones(2), "c": torch.ones(1)}, {"a": torch.ones(3), "b": torch.ones(1)})
    ['missing: b', 'unexpected: c', 'shape of a: (2,) in the file, (3,) in the network']
    """
    if origin is None:
        problems = [f"missing: {key}" for key in own if key not in state]
        problems += [f"unexpected: {key}" for key in state if key not in own]
        theirs = {key: key for key in state}
    else:
        problems = [f"missing: the tensor that is {key} here" for key in own if key not in state]
        problems += [f"unexpected: {origin[key]} ({key} here)" for key in state if key not in own]
        theirs = dict(origin)
    problems += [
        f"shape of {theirs[key]}: {tuple(value.shape)} in the file, {tuple(own[key].shape)} in the network"
        for key, value in state.items()
        if key in own and own[key].shape != value.shape
    ]
    return problems


def check_fit(made: Renamed, own: Mapping[str, Tensor], where: str, cure: str) -> None:
    """Refuse tensors that do not fill a network exactly, all in one list (CheckpointError)."""
    problems = [f"unexpected: {key}" for key in made.unknown]
    problems += misfits(made.state, own, made.origin)
    if problems:
        every = bullet_list(problems, limit=len(problems))
        raise CheckpointError(f"{where}: {len(problems)} problems\n{every}\n  {cure}", "H405")
