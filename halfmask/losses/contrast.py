"""Contrastive losses of pixel embeddings.

InfoNCE (van den Oord et al., arXiv:1807.03748) on unit vectors: what is positive and what is negative is the method's.
All compute in float32, with masks instead of gathers; an anchor without a positive does not count.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def queue_contrast(
    anchors: Float[Tensor, "A d"],
    classes: Int[Tensor, " A"],
    slots: Float[Tensor, "K S d"],
    filled: Bool[Tensor, "K S"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Average -log(sum over same class of e^(a b / t) / sum over all of e^(a b / t)) over the anchors.

    The sum over positives is inside the logarithm (PixCon, arXiv:2607.03068); 0 where no anchor has a positive.

    Args:
        anchors: unit vectors.
        classes: of the anchors; K = not in use.
        slots: what is compared with, unit vectors by class; no gradient flows into them.
        filled: slots in use.
        temperature: t.
    """
    # A copy: the method writes into the slots before the backward pass.
    slots = slots.detach().float().clone()
    similarity = anchors.float() @ slots.flatten(0, 1).T / temperature  # (A, K * S)
    similarity = similarity.masked_fill(~filled.flatten(), -torch.inf)
    owner = torch.arange(len(slots), device=slots.device).repeat_interleave(slots.shape[1])  # (K * S,)
    positive = (owner == classes[:, None]) & filled.flatten()
    counts = positive.any(1)
    # Rows without a positive are replaced before the logarithm: infinities would poison the gradient of all.
    similarity = torch.where(counts[:, None], similarity, 0.0)
    own = torch.where(counts[:, None], similarity.masked_fill(~positive, -torch.inf), 0.0)
    loss = similarity.logsumexp(1) - own.logsumexp(1)
    return loss.masked_fill(~counts, 0.0).sum() / counts.sum().clamp_min(1)


@torch.no_grad()
def local_density(
    vectors: Float[Tensor, "N d"], memory: Float[Tensor, "M d"], neighbors: Sequence[int] = (8, 16, 32)
) -> Float[Tensor, " N"]:
    """Average over k the mean cosine of each vector to its k nearest in the memory of its class.

    It samples for `anchor_contrast`: vectors where their class is thin are anchors, those where it is dense make the
    positive (Wang et al., DGCL, CVPR 2023, section 3.3). No method here uses it yet.

    Args:
        vectors: features of one class.
        memory: features of that class from earlier batches; M is at least the largest k.
        neighbors: the values of k.

    >>> local_density(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), neighbors=(1, 2)).item()
    0.75
    """
    cosine = F.normalize(vectors.float(), dim=1) @ F.normalize(memory.float(), dim=1).T
    nearest = cosine.topk(max(neighbors), dim=1).values  # sorted, largest first
    return torch.stack([nearest[:, :k].mean(1) for k in neighbors]).mean(0)


def anchor_contrast(
    anchors: Float[Tensor, "A d"],
    positive: Float[Tensor, " d"],
    negatives: Float[Tensor, "A n d"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Average -log softmax of the cosine to the positive, among it and the negatives of each anchor (U2PL, eq. 6).

    Args:
        anchors: of one class.
        positive: one vector for all of them; no gradient flows into it.
        negatives: n of each anchor; no gradient flows into them.
        temperature: of the softmax.
    """
    others = torch.cat((positive.detach().expand_as(anchors)[:, None], negatives.detach()), dim=1)  # (A, 1 + n, d)
    similarity = F.cosine_similarity(anchors.float()[:, None], others.float(), dim=2) / temperature
    return (similarity.logsumexp(1) - similarity[:, 0]).mean()
