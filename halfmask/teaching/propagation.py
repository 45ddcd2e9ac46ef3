"""Labels that spread along the correlation of pixels.

Sun et al., "CorrMatch: Label Propagation via Correlation Matching for Semi-Supervised Semantic Segmentation", CVPR
2024, arXiv:2306.04300. With q and k two linear maps of the features to K channels, g a threshold and z the logits:

    correlation    C_ij = softmax over j of (q_i . k_j / sqrt K)
    spread_logits  z'_j = sum over i of z_i C_ij                     no gradient flows into z
    regions        row i of C at the image's size, scaled to [0, 1], > 1/2
    grow           a region takes one label if enough of its pixels are sure (a share >= g), and enough of these
                   agree (a share > g); then all of its pixels are sure

g is that of `halfmask.teaching.weighting.GlobalThreshold`. No method here uses these functions yet.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def correlation(queries: Float[Tensor, "B K h w"], keys: Float[Tensor, "B K h w"]) -> Float[Tensor, "B N N"]:
    """Return C in float32: how much each pixel (rows) corresponds to every other one; rows add up to 1."""
    q, k = queries.flatten(2).float(), keys.flatten(2).float()
    product: Tensor = q.transpose(1, 2) @ k / q.shape[1] ** 0.5
    return product.softmax(-1)


def spread_logits(
    logits: Float[Tensor, "B K H W"], related: Float[Tensor, "B N N"], size: tuple[int, int]
) -> Float[Tensor, "B K h w"]:
    """Return the sum of the logits of all pixels, weighted by their correlation with each one.

    Args:
        logits: of the network, at any resolution; no gradient flows into them.
        related: C; its gradient trains the linear maps.
        size: h and w, with h * w = N.

    >>> everything_to_the_last = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    >>> spread_logits(torch.tensor([[[[2.0, 3.0]]]]), everything_to_the_last, (1, 2)).tolist()
    [[[[0.0, 5.0]]]]
    """
    coarse = F.interpolate(logits.detach().float(), size=size, mode="bilinear", align_corners=True)
    spread: Tensor = torch.bmm(coarse.flatten(2), related).unflatten(2, size)
    return spread


@torch.no_grad()
def regions(
    related: Float[Tensor, "B N N"], rows: Int[Tensor, " R"], size: tuple[int, int], image: tuple[int, int]
) -> Bool[Tensor, "B R H W"]:
    """Return the pixels that correspond well to each of a few chosen ones.

    Args:
        related: C.
        rows: places of the chosen pixels, the same in all images (CorrMatch draws 128).
        size: h and w, with h * w = N.
        image: H and W.
    """
    maps = related[:, rows].unflatten(2, size)  # (B, R, h, w)
    maps = F.interpolate(maps, size=image, mode="bilinear", align_corners=True)
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return maps - low > (high - low) / 2


@torch.no_grad()
def grow(
    label: Int[Tensor, "B H W"],
    sure: Bool[Tensor, "B H W"],
    inside: Bool[Tensor, "B R H W"],
    valid: Bool[Tensor, "B H W"],
    threshold: Float[Tensor, ""],
    classes: int,
) -> tuple[Int[Tensor, "B H W"], Bool[Tensor, "B H W"]]:
    """Return the labels, and which pixels are sure, after all regions have grown at once; of two regions the last wins.

    Args:
        label: pseudo-labels, 0 ... K - 1.
        sure: pixels whose label is confident.
        inside: of each region.
        valid: pixels that count and may change: real ones, outside a pasted box.
        threshold: g.
        classes: K.

    >>> label, sure = torch.tensor([[[1, 1, 0]]]), torch.tensor([[[True, True, False]]])
    >>> everywhere = torch.ones(1, 1, 3, dtype=torch.bool)
    >>> grow(label, sure, everywhere[None], everywhere, torch.tensor(0.6), 2)
    (tensor([[[1, 1, 1]]]), tensor([[[True, True, True]]]))
    """
    inside, sure_now = inside & valid[:, None], sure & valid
    members = inside.flatten(2).float()  # (B, R, H * W)
    number = torch.arange(classes, device=label.device)  # not `one_hot`, which reads the labels on the host
    votes = (label[..., None] == number) & sure_now[..., None]  # (B, H, W, K)
    most, winner = (members @ votes.flatten(1, 2).float()).max(-1)  # (B, R)
    counted = (members @ sure_now.flatten(1)[..., None].float())[..., 0]
    # Regions without a pixel, or without a sure one, give 0 / 0, which is not above any threshold.
    takes = (counted / members.sum(-1) >= threshold) & (most / counted > threshold)
    place = torch.arange(1, inside.shape[1] + 1, device=label.device, dtype=torch.int16)
    last = (inside * (takes * place)[..., None, None]).amax(1).long()  # (B, H, W), 0: no region
    taken = winner.gather(1, (last - 1).clamp_min(0).flatten(1)).view(label.shape)
    return torch.where(last > 0, taken, label), sure | (last > 0)
