"""Exponential moving average of a network (mean teacher), and evaluation mode as a context.

Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, arXiv:1703.01780:

    teacher = decay * teacher + (1 - decay) * student        after every optimizer step

Floating-point tensors are averaged, integers (counters, index tables) are copied: averaging an index table by
multiplication and truncation destroys it.
"""

import copy
import weakref
from collections.abc import Iterator
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from halfmask.errors import CheckpointError

Buffers = Literal["ema", "copy", "own"]
Net = TypeVar("Net", bound=nn.Module)

# Private name of torch: where a release drops it, the loop below computes the same.
_FOREACH_LERP = getattr(torch, "_foreach_lerp_", None)

# The dictionary of a module that holds a tensor, and the tensor's key in it: unlike the tensor itself, this
# survives `.to(device)`, which replaces buffers.
_Slot = tuple[dict[str, Any], str]
_Pairs = list[tuple[_Slot, _Slot]]


class Teacher(nn.Module, Generic[Net]):
    """A moving average of another network, called like it; make it with `ema_copy`.

    Its parameters never require gradients, and a trainer's blanket `.train()` leaves it in evaluation mode unless
    it keeps batch-norm statistics of its `own`.

    Args:
        model: the network that holds the average.
        buffers: floating-point buffers are averaged like parameters (`ema`), copied from the student (`copy`), or
            left to the teacher's own forward passes in training mode (`own`).
    """

    def __init__(self, model: Net, buffers: Buffers = "ema") -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.buffer_rule: Buffers = buffers
        self._pairing: tuple[weakref.ref[nn.Module], _Pairs, _Pairs] | None = None
        self.train(self.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the averaged network."""
        return self.model(*args, **kwargs)

    def train(self, mode: bool = True) -> "Teacher[Net]":
        """Keep evaluation mode unless the buffers are the teacher's own."""
        return super().train(mode and self.buffer_rule == "own")

    @torch.no_grad()
    def update(self, student: nn.Module, decay: float) -> None:
        """Move the average toward the student, in place.

        Args:
            student: network of the same architecture.
            decay: part of the old average that stays; 0 copies the student.
        """
        averaged, copied = self._pair(student)
        lerp_([_read(mine) for mine, _ in averaged], [_read(theirs) for _, theirs in averaged], 1 - decay)
        for mine, theirs in copied:
            _read(mine).copy_(_read(theirs))

    def _pair(self, student: nn.Module) -> tuple[_Pairs, _Pairs]:
        # Walking a thousand modules on every step costs milliseconds, so the pairs are kept per student.
        if self._pairing is not None and self._pairing[0]() is student:
            return self._pairing[1], self._pairing[2]
        mine, theirs = dict(_slots(self.model)), dict(_slots(student))
        if mine.keys() != theirs.keys():
            odd = sorted(mine.keys() ^ theirs.keys())
            raise CheckpointError(
                f"teacher and student differ in {len(odd)} tensors ({', '.join(odd[:5])}). "
                "Update a teacher with the network it was copied from, or make a new one with ema_copy(student).",
                "H405",
            )
        parameters = {name for name, _ in student.named_parameters()}
        averaged: _Pairs = []
        copied: _Pairs = []
        for name in mine:
            pair = mine[name], theirs[name]
            if name in parameters or self.buffer_rule == "ema":
                (averaged if _read(mine[name]).is_floating_point() else copied).append(pair)
            elif self.buffer_rule == "copy":
                copied.append(pair)
        self._pairing = weakref.ref(student), averaged, copied
        return averaged, copied

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the teacher must not keep pointing at the tensors of this one.
        return {**self.__dict__, "_pairing": None}


def ema_copy(net: Net, buffers: Buffers = "ema") -> Teacher[Net]:
    """Make a teacher that starts as an exact copy of a network.

    >>> student = nn.Linear(2, 1)
    >>> teacher = ema_copy(student)
    >>> _ = nn.init.zeros_(student.weight)
    >>> teacher.update(student, decay=0.0)
    >>> bool((teacher.model.weight == 0).all()), teacher.model.weight.requires_grad
    (True, False)
    """
    return Teacher(copy.deepcopy(net), buffers)


def lerp_(average: list[Tensor], target: list[Tensor], weight: float) -> None:
    """Move each tensor of `average` the part `weight` of the way to its partner in `target`, in place."""
    if not average:
        return
    if _FOREACH_LERP is not None:
        _FOREACH_LERP(average, target, weight)
        return
    for old, new in zip(average, target, strict=True):
        old.lerp_(new, weight)


def _slots(module: nn.Module) -> Iterator[tuple[str, _Slot]]:
    seen: set[int] = set()  # a tied tensor must be averaged once
    for prefix, part in module.named_modules():
        for tensors in (part._parameters, part._buffers):
            for key, tensor in tensors.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield f"{prefix}.{key}" if prefix else key, (tensors, key)


def _read(slot: _Slot) -> Tensor:
    tensors, key = slot
    tensor: Tensor = tensors[key]
    return tensor
