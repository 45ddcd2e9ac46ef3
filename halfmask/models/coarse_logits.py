"""Logits that are not upsampled yet: what a network in training gives under `run.stream_loss`.

Upsampled logits and what the loss keeps of them are the largest tensors of a step with many classes. Cross-entropies
of this package take `CoarseLogits` band by band (`halfmask.losses.upsampled`), with the same result; whatever
needs all logits at once gets them from `full`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from halfmask.models.confidence import top_class


@dataclass(frozen=True, slots=True)
class CoarseLogits:
    """A batch of logits that stands for its bilinear upsampling.

    Args:
        values: at the resolution of the classifier.
        size: (H, W) of the upsampled logits.
        align_corners: convention of the interpolation.

    >>> logits = CoarseLogits(torch.zeros(3, 2, 4, 4), (8, 8), False)
    >>> len(logits), [len(part) for part in logits.split([1, 2])], tuple(logits[:1].upsampled().shape)
    (3, [1, 2], (1, 2, 8, 8))
    """

    values: Float[Tensor, "B K h w"]
    size: tuple[int, int]
    align_corners: bool

    def __len__(self) -> int:
        """Images."""
        return len(self.values)

    def __getitem__(self, images: slice) -> "CoarseLogits":
        """Choose images."""
        return replace(self, values=self.values[images])

    def split(self, sizes: int | Sequence[int]) -> list["CoarseLogits"]:
        """Split into parts of so many images, as a tensor does."""
        return [replace(self, values=part) for part in self.values.split(sizes)]

    def chunk(self, count: int) -> list["CoarseLogits"]:
        """Split into so many parts, as a tensor does."""
        return [replace(self, values=part) for part in self.values.chunk(count)]

    def detach(self) -> "CoarseLogits":
        """Leave the graph."""
        return replace(self, values=self.values.detach())

    def upsampled(self) -> Float[Tensor, "B K H W"]:
        """Give all logits, as a network gives them otherwise."""
        return F.interpolate(self.values, size=self.size, mode="bilinear", align_corners=self.align_corners)

    @torch.no_grad()
    def top(self) -> tuple[Int[Tensor, "B H W"], Float[Tensor, "B H W"]]:
        """Give the best class of each pixel and its probability, image by image."""
        found = [top_class(part.upsampled()) for part in self.detach().split(1)]
        return torch.cat([label for label, _ in found]), torch.cat([confidence for _, confidence in found])


def full(logits: Tensor | CoarseLogits) -> Tensor:
    """Give logits of every pixel.

    >>> full(CoarseLogits(torch.zeros(1, 2, 4, 4), (8, 8), True)).shape
    torch.Size([1, 2, 8, 8])
    """
    return logits.upsampled() if isinstance(logits, CoarseLogits) else logits
