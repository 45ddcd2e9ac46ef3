"""Distribution alignment: pseudo-labels that occur as often as they should.

Berthelot et al., "ReMixMatch: Semi-Supervised Learning with Distribution Alignment and Augmentation Anchoring", ICLR
2020, arXiv:1911.09785, section 3.2.1. With q the prediction of the weak view of an unlabeled image,

    q' = normalize(q * p / p~)        p~ = mean prediction of unlabeled images, over the last 128 batches

Of segmentation, pixels take the place of images, and only the labels tell how often a class should occur. It keeps rare
classes alive: a network of few masks predicts them too seldom, and what it does not predict its pseudo-labels unlearn.

The target p is the share of each class among the labels of the last 128 labeled batches (`labeled`, as in the paper),
or the same for all classes (`uniform`, which is that of labels drawn evenly per class, without its noise). Where the
paper sharpens q' to a soft label, methods here take its maximum and its class.

Before the first batch both windows are filled with uniform rows, so that alignment sets in slowly; the batch at hand
counts. In AdaMatch (Berthelot et al., ICLR 2022, arXiv:2106.04732), by contrast, p is the mean prediction of labeled
images.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from halfmask.errors import RecipeError
from halfmask.teaching.dist import all_sum

AlignmentName = Literal["none", "uniform", "labeled"]
_WINDOW = 128  # batches
_SMALLEST = 1e-6  # added to both shares: a class that was never predicted has a finite ratio


class DistributionAlignment(nn.Module):
    """What was predicted and what was labeled lately, saved with the method's state and equal on all ranks.

    Args:
        classes: K.
        target: see the equation above.
        ignore_index: label of unknown class.
        window: batches that the means are taken over.
    """

    def __init__(
        self,
        classes: int,
        target: Literal["uniform", "labeled"] = "uniform",
        *,
        ignore_index: int = -1,
        window: int = _WINDOW,
    ) -> None:
        super().__init__()
        self.target, self.ignore_index = target, ignore_index
        self.register_buffer("predicted", torch.full((window, classes), 1 / classes))
        self.register_buffer("labeled", torch.full((window if target == "labeled" else 1, classes), 1 / classes))
        self.predicted: Float[Tensor, "W K"]  # oldest batch first
        self.labeled: Float[Tensor, "V K"]

    @torch.no_grad()
    def forward(self, logits: Float[Tensor, "B K *S"], labels: Int[Tensor, "L *R"]) -> Float[Tensor, "B K *S"]:
        """Update with one batch and return logits whose softmax is q', without gradient and in float32 at least.

        Args:
            logits: of the weak views of unlabeled images.
            labels: of the labeled images of the same step, or of their pixels.

        >>> align = DistributionAlignment(2, window=1)
        >>> logits = torch.tensor([[0.9, 0.1], [0.7, 0.3]]).log()
        >>> align(logits, torch.tensor([0])).softmax(1)[1].round(decimals=3)  # 0.7 / 0.8 : 0.3 / 0.2
        tensor([0.3680, 0.6320])
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        share = logits.softmax(1).movedim(1, 0).flatten(1).sum(1)  # (K,)
        _push(self.predicted, _share(share))
        if self.target == "labeled":
            _push(self.labeled, _share(self._counts(labels.flatten())))
        ratio = (self.labeled.mean(0) + _SMALLEST) / (self.predicted.mean(0) + _SMALLEST)
        return logits + ratio.log().view(
            -1, *[1] * (logits.ndim - 2)
        )  # a factor on each probability, up to the sum that softmax divides by

    def _counts(self, labels: Int[Tensor, " L"]) -> Float[Tensor, " K"]:
        classes = self.labeled.shape[1]
        bins = labels.masked_fill(labels == self.ignore_index, classes)
        counts = torch.zeros(classes + 1, device=labels.device)
        return counts.scatter_add_(0, bins, torch.ones_like(bins, dtype=counts.dtype))[:classes]


def alignment_of(kind: str, classes: int, name: AlignmentName, ignore_index: int) -> DistributionAlignment | None:
    """Make the alignment that a method asks for.

    Raises:
        RecipeError: equal shares of all classes are asked for where pixels are labeled.
    """
    if name == "none":
        return None
    if kind != "classification" and name == "uniform":
        raise RecipeError(
            f"method.distribution_alignment=uniform wants all classes equally often, but the task is {kind}: classes "
            "of pixels are not equally frequent. Use method.distribution_alignment=labeled, or none."
        )
    return DistributionAlignment(classes, name, ignore_index=ignore_index)


def _share(amount: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """Return the share of each class over all ranks; equal shares if no rank has any."""
    amount = all_sum(amount)
    total = amount.sum()
    return torch.where(total > 0, amount / total.clamp_min(_SMALLEST), 1 / len(amount))


def _push(rows: Float[Tensor, "W K"], row: Float[Tensor, " K"]) -> None:
    rows.copy_(torch.cat((rows[1:], row[None].to(rows.dtype))))
