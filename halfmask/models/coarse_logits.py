"""Logits that are not upsampled yet, as a network in training returns them under `run.stream_loss`.

Upsampled logits are the largest tensors of a step with many classes. The cross-entropies of this package take
`CoarseLogits` and upsample them band by band (`halfmask.losses.upsampled`), with the same result. Code that needs all
logits at once calls `full`.

`top_class` finds label and confidence in one pass over the logits, without the softmax map:

    label = argmax_k z_k,   confidence = exp(max_k z_k - log sum_k exp z_k)

On a CPU pixels are taken in groups that fit the cache, and the label is found by comparing with the maximum: 4 times
faster than softmax, argmax and maximum at 21 classes, 3 times at 150.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer, Shaped
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CoarseLogits:
    """A batch of logits that stands for its bilinear upsampling.

    >>> logits = CoarseLogits(torch.zeros(3, 2, 4, 4), (8, 8), False)
    >>> len(logits), [len(part) for part in logits.split([1, 2])], tuple(logits[:1].upsampled().shape)
    (3, [1, 2], (1, 2, 8, 8))
    """

    values: Float[Tensor, "B K h w"]  # at the resolution of the classifier
    size: tuple[int, int]  # (H, W) of the upsampled logits
    align_corners: bool  # convention of the interpolation

    def __len__(self) -> int:
        """Return the number of images."""
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
        """Return the same logits without gradient."""
        return replace(self, values=self.values.detach())

    def upsampled(self) -> Float[Tensor, "B K H W"]:
        """Return all logits, as a network gives them otherwise."""
        values = _for_softmax(self.values)
        return F.interpolate(values, size=self.size, mode="bilinear", align_corners=self.align_corners)

    @torch.no_grad()
    def top(self) -> tuple[Int[Tensor, "B H W"], Float[Tensor, "B H W"]]:
        """Return the best class of each pixel and its probability, image by image."""
        found = [top_class(part.upsampled()) for part in self.detach().split(1)]
        return torch.cat([label for label, _ in found]), torch.cat([confidence for _, confidence in found])


def full(logits: Tensor | CoarseLogits) -> Tensor:
    """Return the logits of every pixel.

    >>> full(CoarseLogits(torch.zeros(1, 2, 4, 4), (8, 8), True)).shape
    torch.Size([1, 2, 8, 8])
    """
    return logits.upsampled() if isinstance(logits, CoarseLogits) else logits


def _for_softmax(values: Tensor) -> Tensor:
    """Lay coarse logits out so that upsampling, cross-entropy and their gradients are fast on a CPU.

    The kernels take a vector of classes at once, or one class after the other where a pixel has fewer. Forward and
    backward at 252 pixels, one thread: 2 to 11 classes 2.5 to 3.2 times as fast class by class, 16 to 150 classes 1.2
    to 1.7 times as fast pixel by pixel.
    """
    if values.device.type != "cpu":
        return values
    if values.shape[1] < _VECTOR:
        return values.contiguous()
    return values.contiguous(memory_format=torch.channels_last) if values.requires_grad else values


_VECTOR = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8  # numbers of float32
_PIXELS = 4096  # of one group: 350 KB of float32 at 21 classes
_FEW = 64  # up to so many classes, turning logits that are stored channels last costs less than it saves


def top_class(logits: Float[Tensor, "B K *S"]) -> tuple[Int[Tensor, "B *S"], Float[Tensor, "B *S"]]:
    """Return label and confidence; float32, or float64 for float64 logits. Of equal classes, the first.

    >>> label, confidence = top_class(torch.tensor([[0.0, 0.0, 2.0]]))
    >>> label.item(), round(confidence.item(), 4)
    (2, 0.787)
    """
    if logits.device.type == "cpu" and logits.shape[1] <= 255 and logits.ndim > 2:
        return _in_groups(logits)
    logits = _full_precision(logits)
    top, label = logits.max(1)
    return label, torch.exp(top - logits.logsumexp(1))


def place_of(top: Shaped[Tensor, "*_"], values: Shaped[Tensor, "*_"], axis: int) -> Integer[Tensor, "*_"]:
    """Return where along an axis of at most 255 the maximum stands, as uint8; of equal values, the first.

    Far faster on a CPU than `max(axis).indices`, once the maximum is known.

    Args:
        top: `values.amax(axis)`.
        values: any.
        axis: to search.

    >>> x = torch.tensor([[1.0, 3.0, 3.0]])
    >>> place_of(x.amax(1), x, axis=1)
    tensor([1], dtype=torch.uint8)
    """
    # The first place has the largest code, so that the largest code is the first of equal values.
    count = values.shape[axis]
    codes = torch.arange(count, 0, -1, dtype=torch.uint8, device=values.device)
    codes = codes.view(-1, *[1] * (values.ndim - 1 - axis))
    best = ((values == top.unsqueeze(axis)) * codes).amax(axis)  # 0 where NaN makes nothing equal
    return count - best.clamp_min_(1)


def _in_groups(logits: Tensor) -> tuple[Tensor, Tensor]:
    images, _, *shape = logits.shape
    flat = logits.flatten(2)  # (B, K, N)
    label = torch.empty(images, flat.shape[2], dtype=torch.int64)
    total = torch.empty(images, flat.shape[2], dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)
    for image in range(images):
        for start in range(0, flat.shape[2], _PIXELS):
            group = slice(start, start + _PIXELS)
            z = _full_precision(flat[image, :, group])  # (K, n)
            z = z.contiguous() if len(z) <= _FEW else z  # turned, where the classes of a pixel are neighbors
            top = z.amax(0)
            label[image, group] = place_of(top, z, axis=0)
            torch.sum((z - top).exp_(), 0, out=total[image, group])
    return label.reshape(images, *shape), total.reciprocal_().reshape(images, *shape)


def _full_precision(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def row_mix(
    source: int, target: int, align_corners: bool, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each of `target` output rows the two of `source` rows it mixes and the weight of the second.

    >>> top, bottom, weight = row_mix(2, 4, False, torch.device("cpu"), torch.float32)
    >>> top.tolist(), bottom.tolist(), weight.tolist()
    ([0, 0, 0, 1], [1, 1, 1, 1], [0.0, 0.25, 0.75, 0.25])
    """
    row = torch.arange(target, device=device, dtype=torch.float64)
    if align_corners:
        position = row * ((source - 1) / max(target - 1, 1))
    else:
        position = ((row + 0.5) * (source / target) - 0.5).clamp_min(0)
    top = position.floor().long().clamp_max(source - 1)
    return top, (top + 1).clamp_max(source - 1), (position - top).to(dtype)
