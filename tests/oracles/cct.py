"""Cross-Consistency Training in its plain form: one decoder after the other, every map kept, every mask made anew.

Ouali et al., CVPR 2020, arXiv:2003.09005, in the order of its published code. Weights of a decoder are a list
[first (C, D, 1, 1), then per stage weight (4C, C, 1, 1) and bias (4C)].
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def decode(weights: Sequence[Tensor], z: Tensor) -> Tensor:
    """Logits (B, C, H, W) of one sub-pixel decoder."""
    x = F.conv2d(z, weights[0])
    for weight, bias in zip(weights[1::2], weights[2::2], strict=True):
        x = F.pixel_shuffle(F.relu(F.conv2d(x, weight, bias)), 2)
    return x


def feature_noise(z: Tensor, noise: Tensor) -> Tensor:
    """F-Noise."""
    return z * noise + z


def feature_drop(z: Tensor, gamma: float) -> Tensor:
    """F-Drop of a non-negative z."""
    activity = z.mean(1, keepdim=True)
    threshold = activity.flatten(1).max(1).values.view(-1, 1, 1, 1) * gamma
    return z * (activity < threshold)


def objects(prediction: Tensor, size: tuple[int, int]) -> Tensor:
    """Where a class above 0 is predicted, (B, 1, *size)."""
    mask = (prediction.argmax(1, keepdim=True) > 0).float()
    return F.interpolate(mask, size=size, mode="nearest")


def keep_objects(z: Tensor, prediction: Tensor) -> Tensor:
    """Con-Msk."""
    return z * objects(prediction, (z.shape[-2], z.shape[-1]))


def keep_context(z: Tensor, prediction: Tensor) -> Tensor:
    """Obj-Msk."""
    return z * (1 - objects(prediction, (z.shape[-2], z.shape[-1])))


def cutout(
    z: Tensor, size: tuple[int, int], boxes: Sequence[Sequence[tuple[int, int, int, int]]], erase: float,
    offsets: Sequence[Sequence[tuple[int, int]]],
) -> Tensor:  # fmt: skip
    """G-Cutout by drawing at full resolution: boxes (x0, y0, x1, y1) and offsets (x, y) of each image."""
    keep = torch.ones(len(z), 1, *size, dtype=z.dtype, device=z.device)
    for image, (own, moves) in enumerate(zip(boxes, offsets, strict=True)):
        for (x0, y0, x1, y1), (x, y) in zip(own, moves, strict=True):
            width, height = int((x1 - x0) * erase), int((y1 - y0) * erase)
            keep[image, :, y0 + y : y0 + y + height, x0 + x : x0 + x + width] = 0
    return z * F.interpolate(keep, size=z.shape[-2:], mode="nearest")


def adversarial(
    z: Tensor, head: Callable[[Tensor], Tensor], u: Tensor, xi: float, eps: float, steps: int = 1
) -> Tensor:
    """I-VAT by finite differences; `head` gives (B, C, H, W)."""

    def unit(d: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(d, dim=(1, 2, 3), keepdim=True)
        return d / (length + 1e-8)

    with torch.no_grad():
        target = head(z.detach()).softmax(1)
    d = unit(u - 0.5)
    for _ in range(steps):
        with torch.enable_grad():
            d = d.detach().requires_grad_()
            loss = F.kl_div(head(z.detach() + xi * d).log_softmax(1), target, reduction="batchmean")
            d = unit(torch.autograd.grad(loss, d)[0])
    return z + eps * d.detach()


def mse(logits: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference to a target distribution, over pixels and classes."""
    return F.mse_loss(logits.softmax(1), target)


def auxiliary_loss(
    z: Tensor,
    heads: Sequence[Sequence[Tensor]],
    perturbations: Sequence[Callable[[Tensor], Tensor]],
    target: Tensor,
    distance: Callable[[Tensor, Tensor], Tensor] = mse,
) -> Tensor:
    """Average the distance over all decoders, each on its perturbed z."""
    losses = [
        distance(decode(weights, perturb(z)), target) for weights, perturb in zip(heads, perturbations, strict=True)
    ]
    return sum(losses, z.new_zeros(())) / len(losses)
