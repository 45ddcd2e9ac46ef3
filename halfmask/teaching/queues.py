"""Queues of feature vectors, one per class, in which vectors may be left out.

What U2PL (Wang et al., CVPR 2022) and PixCon keep of earlier batches for their contrastive losses: a vector of class k
goes to the next slot of class k and replaces the oldest. Class K means "left out", so that which pixels count is a
mask and never a gather: shapes stay static, and nothing is read on the host.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from halfmask.teaching.dist import gather
from halfmask.teaching.memory import enqueue


class ClassQueues(nn.Module):
    """The last S vectors of each of K classes, saved with the method's state.

    Args:
        classes: K.
        slots: S, vectors per class.
        width: d, length of a vector.
        shared: on several processes every rank gets the vectors of all ranks, in rank order.

    >>> queues = ClassQueues(2, 3, 1)
    >>> queues.enqueue(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1, 2, 1]))
    >>> queues.slots[1, :, 0].tolist(), queues.filled.tolist()
    ([1.0, 3.0, 0.0], [[False, False, False], [True, True, False]])
    """

    def __init__(self, classes: int, slots: int, width: int, *, shared: bool = True) -> None:
        super().__init__()
        self.classes, self.shared = classes, shared
        # One ring more than there are classes: what is left out is written there, to the same cost.
        self.register_buffer("rings", torch.zeros(classes + 1, slots, width))
        self.register_buffer("pointer", torch.zeros(classes + 1, dtype=torch.int64))
        self.register_buffer("written", torch.zeros(classes, dtype=torch.int64))
        self.rings: Float[Tensor, "K1 S d"]
        self.pointer: Int[Tensor, " K1"]
        self.written: Int[Tensor, " K"]  # vectors ever written

    @property
    def slots(self) -> Float[Tensor, "K S d"]:
        """Return the slots of all classes; those not `filled` hold zeros."""
        return self.rings[: self.classes]

    @property
    def filled(self) -> Bool[Tensor, "K S"]:
        """Tell which slots hold a vector."""
        place = torch.arange(self.rings.shape[1], device=self.rings.device)
        return place < self.written[:, None]

    @torch.no_grad()
    def enqueue(self, vectors: Float[Tensor, "N d"], classes: Int[Tensor, " N"]) -> None:
        """Write vectors in their order; those of class K are left out.

        Args:
            vectors: N of them; no gradient is kept.
            classes: of every vector; K leaves it out.
        """
        if self.shared:
            vectors, classes = gather(vectors), gather(classes)
        enqueue(self.rings, self.pointer, vectors.to(self.rings.dtype)[None], classes[None])
        self.written += torch.zeros_like(self.pointer).scatter_add_(0, classes, torch.ones_like(classes))[:-1]


def few_per_class(
    classes: Int[Tensor, " N"], most: int, total: int, count: int
) -> tuple[Int[Tensor, " A"], Int[Tensor, " A"]]:
    """Choose at random at most `most` entries of each class, and at most `total` in all.

    Args:
        classes: of every entry; `count` means "left out".
        most: of each class.
        total: A is the smaller one of it and N.
        count: K.

    Returns:
        Indices into the entries, and their classes; K where fewer were to be had. Ordered by class.

    >>> index, chosen = few_per_class(torch.tensor([1, 1, 1, 0, 2]), most=2, total=5, count=2)
    >>> chosen.tolist(), index[0].item()
    ([0, 1, 1, 2, 2], 3)
    """
    entries = len(classes)
    shuffled = torch.rand(entries, device=classes.device).argsort()
    order = shuffled[classes[shuffled].argsort(stable=True)]  # by class, in random order within each
    ordered = classes[order]
    sizes = torch.zeros(count + 1, dtype=torch.int64, device=classes.device)
    sizes.scatter_add_(0, classes, torch.ones_like(classes))
    rank = torch.arange(entries, device=classes.device) - (sizes.cumsum(0) - sizes)[ordered]
    ordered = torch.where(rank < most, ordered, count)
    # A second shuffle before the cut at `total`, so that no class loses its entries for its number.
    chance = torch.rand(entries, device=classes.device) + (ordered == count) * 2.0
    kept = chance.argsort()[: min(total, entries)].sort().values
    ordered, order = ordered[kept], order[kept]
    last = ordered.argsort(stable=True)  # those left out go to the end
    return order[last], ordered[last]
