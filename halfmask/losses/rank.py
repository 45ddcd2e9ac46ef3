"""Rank-aware consistency of pixel correlations (RankMatch).

Mai et al., "RankMatch: Exploring the Better Consistency Regularization for Semi-supervised Semantic Segmentation", CVPR
2024.

    agents   n pixels of the weak features that are as orthogonal as can be: the first at random, then always the pixel
             whose largest |cosine| to the agents so far is smallest; the same places serve the strong features
    a        softmax over agents of f_pixel . f_agent            of weak and of strong features
    top      the k agents with the largest a_weak of each pixel
    P(order) = product over i of a_i / sum_{j >= i} a_j          Plackett-Luce, for all k! orders of `top`
    L        = mean over pixels and orders of P_weak (log P_weak - log P_strong)

The mean divides by k! too, as the published code does (PyTorch's reduction "mean"); 1e-10 is added to each sum and
inside the second logarithm, as there: strong probabilities far below it weigh less than the formula says.
"""

from itertools import permutations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_TINY = 1e-10


def rank_consistency(
    weak: Float[Tensor, "B D h w"],
    strong: Float[Tensor, "B D h w"],
    *,
    agents: int,
    top: int,
    first: Int[Tensor, " B"] | None = None,
) -> Float[Tensor, ""]:
    """Compute the rank consistency loss, as the text at the top of this file defines it.

    Args:
        weak: features of the weak view; no gradient flows into them.
        strong: features of the strong view, of the same pixels.
        agents: n; never more than there are pixels.
        top: k; the cost grows with k!.
        first: place of the first agent of each image; drawn by default.
    """
    weak, strong = (features.float().flatten(2).transpose(1, 2) for features in (weak.detach(), strong))  # (B, N, D)
    places = orthogonal_pixels(weak, min(agents, weak.shape[1]), first)
    a_weak, a_strong = (_to_agents(features, places) for features in (weak, strong))  # (B, N, n)
    best, which = a_weak.topk(min(top, places.shape[1]), dim=-1)
    p_weak, p_strong = order_probabilities(best), order_probabilities(a_strong.gather(-1, which))
    # log of a probability that is 0 in single precision; such orders add nothing.
    log_weak = p_weak.clamp_min(torch.finfo(p_weak.dtype).tiny).log()
    return (p_weak * (log_weak - (p_strong + _TINY).log())).mean()


@torch.no_grad()
def orthogonal_pixels(
    features: Float[Tensor, "B N D"], count: int, first: Int[Tensor, " B"] | None = None
) -> Int[Tensor, "B count"]:
    """Choose pixels greedily, each with the smallest largest |cosine| to those before it."""
    unit = F.normalize(features, dim=-1)
    images = torch.arange(len(unit), device=unit.device)
    if first is None:
        first = torch.randint(unit.shape[1], (len(unit),), device=unit.device)
    chosen, nearest = [first], torch.zeros(unit.shape[:2], device=unit.device)
    # One small matrix product per agent: each choice depends on all before it.
    for _ in range(count - 1):
        cosine = (unit @ unit[images, chosen[-1], :, None]).squeeze(-1).abs()  # (B, N)
        nearest = torch.maximum(nearest, cosine)
        nearest = nearest.scatter(1, chosen[-1][:, None], 2.0)  # above every cosine: never chosen twice
        chosen.append(nearest.argmin(1))
    return torch.stack(chosen, dim=1)


def order_probabilities(strength: Float[Tensor, "*S k"]) -> Float[Tensor, "*S orders"]:
    """Return the Plackett-Luce probability of every order of k strengths, as `itertools.permutations` lists them."""
    orders = torch.tensor(list(permutations(range(strength.shape[-1]))))
    ordered = strength[..., orders.to(strength.device, non_blocking=True)]  # (*S, k!, k)
    left = ordered.flip(-1).cumsum(-1).flip(-1)
    return (ordered / (left + _TINY)).prod(-1)


def _to_agents(features: Tensor, places: Tensor) -> Tensor:
    own = features.gather(1, places[..., None].expand(-1, -1, features.shape[-1]))  # (B, n, D)
    return (features @ own.transpose(1, 2)).softmax(-1)
