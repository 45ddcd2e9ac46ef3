"""Ring buffers, one per class: what methods remember of earlier batches.

As in AllSpark's Semantic Memory (Wang et al., CVPR 2024, arXiv:2403.01818, section 3.3 and Algorithm 1): a vector of
class k goes to the next slot of class k, the oldest is overwritten. A whole batch is written at once: on a device
without reading a value on the host, on a CPU by NumPy, whose small operations and copies of rows cost a quarter. Both
give the same bits as a loop over images and classes.
"""

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from halfmask.errors import CheckpointError
from halfmask.teaching.dist import broadcast, gather

MemorySync = Literal["gather", "rank0", "local"]


@torch.no_grad()
def enqueue(
    memory: Float[Tensor, "K S d"],
    pointer: Int[Tensor, " K"],
    vectors: Float[Tensor, "B N d"],
    classes: Int[Tensor, "B N"],
) -> None:
    """Write vectors into the ring buffer of their class, in batch order, in place.

    Args:
        memory: S slots per class.
        pointer: next slot of each class; moved on.
        vectors: N of each image.
        classes: of every vector. Of more than S vectors of one class the last S stay.

    >>> memory, pointer = torch.zeros(2, 3, 1), torch.tensor([2, 0])
    >>> enqueue(memory, pointer, torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[0, 1, 0]]))
    >>> memory[..., 0].tolist(), pointer.tolist()
    ([[3.0, 0.0, 1.0], [2.0, 0.0, 0.0]], [1, 1])
    """
    _at_once(pointer, classes.flatten(), (memory, vectors.flatten(0, 1)))


class ClassMemory(nn.Module):
    """S slots for each of K classes, saved with the method's state.

    Slots start with N(0, 1) noise, as published; `filled` tells which are real.

    Args:
        classes: K.
        slots: S.
        width: d, length of a vector.
        sync: what ranks share. `gather`: the vectors of all ranks are written in rank order, so that every rank holds
            the same memory. `rank0`: rank 0's memory replaces the others' before each write. `local`: nothing. On one
            process the three are the same.
    """

    def __init__(self, classes: int, slots: int, width: int, sync: MemorySync = "gather") -> None:
        super().__init__()
        self.sync = sync
        self.register_buffer("slots", torch.randn(classes, slots, width))
        self.register_buffer("pointer", torch.zeros(classes, dtype=torch.int64))
        self.register_buffer("origin", torch.full((classes, slots), -1))
        self.slots: Float[Tensor, "K S d"]
        self.pointer: Int[Tensor, " K"]  # next slot of each class
        self.origin: Int[Tensor, "K S"]  # dataset index of the image a slot came from; -1 = never written
        self.register_load_state_dict_pre_hook(_check_shapes)  # type: ignore[no-untyped-call]

    @property
    def filled(self) -> Bool[Tensor, "K S"]:
        """Return which slots hold a vector, not the initial noise."""
        return self.origin >= 0

    @torch.no_grad()
    def enqueue(self, vectors: Float[Tensor, "B N d"], classes: Int[Tensor, "B N"], index: Int[Tensor, " B"]) -> None:
        """Write one batch, in place; at most once between a forward pass that reads the slots and its backward pass.

        Args:
            vectors: N of each image.
            classes: of every vector.
            index: of every image in its dataset.
        """
        if self.sync == "gather":
            vectors, classes, index = gather(vectors), gather(classes), gather(index)
        elif self.sync == "rank0":
            for buffer in (self.slots, self.pointer, self.origin):
                broadcast(buffer)
        _write(self.slots, self.origin, self.pointer, vectors.to(self.slots.dtype), classes, index)


def _write(slots: Tensor, origin: Tensor, pointer: Tensor, vectors: Tensor, classes: Tensor, index: Tensor) -> None:
    images = index.unsqueeze(1).expand_as(classes).flatten()
    _at_once(pointer, classes.flatten(), (slots, vectors.flatten(0, 1)), (origin, images))


def _at_once(pointer: Tensor, labels: Tensor, *pairs: tuple[Tensor, Tensor]) -> None:
    """Write rows (N, ...) into buffers (K, S, ...) at the slots of their labels (N,), and move the pointers on.

    Buffers may have any strides; rows take the type of their buffer.
    """
    if labels.device.type == "cpu" and all(buffer.dtype != torch.bfloat16 for buffer, _ in pairs):
        _on_host(pointer, labels, *pairs)
    else:
        _on_device(pointer, labels, *pairs)


def _on_host(pointer: Tensor, labels: Tensor, *pairs: tuple[Tensor, Tensor]) -> None:
    slots, classes, start = pairs[0][0].shape[1], labels.numpy(), pointer.numpy()
    order = np.argsort(classes, kind="stable")
    sizes = np.bincount(classes, minlength=len(start))
    rank = np.empty_like(classes)  # within the class
    rank[order] = np.arange(len(classes)) - (np.cumsum(sizes) - sizes)[classes[order]]
    slot = (start[classes] + rank) % slots
    for buffer, rows in pairs:
        # By class and slot, because `flatten` would copy a buffer with other strides, and the copy would be written.
        # NumPy writes in order: where two rows meet, the later one stays.
        buffer.numpy()[classes, slot] = rows.detach().to(buffer.dtype).numpy()
        torch.autograd.graph.increment_version(buffer)  # autograd must notice, as it would a write of torch
    pointer.copy_(torch.from_numpy((start + sizes) % slots))


def _on_device(pointer: Tensor, labels: Tensor, *pairs: tuple[Tensor, Tensor]) -> None:
    slots = pairs[0][0].shape[1]
    target, source = _plan(pointer, labels, slots)
    for buffer, rows in pairs:
        chosen = rows.index_select(0, source).to(buffer.dtype)
        if buffer.is_contiguous():
            buffer.flatten(0, 1).index_copy_(0, target, chosen)
        else:  # `flatten` would copy, and the copy would be written
            buffer.index_put_((target // slots, target % slots), chosen)


def _plan(pointer: Tensor, labels: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Return the row to write (N,) and the vector to write there (N,) for each vector, and move the pointers on.

    A vector that a later one of its class would overwrite repeats that one instead of going to a spare row: equal
    values for one row may land in any order.
    """
    count = len(pointer)
    ordered, order = torch.sort(labels, stable=True)
    sizes = torch.zeros(count, dtype=torch.int64, device=labels.device)
    sizes.scatter_add_(0, labels, torch.ones_like(labels))
    place = torch.arange(len(labels), device=labels.device)
    rank = place - (sizes.cumsum(0) - sizes)[ordered]
    rounds = (sizes[ordered] - 1 - rank) // slots  # how often the ring comes round to this slot again
    target = ordered * slots + (pointer[ordered] + rank) % slots
    pointer.copy_((pointer + sizes) % slots)
    return target, order[place + rounds * slots]


def _check_shapes(module: ClassMemory, state: dict[str, Any], prefix: str, *_: Any) -> None:
    saved = state.get(f"{prefix}slots")
    if saved is None or saved.shape == module.slots.shape:
        return
    names = ("classes", "slots per class", "tokens per channel")
    changed = [
        f"{old} {name} in the checkpoint, {new} here"
        for name, old, new in zip(names, saved.shape, module.slots.shape, strict=True)
        if old != new
    ]
    raise CheckpointError(
        f"the class memory does not fit: {'; '.join(changed)}. Continue with the classes, the crop and the network the "
        f"run started with; or start anew with an empty memory, from a state without the {prefix}* entries.",
        "H405",
    )
