"""Dropping whole channels of feature maps: independently, or complementarily in two views.

Channel dropout (Dropout2d; Tompson et al., CVPR 2015, arXiv:1411.4280) is the feature perturbation of UniMatch (Yang
et al., CVPR 2023, arXiv:2208.09910). Complementary dropout is that of UniMatch V2 (Yang et al., TPAMI 2025,
arXiv:2410.10777): with b images in each of two views and D channels,

    m  = 2 * Bernoulli(1/2)          (b, D)     view 1: a channel is dropped or doubled, at all positions alike
    m' = 2 - m                                  view 2: dropped where view 1 keeps it, and the reverse
    m = m' = 1                                  for half of the images, which stay as they are in both views

and all feature maps of an image share its row, where they are equally wide. Masks are 0, 1 or 2, exact in every dtype.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from halfmask.models.model import Logits, Model
from halfmask.models.statistics import pseudo_pass


def channel_masks(
    images: int,
    widths: Sequence[int],
    *,
    views: int = 2,
    complementary: bool = True,
    shared: bool = True,
    keep: Literal["exact", "bernoulli"] = "exact",
    device: torch.device | str | None = None,
) -> list[Float[Tensor, "VB _D"]]:
    """Draw the factors of every channel of every image, for all views of a batch.

    Args:
        images: b, images in each view.
        widths: D of each feature map.
        views: how often each image occurs in the batch; the batch is [view 1 of all images; view 2 of all images; ...].
        complementary: the second of each two views keeps what the first drops; otherwise each view draws its own.
        shared: one mask serves all maps if these are equally wide; otherwise each map gets its own. Which images stay
            undropped is the same for all maps.
        keep: undropped images are half of the batch, rounded down (`exact`), or each one with probability 1/2.
        device: of the masks.

    Returns:
        One (views * images, D) float32 mask for each map.

    >>> (mask,) = channel_masks(3, [8])
    >>> bool((mask[:3] + mask[3:] == 2).all()), int((mask == 1).all(1).sum())
    (True, 2)
    """
    order = torch.rand(images, device=device)
    # The rank of a random number is a random permutation: no host permutation has to be copied.
    undropped = order.argsort() < images // 2 if keep == "exact" else order < 0.5  # (b,)
    if shared and len(set(widths)) == 1:
        return [_masks(undropped, widths[0], views, complementary)] * len(widths)
    return [_masks(undropped, width, views, complementary) for width in widths]


def scale_channels(x: Float[Tensor, "B D *S"], mask: Float[Tensor, "B D"]) -> Float[Tensor, "B D *S"]:
    """Multiply each channel of each image by its factor.

    >>> scale_channels(torch.ones(1, 2, 1, 1), torch.tensor([[0.0, 2.0]])).flatten().tolist()
    [0.0, 2.0]
    """
    return x * mask.to(x.dtype).reshape(*mask.shape, *(1,) * (x.ndim - 2))


def drop_channels(features: list[Float[Tensor, "B _D _h _w"]], p: float = 0.5) -> list[Float[Tensor, "B _D _h _w"]]:
    """Replace each channel of each map by 0 with probability p, and scale the others by 1 / (1 - p).

    Always active: it is a perturbation, not a regularizer, and does not ask whether the network is in training mode.

    >>> torch.unique(drop_channels([torch.ones(4, 8, 2, 2)])[0]).tolist()
    [0.0, 2.0]
    """
    return [F.dropout2d(x, p, training=True) for x in features]


class Twice(NamedTuple):
    """What one pass gives that decodes its features twice: clean, and with dropped channels."""

    labeled: Logits  # logits of the labeled images, clean
    weak: Logits  # logits of the unlabeled images, clean
    dropped: Logits  # logits of the unlabeled images whose features lost channels
    embedding: Tensor  # (B, D, h, w) of the unlabeled images, clean and without a graph


def clean_and_dropped(
    net: Model,
    x_l: Float[Tensor, "_b *_t C H W"],
    x_u: Float[Tensor, "B *_t C H W"],
    drop: Callable[[list[Tensor]], list[Tensor]] = drop_channels,
) -> Twice:
    """Pass labeled and unlabeled images together, as UniMatch does; what labeled ones give with drops is not used.

    One pass, because it decides what batch-norm statistics are taken over; apart where `run.passes` says so.
    """
    size = (x_u.shape[-2], x_u.shape[-1])
    if net.passes_apart:
        labeled = net(x_l)
        with pseudo_pass(net):
            features = net.encode(x_u)
            doubled = [torch.cat(pair) for pair in zip(features, drop(features), strict=True)]
            embedding = net.embed(doubled)
            weak, dropped = net.classify(embedding, size).chunk(2)
        return Twice(labeled, weak, dropped, embedding[: len(x_u)].detach())
    features = net.encode(torch.cat((x_l, x_u)))
    doubled = [torch.cat(pair) for pair in zip(features, drop(features), strict=True)]
    embedding = net.embed(doubled)
    logits = net.classify(embedding, size)
    labeled, weak, _, dropped = logits.split([len(x_l), len(x_u)] * 2)
    return Twice(labeled, weak, dropped, embedding[len(x_l) : len(x_l) + len(x_u)].detach())


def _masks(undropped: Bool[Tensor, " b"], width: int, views: int, complementary: bool) -> Float[Tensor, "VB D"]:
    masks: list[Tensor] = []
    for view in range(views):
        if complementary and view % 2:
            continue
        kept = torch.rand(len(undropped), width, device=undropped.device) < 0.5
        both = _pair(kept, undropped)
        masks += both if complementary else both[:1]
    return torch.cat(masks[:views])


def _pair(kept: Bool[Tensor, "b D"], undropped: Bool[Tensor, " b"]) -> list[Float[Tensor, "b D"]]:
    mask = (2 * kept.float()).masked_fill(undropped[:, None], 1.0)
    return [mask, 2 - mask]  # 1 stays 1
