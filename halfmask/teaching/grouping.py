"""Which class a feature channel belongs to: AllSpark's Channel Semantic Grouping.

Wang et al., CVPR 2024, arXiv:2403.01818, section 3.4: a channel goes to the class whose probability map it resembles
most. The published code compares with logits by cosine, the paper writes psi(p^T h) with probabilities; psi is one
increasing map of the whole matrix and does not change the winner.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Grouping = Literal["logits_cosine", "probs_dot", "probs_cosine", "none"]


@torch.no_grad()
def channel_classes(
    tokens: Float[Tensor, "B d C"],
    logits: Float[Tensor, "B K H W"],
    size: tuple[int, int],
    grouping: Grouping = "logits_cosine",
) -> Int[Tensor, "B C"]:
    """Assign to each channel the class whose map it resembles most.

    Args:
        tokens: d = h * w tokens of C channels.
        logits: of the same images, at any resolution.
        size: (h, w) of the token grid.
        grouping: `logits_cosine` (published code), `probs_dot` (paper), `probs_cosine`, or `none`: round-robin.

    >>> tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # two tokens, two channels
    >>> logits = torch.tensor([[[[0.0, 3.0]], [[3.0, 0.0]]]])  # class 1 left, class 0 right
    >>> channel_classes(tokens, logits, (1, 2)).tolist()
    [[1, 0]]
    """
    batch, _, channels = tokens.shape
    if grouping == "none":
        return (torch.arange(batch * channels, device=tokens.device) % logits.shape[1]).view(batch, channels)
    maps = logits if logits.dtype == torch.float64 else logits.float()
    if grouping != "logits_cosine":
        maps = maps.softmax(1)
    maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False).flatten(2)  # (B, K, d)
    if grouping != "probs_dot":
        maps = F.normalize(maps, dim=-1, eps=1e-12)
    # The length of a channel scales a whole column: it cannot change which class wins.
    with torch.autocast(tokens.device.type, enabled=False):
        similarity = maps @ tokens.to(maps.dtype)  # (B, K, C)
    return similarity.max(1).indices
