"""One iteration of UniMatch V2 and of UniMatch in their textbook form: nothing joined, nothing fused, no tricks.

Networks are called through their seams: `encode(image)`, `decode(features)`, `classify(embedding, size)`. Strong views,
boxes and dropout masks are given, because these functions are compared with ones that draw them.
"""

from typing import Any

import torch
from torch import Tensor

from tests.oracles.losses import cross_entropy, masked_cross_entropy
from tests.oracles.mixing import paste_by_index
from tests.oracles.pseudo import pseudo_label

Weak = tuple[Tensor, Tensor, Tensor]  # label, confidence, valid: (B, H, W) each


def unimatch_v2_loss(
    student: Any,
    teacher: Any,
    labeled: tuple[Tensor, Tensor],
    weak: tuple[Tensor, Tensor],
    strong: list[Tensor],
    boxes: list[Tensor],
    mask: Tensor,
    threshold: float,
) -> Tensor:
    """Return (L_x + (L_1 + L_2) / 2) / 2 of one batch.

    Args:
        student: trained network.
        teacher: labels the weak views.
        labeled: images and labels.
        weak: unlabeled images and their validity.
        strong: two strong views before mixing, (B, C, H, W) each.
        boxes: (B, H, W) bool each; inside shows image B - 1 - j of the same view.
        mask: (2B, D) channel factors of the features of [view 1; view 2], the same for all maps.
        threshold: tau.
    """
    with torch.no_grad():
        label, confidence = pseudo_label(teacher(weak[0]))
    own = label, confidence, weak[1]
    loss_x = cross_entropy(student(labeled[0]), labeled[1])

    mixed = [paste_by_index(box, view, view.flip(0)) for box, view in zip(boxes, strong, strict=True)]
    features = [x * mask[:, :, None, None].to(x) for x in student.encode(torch.cat(mixed))]
    logits = student.classify(student.decode(features), weak[0].shape[-2:])
    losses = [
        _unlabeled_loss(part, _mix(box, own, _flip(own)), threshold)
        for part, box in zip(logits.chunk(2), boxes, strict=True)
    ]
    return (loss_x + (losses[0] + losses[1]) / 2) / 2


def unimatch_loss(
    student: Any,
    labeled: tuple[Tensor, Tensor],
    weak: tuple[Tensor, Tensor],
    partner: tuple[Tensor, Tensor],
    strong: list[tuple[Tensor, Tensor]],
    boxes: list[Tensor],
    masks: list[Tensor],
    threshold: float,
) -> Tensor:
    """Return (L_x + L_1 / 4 + L_2 / 4 + L_fp / 2) / 2 of one batch.

    Args:
        student: the only network, in training mode.
        labeled: images and labels.
        weak: unlabeled images and their validity.
        partner: images and validity to paste from.
        strong: (own, partner's) strong view, twice.
        boxes: (B, H, W) bool, twice.
        masks: (B_l + B_u, D) channel factors of each feature map.
        threshold: tau.
    """
    student.eval()
    with torch.no_grad():
        label, confidence = pseudo_label(student(partner[0]))
    other = label, confidence, partner[1]
    student.train()

    size, count = weak[0].shape[-2:], len(labeled[0])
    features = student.encode(torch.cat((labeled[0], weak[0])))
    dropped = [x * mask[:, :, None, None].to(x) for x, mask in zip(features, masks, strict=True)]
    doubled = [torch.cat(pair) for pair in zip(features, dropped, strict=True)]
    clean, perturbed = student.classify(student.decode(doubled), size).chunk(2)
    label, confidence = pseudo_label(clean[count:].detach())
    own = label, confidence, weak[1]

    mixed = [paste_by_index(box, *pair) for box, pair in zip(boxes, strong, strict=True)]
    losses = [
        _unlabeled_loss(part, _mix(box, own, other), threshold)
        for part, box in zip(student(torch.cat(mixed)).chunk(2), boxes, strict=True)
    ]
    loss_fp = _unlabeled_loss(perturbed[count:], own, threshold)
    loss_x = cross_entropy(clean[:count], labeled[1])
    return (loss_x + losses[0] / 4 + losses[1] / 4 + loss_fp / 2) / 2


def _mix(box: Tensor, own: Weak, other: Weak) -> Weak:
    label, confidence, valid = (
        paste_by_index(box, mine[:, None], theirs[:, None])[:, 0] for mine, theirs in zip(own, other, strict=True)
    )
    return label, confidence, valid


def _flip(weak: Weak) -> Weak:
    return weak[0].flip(0), weak[1].flip(0), weak[2].flip(0)


def _unlabeled_loss(logits: Tensor, weak: Weak, threshold: float) -> Tensor:
    label, confidence, valid = weak
    return masked_cross_entropy(logits, label, valid & (confidence >= threshold), valid)
