"""Perturbations of an embedding, as pairs `sample` (draw) and `apply` (use a draw).

Ouali et al., "Semi-Supervised Semantic Segmentation with Cross-Consistency Training", CVPR 2020, arXiv:2003.09005.
z is the embedding (B, D, h, w), the guide is what the main decoder predicted.

    FeatureNoise    F-Noise    z * (1 + N),  N ~ U(-r, r) of shape (D, h, w), one for the whole batch
    FeatureDrop     F-Drop     z * 1[a < gamma max a],  a = mean over channels,  gamma ~ U(lo, hi)
    ChannelDrop     DropOut    whole channels are dropped, the others divided by 1 - p
    KeepObjects     Con-Msk    z * M: the context is removed
    KeepContext     Obj-Msk    z * (1 - M): the objects are removed
    GuidedCutout    G-Cutout   z * (1 - a random part of the box of every object)
    Adversarial     I-VAT      z + r, r the direction in which the prediction changes most (`halfmask.views.vat`)

All but the last multiply z by a factor that broadcasts against it: `factor` gives it for all draws at once, so that a
caller may move a factor without channels behind a convolution without bias. Draws carry one leading axis per auxiliary
decoder. Nothing here detaches z: masks and noise are constants through which the gradient reaches the encoder.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from halfmask.errors import ShapeError
from halfmask.views.components import Boxes, BoxRule, object_boxes


class Guide(NamedTuple):
    """What guided perturbations know of the main decoder's prediction; made once for all of them."""

    objects: Bool[Tensor, "B h w"]  # M, where an object-like class is predicted, at the cells of the embedding
    boxes: Boxes  # of the objects, for G-Cutout


def make_guide(
    label: Int[Tensor, "B H W"],
    foreground: Bool[Tensor, " K"],
    size: tuple[int, int],
    *,
    rule: BoxRule = "cells",
    cell: int = 8,
    min_area: float = 1 / 400,
) -> Guide:
    """Find objects in the predicted classes.

    Args:
        label: predicted classes at the resolution of the decoder's logits.
        foreground: which classes are object-like.
        size: of the embedding; `label` is resized to it by nearest neighbor (with an exact factor: the top-left pixel
            of each cell).
        rule: as for `object_boxes`.
        cell: as for `object_boxes`.
        min_area: as for `object_boxes`.
    """
    mask = foreground[label]
    rows, columns = (nearest_index(new, old, mask.device) for new, old in zip(size, mask.shape[-2:], strict=True))
    boxes = object_boxes(mask, rule, cell=cell, min_area=min_area)
    return Guide(mask[:, rows][:, :, columns], boxes)


def nearest_index(new: int, old: int, device: torch.device | str | None = None) -> Int[Tensor, " new"]:
    """Return for each of `new` positions the one of `old` that nearest-neighbor resizing takes: floor(i * old / new).

    >>> nearest_index(3, 24).tolist(), nearest_index(4, 2).tolist()
    ([0, 8, 16], [0, 0, 1, 1])
    """
    return torch.arange(new, device=device) * old // new


@runtime_checkable
class Perturbation(Protocol):
    """A multiplicative perturbation."""

    def sample(
        self, z: Float[Tensor, "B D h w"], guide: Guide | None, count: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw what `count` decoders need; the first axis counts them."""
        ...

    def factor(self, z: Float[Tensor, "B D h w"], draws: Tensor) -> Float[Tensor, "n _B _D _h _w"]:
        """Return the factor of z for each draw; axes of size 1 broadcast."""
        ...


def apply(perturbation: Perturbation, z: Float[Tensor, "B D h w"], draw: Tensor) -> Float[Tensor, "B D h w"]:
    """Perturb z by one draw, one row of what `sample` gave."""
    return z * perturbation.factor(z, draw[None])[0]


class FeatureNoise(NamedTuple):
    """F-Noise."""

    limit: float = 0.3  # r
    per_image: bool = False  # draw N for each image; CCT's code shares it in the batch

    def sample(
        self, z: Float[Tensor, "B D h w"], guide: Guide | None, count: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n _B D h w"]:
        """Draw N."""
        batch = len(z) if self.per_image else 1
        u = _uniform((count, batch, *z.shape[1:]), z, generator)
        return (2 * u - 1) * self.limit

    def factor(self, z: Float[Tensor, "B D h w"], draws: Float[Tensor, "n _B D h w"]) -> Float[Tensor, "n _B D h w"]:
        """Return 1 + N."""
        return 1 + draws


class FeatureDrop(NamedTuple):
    """F-Drop: the most active cells are dropped.

    For z of one sign (behind a ReLU) as in CCT's code: a = mean over channels, threshold gamma * max(a) of each image.
    For signed z, where the mean may cancel or be negative everywhere: a = mean |z|, scaled to [0, 1] in each image.
    """

    low: float = 0.7  # of gamma; 0.7 in CCT's code, 0.6 in the paper
    high: float = 0.9  # of gamma

    def sample(
        self, z: Float[Tensor, "B D h w"], guide: Guide | None, count: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, " n"]:
        """Draw one gamma per decoder, shared by the batch."""
        return self.low + (self.high - self.low) * _uniform((count,), z, generator)

    def factor(self, z: Float[Tensor, "B D h w"], draws: Float[Tensor, " n"]) -> Float[Tensor, "n B 1 h w"]:
        """Return 1 where the activity is below the threshold."""
        z = z.detach()
        plain, size = z.mean(1, keepdim=True), z.abs().mean(1, keepdim=True)  # (B, 1, h, w)
        lowest, highest = size.amin((2, 3), keepdim=True), size.amax((2, 3), keepdim=True)
        scaled = (size - lowest) / (highest - lowest).clamp_min(torch.finfo(z.dtype).tiny)
        signed = (z < 0).any()  # stays on the device
        activity = torch.where(signed, scaled, plain)
        gamma = draws.view(-1, 1, 1, 1, 1).to(z)
        return (activity < gamma * activity.amax((2, 3), keepdim=True)).to(z)


class ChannelDrop(NamedTuple):
    """DropOut."""

    p: float = 0.5  # probability of dropping
    spatial: bool = True  # whole channels; `False`: single values

    def sample(
        self, z: Float[Tensor, "B D h w"], guide: Guide | None, count: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n B D _h _w"]:
        """Draw 0 or 1 / (1 - p) for each image and channel."""
        shape = (*z.shape[:2], 1, 1) if self.spatial else z.shape
        keep = _uniform((count, *shape), z, generator) >= self.p
        return keep.to(z) / (1 - self.p)

    def factor(self, z: Float[Tensor, "B D h w"], draws: Float[Tensor, "n B D _h _w"]) -> Float[Tensor, "n B D _h _w"]:
        """Return the draw itself."""
        return draws.to(z)


class KeepObjects(NamedTuple):
    """Con-Msk: nothing is drawn. Without any object z becomes 0."""

    def sample(
        self, z: Float[Tensor, "B D h w"], guide: Guide | None, count: int, generator: torch.Generator | None = None
    ) -> Bool[Tensor, "n B 1 h w"]:
        """Return M, the same for all decoders."""
        return _needed(guide).objects[:, None].expand(count, -1, -1, -1, -1)

    def factor(self, z: Float[Tensor, "B D h w"], draws: Shaped[Tensor, "n B 1 h w"]) -> Float[Tensor, "n B 1 h w"]:
        """Return the draw itself."""
        return draws.to(z)


class KeepContext(NamedTuple):
    """Obj-Msk: nothing is drawn."""

    def sample(
        self, z: Float[Tensor, "B D h w"], guide: Guide | None, count: int, generator: torch.Generator | None = None
    ) -> Bool[Tensor, "n B 1 h w"]:
        """Return 1 - M, the same for all decoders."""
        return ~_needed(guide).objects[:, None].expand(count, -1, -1, -1, -1)

    def factor(self, z: Float[Tensor, "B D h w"], draws: Shaped[Tensor, "n B 1 h w"]) -> Float[Tensor, "n B 1 h w"]:
        """Return the draw itself."""
        return draws.to(z)


class GuidedCutout(NamedTuple):
    """G-Cutout."""

    erase: float = 0.4  # share of width and of height that is cut from each box: 0.4 removes 16 % of the box

    def sample(
        self, z: Float[Tensor, "B D h w"], guide: Guide | None, count: int, generator: torch.Generator | None = None
    ) -> Bool[Tensor, "n B 1 h w"]:
        """Draw a corner per decoder and box; True is kept."""
        boxes = _needed(guide).boxes
        u = _uniform((count, *boxes.corners.shape[:2], 2), z, generator)
        limit = cut_range(boxes.corners, self.erase)
        # Rounding of u * (limit + 1) may reach limit + 1.
        offset = torch.minimum((u * (limit + 1)).long(), limit)
        return cut_mask(boxes, offset, self.erase, (z.shape[-2], z.shape[-1]))[:, :, None]

    def factor(self, z: Float[Tensor, "B D h w"], draws: Shaped[Tensor, "n B 1 h w"]) -> Float[Tensor, "n B 1 h w"]:
        """Return the draw itself."""
        return draws.to(z)


def cut_range(corners: Int[Tensor, "B N 4"], erase: float) -> Int[Tensor, "B N 2"]:
    """Return the largest offset (x, y) of the cut in each box, inclusive: int(w (1 - e)) with w = x1 - x0."""
    return _scaled(corners[..., 2:] - corners[..., :2], 1 - erase)


def cut_mask(
    boxes: Boxes, offset: Int[Tensor, "n B N 2"], erase: float, size: tuple[int, int]
) -> Bool[Tensor, "n B h w"]:
    """Draw the cuts, one per used box, directly at the resolution `size`; True is kept.

    The cut is [x0 + ox, x0 + ox + int(w e)) by [y0 + oy, y0 + oy + int(h e)) at the resolution of the boxes, then
    resized by nearest neighbor.
    """
    extent = _scaled(boxes.corners[..., 2:] - boxes.corners[..., :2], erase)  # (B, N, 2)
    start = boxes.corners[..., :2] + offset  # (n, B, N, 2)
    stop = start + extent
    spans = []
    for axis, new, old in ((1, size[0], boxes.size[0]), (0, size[1], boxes.size[1])):
        position = nearest_index(new, old, offset.device)
        inside = (position >= start[..., axis, None]) & (position < stop[..., axis, None])  # (n, B, N, new)
        spans.append((inside & boxes.used[..., None]).float())
    # A pixel is cut if any box covers both its row and its column.
    return torch.einsum("nbky,nbkx->nbyx", spans[0], spans[1]) == 0


def _scaled(length: Tensor, share: float) -> Tensor:
    # As Python's int(length * share), which works in double precision.
    exact = torch.float32 if length.device.type == "mps" else torch.float64
    return (length.to(exact) * share).long()


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(shape, device=like.device, dtype=like.dtype, generator=generator)


def _needed(guide: Guide | None) -> Guide:
    if guide is None:
        raise ShapeError("this perturbation follows the main prediction: give it a guide, made by make_guide().")
    return guide
