"""Which pseudo-labels teach, and how much: rules that turn confidences into kept pixels or weights.

With c = confidence, y = label, v = valid, H = entropy of the teacher's softmax:

    all              v                                                          CPS, ST++, naive pseudo-labels
    threshold        v and c >= tau                                             FixMatch, UniMatch, AugSeg, PrevMatch
    batch mean       mean of 1[c >= tau], one number for all pixels             CutMix-Seg
    power            c^gamma                                                    AEL (2); PS-MT (1, and c >= tau)
    entropy_below    H below a percentile of the batch                          U2PL
    confident_share  c above a percentile of the batch; weight c + 1            GTA-Seg
    sampled_by_class class k with probability (1 - s_k) / max (1 - s)           AEL
    conflict_weight  w where two networks disagree and c > gamma, else 1        CCVC
    GlobalThreshold  c >= g;  g follows the largest confidence of each class    CorrMatch

The first four are one expression each and stand in the step of their method; the others are below. A fixed threshold
keeps few pixels early and nearly all late; percentiles keep a share of the pixels instead.

No method here uses `sampled_by_class` and `GlobalThreshold` yet: they are for AEL (Hu et al., NeurIPS 2021,
arXiv:2110.05474) and CorrMatch (Sun et al., CVPR 2024, arXiv:2306.04300).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def masked_percentile(values: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"], percent: float) -> Float[Tensor, ""]:
    """Return a percentile of the values where the mask is True, interpolated as NumPy does; NaN where it is nowhere.

    Args:
        values: any numbers.
        mask: values that count.
        percent: 0 to 100.

    >>> masked_percentile(torch.tensor([1.0, 2.0, 3.0, 99.0]), torch.tensor([True, True, True, False]), 75.0).item()
    2.5
    """
    ordered = values.masked_fill(~mask, torch.inf).flatten().sort().values
    count = mask.sum()
    place = (count - 1).clamp_min(0) * (percent / 100)
    below = place.floor().long()
    above = torch.minimum(below + 1, (count - 1).clamp_min(0))
    low, high = ordered[below[None]][0], ordered[above[None]][0]
    found = low.double() + (high.double() - low.double()) * (place - below)
    return torch.where(count > 0, found, torch.nan).to(values.dtype)


def entropy(logits: Float[Tensor, "B K *S"]) -> Float[Tensor, "B *S"]:
    """Compute the entropy of the softmax of each pixel, in nats."""
    log_p = logits.float().log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def entropy_below(entropy: Float[Tensor, "B *S"], valid: Bool[Tensor, "B *S"], percent: float) -> Bool[Tensor, "B *S"]:
    """Return the valid pixels whose entropy is below a percentile of all valid ones (U2PL, eq. 4).

    >>> entropy_below(torch.tensor([[0.1, 0.2, 0.3, 9.0]]), torch.tensor([[True, True, True, False]]), 50.0).tolist()
    [[True, False, False, False]]
    """
    return valid & (entropy < masked_percentile(entropy, valid, percent))


def confident_share(
    confidence: Float[Tensor, "B *S"], valid: Bool[Tensor, "B *S"], percent: float
) -> tuple[Bool[Tensor, "B *S"], Float[Tensor, "B *S"]]:
    """Return which pixels are kept, the most confident `percent`, and the weights of all pixels (GTA-Seg, eq. 6)."""
    keep = valid & (confidence > masked_percentile(confidence, valid, 100 - percent))
    return keep, confidence.masked_fill(valid & ~keep, 0.0) + 1


def conflict_weight(
    confidence: Float[Tensor, "B *S"],
    own: Int[Tensor, "B *S"],
    other: Int[Tensor, "B *S"],
    *,
    threshold: float,
    weight: float,
) -> Float[Tensor, "B *S"]:
    """Weight pixels where two networks disagree and the labeling one is sure of itself (CCVC, section 3.3).

    >>> label, other = torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 0]])
    >>> conflict_weight(torch.tensor([[0.9, 0.9, 0.5]]), label, other, threshold=0.8, weight=2.0).tolist()
    [[1.0, 2.0, 1.0]]
    """
    conflict = (own != other) & (confidence > threshold)
    return 1 + (weight - 1) * conflict.float()


def sampled_by_class(
    predicted: Int[Tensor, "B *S"], class_confidence: Float[Tensor, " K"], draws: Float[Tensor, "K *S"]
) -> Bool[Tensor, "B *S"]:
    """Keep the pixels predicted as class k with probability (1 - s_k) / max (1 - s): well learned classes seldom teach.

    Args:
        predicted: class of each pixel by the student.
        class_confidence: s, running confidence of each class, below 1 for at least one.
        draws: uniform in [0, 1), one map per class, shared by the images; large ones keep a pixel (AEL).

    >>> sure = torch.tensor([0.9, 0.5])
    >>> sampled_by_class(torch.tensor([[0, 0, 1]]), sure, torch.tensor([[0.9, 0.7, 0.9], [0.1, 0.1, 0.1]])).tolist()
    [[True, False, True]]
    """
    rate = (1 - class_confidence) / (1 - class_confidence).max()
    drawn = draws.expand(len(predicted), *draws.shape).gather(1, predicted[:, None])[:, 0]
    return drawn > 1 - rate[predicted]


class GlobalThreshold(nn.Module):
    """A threshold that follows the batches: g <- m g + (1 - m) mean over predicted classes of their largest confidence.

    Args:
        start: first g.
        momentum: m.

    >>> rule = GlobalThreshold(0.5, momentum=0.9)
    >>> label, everywhere = torch.tensor([[0, 0, 2]]), torch.ones(1, 3, dtype=torch.bool)
    >>> round(rule.update(label, torch.tensor([[0.2, 0.6, 0.8]]), everywhere, 4).item(), 4)
    0.52
    """

    def __init__(self, start: float = 0.85, momentum: float = 0.999) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.tensor(start))
        self.value: Tensor

    @torch.no_grad()
    def update(
        self, label: Int[Tensor, "B *S"], confidence: Float[Tensor, "B *S"], valid: Bool[Tensor, "B *S"], classes: int
    ) -> Float[Tensor, ""]:
        """Move the threshold on and return it; a batch without a valid pixel leaves it.

        Args:
            label: of each pixel.
            confidence: of the labels.
            valid: pixels that count.
            classes: K.
        """
        place = label.masked_fill(~valid, classes).flatten()
        most = confidence.new_zeros(classes + 1).scatter_reduce_(0, place, confidence.flatten(), "amax")[:classes]
        present = most > 0  # of K classes, a predicted one has at least 1 / K
        mean = most.sum() / present.sum().clamp_min(1)
        moved = self.momentum * self.value + (1 - self.momentum) * mean
        self.value.copy_(torch.where(present.any(), moved, self.value))
        return self.value.clone()


def kth_true(mask: Bool[Tensor, " N"], k: Int[Tensor, " M"]) -> Int[Tensor, " M"]:
    """Return the places of the k-th True entries, counted from 0; some place if there are fewer.

    >>> kth_true(torch.tensor([False, True, True, False, True]), torch.tensor([0, 2])).tolist()
    [1, 4]
    """
    return torch.searchsorted(mask.cumsum(0), k + 1).clamp(max=len(mask) - 1)


def drawn_true(mask: Bool[Tensor, " N"], count: int) -> Int[Tensor, " count"]:
    """Draw the places of `count` True entries, with replacement, without asking the device how many there are."""
    draws = torch.rand(count, device=mask.device, dtype=torch.float64)
    return kth_true(mask, (draws * mask.sum()).long())
