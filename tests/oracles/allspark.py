"""AllSpark's operations as its paper and its code write them: whole score matrices, loops over images and classes.

Wang et al., "AllSpark: Reborn Labeled Features from Unlabeled in Transformer for Semi-Supervised Semantic
Segmentation", CVPR 2024, arXiv:2403.01818. Oracle of `models/channel_attention.py`,
`teaching/memory.py` and `teaching/grouping.py`, with the same signatures.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

EPS = 1e-5  # of the instance norm


def channel_attention(
    q: Float[Tensor, "B m d"],
    k: Float[Tensor, "S n d"],
    v: Float[Tensor, "S n e"],
    dropout: float = 0.0,
    keep: Bool[Tensor, " n"] | None = None,
) -> Float[Tensor, "B m e"]:
    """Attend with instance-normalized scores: dropout(softmax(psi(q k^T))) v.

    psi subtracts the mean of a score matrix and divides by sqrt(variance + 1e-5); one matrix per query set.

    Args:
        q: B query sets; channels are the sequence, so d is the number of tokens.
        k: keys of each query set (S = B), or one set for all (S = 1).
        v: values, likewise.
        dropout: probability to drop an attention weight.
        keep: keys that take part (in psi as well); `None` = all.
    """
    scores = q @ k.transpose(-2, -1)  # (B, m, n)
    if keep is None:
        normalized = F.instance_norm(scores.unsqueeze(1), eps=EPS).squeeze(1)
    else:
        count = q.shape[-2] * keep.sum()
        mean = (scores * keep).sum((-2, -1), keepdim=True) / count
        variance = ((scores - mean) * keep).square().sum((-2, -1), keepdim=True) / count
        normalized = ((scores - mean) / torch.sqrt(variance + EPS)).masked_fill(~keep, -torch.inf)
    return F.dropout(normalized.softmax(-1), dropout) @ v


@torch.no_grad()
def enqueue(
    memory: Shaped[Tensor, "K S d"],
    pointer: Int[Tensor, " K"],
    vectors: Shaped[Tensor, "B N d"],
    classes: Int[Tensor, "B N"],
) -> None:
    """Write vectors into the ring buffer of their class, image by image and class by class, in place.

    Args:
        memory: S slots per class.
        pointer: next slot of each class.
        vectors: N of each image.
        classes: of every vector.
    """
    slots = memory.shape[1]
    for image, labels in zip(vectors, classes, strict=True):
        for label in labels.unique().tolist():
            mine = image[labels == label]
            start = int(pointer[label])
            end = start + len(mine)
            mine = mine[-slots:]
            first = end - len(mine)
            until_wrap = min(len(mine), slots - first % slots)
            memory[label, first % slots : first % slots + until_wrap] = mine[:until_wrap]
            memory[label, : len(mine) - until_wrap] = mine[until_wrap:]
            pointer[label] = end % slots


@torch.no_grad()
def channel_classes(
    tokens: Float[Tensor, "B d C"],
    logits: Float[Tensor, "B K H W"],
    size: tuple[int, int],
    grouping: str = "logits_cosine",
) -> Int[Tensor, "B C"]:
    """Assign to each channel the class whose map it resembles most, one image and one channel at a time.

    Args:
        tokens: d = h * w tokens of C channels.
        logits: of the same images.
        size: (h, w) of the token grid.
        grouping: `logits_cosine`, `probs_cosine`, `probs_dot`, or `none` (round-robin).
    """
    batch, _, channels = tokens.shape
    count = logits.shape[1]
    if grouping == "none":
        return (torch.arange(batch * channels) % count).reshape(batch, channels).to(tokens.device)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    tokens = tokens.to(logits.dtype)
    maps = logits if grouping == "logits_cosine" else logits.softmax(1)
    maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False).flatten(2)  # (B, K, d)
    result = torch.empty(batch, channels, dtype=torch.int64, device=tokens.device)
    for image in range(batch):
        for channel in range(channels):
            similarity = []
            for label in range(count):
                row, column = maps[image, label], tokens[image, :, channel]
                if grouping == "probs_dot":
                    similarity.append(row @ column)
                else:
                    similarity.append(F.cosine_similarity(row, column, dim=0, eps=1e-12))
            result[image, channel] = torch.stack(similarity).argmax()
    return result
