"""Class activation maps, and the pseudo-masks that image-level labels make of them.

Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, arXiv:1512.04150. With w_k the
bias-free classifier of class k on the features f of an image, whose image-level score is the mean of w_k f over all
cells:

    m_k       = sum over scales and mirrored images of ReLU(w_k f)      0 for classes the tags do not name
    cam_k     = m_k / (max over pixels m_k + 1e-5)
    y(s)      = argmax over the classes of (s for background, cam_k)
    y         = y(high) where that is no background; background where y(low) is; unknown elsewhere

as the pseudo-labels of CCT with image-level labels are made (Ouali, Hudelot, Tami, CVPR 2020, arXiv:2003.09005, section
3.3; the two thresholds are those of its published code, 0.30 and 0.05).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

_FLOOR = 1e-5  # of a map's maximum

Refine = Callable[[Int[Tensor, "H W"]], Int[Tensor, "H W"]]


def activation_maps(
    scores: Callable[[Tensor], Tensor],
    image: Float[Tensor, "C H W"],
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = True,
    multiple: int = 1,
) -> Float[Tensor, "K H W"]:
    """Sum the rectified class scores of an image over scales and mirrored copies.

    Args:
        scores: images (B, C, H', W') to class scores (B, K, h, w).
        image: values in [0, 1].
        scales: of the image's sides.
        flip: also of the mirrored image.
        multiple: sides that `scores` takes are multiples of it.

    >>> activation_maps(lambda x: x.sum(1, keepdim=True) - 1, torch.ones(3, 4, 4)).mean().item()
    4.0
    """
    height, width = image.shape[-2:]
    total = torch.zeros((), device=image.device)
    for scale in scales:
        size = [max(multiple, round(side * scale / multiple) * multiple) for side in (height, width)]
        scaled = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)
        maps = scores(scaled).relu()
        if flip:
            maps = maps + scores(scaled.flip(-1)).relu().flip(-1)
        total = total + F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)[0]
    return total


def pseudo_mask(
    maps: Float[Tensor, "K H W"],
    tags: Bool[Tensor, " K"],
    *,
    high: float,
    low: float,
    background: int | None = 0,
    ignore_index: int = 255,
    refine: Refine | None = None,
) -> Int[Tensor, "H W"]:
    """Label the pixels that are surely a tagged class or surely background; the rest is ignored.

    Args:
        maps: sums of rectified scores.
        tags: classes that the image shows; none: nothing is known of it.
        high: background score above which a class must be to be labeled.
        low: background score below which all classes must be for background.
        background: its class; `None`: there is none, and what is no class stays unknown.
        ignore_index: label of unknown pixels.
        refine: acts on each of the two label maps, for example `halfmask.teaching.dense_crf`.

    >>> maps = torch.tensor([[[0.0, 0.0, 0.0]], [[9.0, 1.0, 0.1]]])  # background, class 1
    >>> pseudo_mask(maps, torch.tensor([True, True]), high=0.3, low=0.05).tolist()
    [[1, 255, 0]]
    """
    known = tags.clone()
    if background is not None:
        known[background] = False
    if not tags.any():
        return torch.full(maps.shape[1:], ignore_index, dtype=torch.int64, device=maps.device)
    maps = maps * known[:, None, None]
    cam = maps / (maps.amax((1, 2), keepdim=True) + _FLOOR)  # (K, H, W)
    nothing = -1  # stands for background until the end

    def labels(score: float) -> Tensor:
        best, label = cam.max(0)
        label = torch.where(best > score, label, nothing)
        return label if refine is None else refine(label)

    certain, possible = labels(high), labels(low)
    rest = torch.full_like(certain, ignore_index)
    if background is not None:
        rest = torch.where((certain == nothing) & (possible == nothing), background, rest)
    return torch.where(certain != nothing, certain, rest)
