"""Running statistics of every class: how sure a network is of it, and how its features vary.

    ClassConfidence    s_k <- m s_k + (1 - m) mean of p_k over the labeled pixels of class k, 0 where there is none
                       rates of mixing in a class: exp(1 - s_k) or exp(sqrt(1 - s_k)), divided by their sum
                       Hu et al., AEL, NeurIPS 2021, arXiv:2110.05474, section 3.2
    ClassCovariance    mean and variance of each feature over all vectors of class k so far
                       s_c <- s_c + r / 2 sum_a (w_c - w_k)_a^2 var_(k, a)          of a vector labeled k
                       Wang et al., ISDA, NeurIPS 2019, arXiv:1909.12220, equation 5, with a diagonal covariance as in
                       MKD (Yuan et al., ACM MM 2023)

s also decides which pixels teach (`halfmask.teaching.weighting.sampled_by_class`). On several processes the statistics
are those of all batches together. Class K stands for "left out". Nothing here reads a value on the host; no method
here uses it yet.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from halfmask.teaching.dist import all_sum


class ClassConfidence(nn.Module):
    """Running mean of the probability that labeled pixels of each class get for their class.

    Args:
        classes: K.
        momentum: m.

    >>> bank = ClassConfidence(2, momentum=0.5)
    >>> bank.update(torch.zeros(1, 2, 3), torch.tensor([[0, 0, 255]])).tolist()
    [0.25, 0.0]
    """

    def __init__(self, classes: int, momentum: float = 0.999) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(classes))
        self.value: Float[Tensor, " K"]

    @torch.no_grad()
    def update(self, logits: Float[Tensor, "B K *S"], label: Int[Tensor, "B *S"]) -> Float[Tensor, " K"]:
        """Move s on by one batch and return it; a class without a pixel moves toward 0, as in AEL's code.

        Args:
            logits: of the student on labeled images.
            label: labels outside 0 ... K - 1 are ignored.
        """
        classes = len(self.value)
        known = (label >= 0) & (label < classes)
        own = logits.float().softmax(1).gather(1, label.masked_fill(~known, 0).long()[:, None])[:, 0]
        place = label.masked_fill(~known, classes).long().flatten()
        total = own.new_zeros(2, classes + 1)
        total[0].scatter_add_(0, place, own.flatten())
        total[1].scatter_add_(0, place, torch.ones_like(own).flatten())
        probability, count = all_sum(total)[:, :classes]
        self.value.lerp_((probability / count.clamp_min(1)).to(self.value.dtype), 1 - self.momentum)
        return self.value.clone()

    def rates(self, of: Literal["boxes", "copies"]) -> Float[Tensor, " K"]:
        """Return how often each class is to be mixed in: the less sure, the more often.

        Args:
            of: `boxes` around a predicted object (CutMix), or `copies` of labeled pixels, whose rates differ less.
        """
        unsure = 1 - self.value
        return (unsure if of == "boxes" else unsure.sqrt()).softmax(0)


def draw_classes(rates: Float[Tensor, " K"], images: int, count: int = 1) -> Bool[Tensor, "images K"]:
    """Draw `count` different classes for each image, one after the other in proportion to the rates.

    >>> draw_classes(torch.tensor([0.0, 1.0, 1.0]), images=1, count=2).tolist()
    [[False, True, True]]
    """
    # Exponential clocks: the first to ring are a draw without replacement. `torch.multinomial` visits the host.
    clocks = torch.empty(images, len(rates), device=rates.device).exponential_() / rates
    first = clocks.topk(count, dim=1, largest=False).indices
    return torch.zeros_like(clocks, dtype=torch.bool).scatter_(1, first, True)


class ClassCovariance(nn.Module):
    """Mean and variance of the features of each class over all batches so far.

    Args:
        classes: K.
        width: d, length of a vector.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(classes, width))
        self.register_buffer("variance", torch.zeros(classes, width))
        self.register_buffer("count", torch.zeros(classes))
        self.mean: Float[Tensor, "K d"]
        self.variance: Float[Tensor, "K d"]
        self.count: Float[Tensor, " K"]  # vectors so far

    @torch.no_grad()
    def update(self, vectors: Float[Tensor, "N d"], classes: Int[Tensor, " N"]) -> None:
        """Take in the vectors of a batch.

        Args:
            vectors: features before the classifier.
            classes: of every vector; K leaves it out.
        """
        vectors, number = vectors.to(self.mean.dtype), len(self.count)
        count = all_sum(self.count.new_zeros(number + 1).index_add_(0, classes, torch.ones_like(vectors[:, 0])))
        divisor = count.clamp_min(1)[:, None]
        empty = vectors.new_zeros(number + 1, vectors.shape[1])
        mean = all_sum(empty.index_add(0, classes, vectors)) / divisor
        variance = all_sum(empty.index_add(0, classes, (vectors - mean[classes]).square())) / divisor
        mean, variance, count = mean[:number], variance[:number], count[:number]
        new = (count / (count + self.count).clamp_min(1))[:, None]  # part of the batch in all vectors
        apart = (self.mean - mean).square() * new * (1 - new)
        self.variance.lerp_(variance, new).add_(apart)
        self.mean.lerp_(mean, new)
        self.count += count

    def augmented(
        self, logits: Float[Tensor, "N K"], classes: Int[Tensor, " N"], weight: Float[Tensor, "K d"], ratio: float
    ) -> Float[Tensor, "N K"]:
        """Return the logits that stand for endlessly many features around each vector (ISDA).

        Args:
            logits: of the vectors.
            classes: of every vector; those of K stay as they are.
            weight: of the classifier; no gradient flows into it by this term.
            ratio: r, rises during training.
        """
        weight = weight.detach()
        between = (weight[None] - weight[:, None]).square()  # (k, c, d)
        spread = (between * self.variance[:, None]).sum(-1)  # (k, c)
        spread = torch.cat((spread, spread.new_zeros(1, len(spread))))  # class K: nothing
        return logits + ratio / 2 * spread[classes]
