"""Small heads beside the decoder: vectors for contrastive losses, more logits; methods hold them, bundles do not."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def projection(width: int, out: int) -> nn.Sequential:
    """Build 1x1 convolution, batch norm, ReLU, 1x1 convolution (PixCon).

    Args:
        width: of the embedding and of the layer between.
        out: of the vectors.
    """
    return nn.Sequential(
        nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Conv2d(width, out, 1)
    )


def representation_head(width: int, out: int, hidden: int = 256, dropout: float = 0.1) -> nn.Sequential:
    """Build two 3x3 convolutions with norm, ReLU and channel dropout, then a 1x1 convolution (U2PL, GTA-Seg).

    Args:
        width: of the features.
        out: of the vectors, or the number of classes.
        hidden: width of the two convolutions.
        dropout: of whole channels.
    """
    layers: list[nn.Module] = []
    for inside in (width, hidden):
        layers += [nn.Conv2d(inside, hidden, 3, padding=1), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True)]
        layers.append(nn.Dropout2d(dropout))
    return nn.Sequential(*layers, nn.Conv2d(hidden, out, 1))


def auxiliary_head(width: int, classes: int, hidden: int = 256, dropout: float = 0.1) -> nn.Sequential:
    """Build a 3x3 convolution with norm, ReLU and channel dropout, then a 1x1 convolution.

    The head of FCN (Long et al., CVPR 2015) on the encoder's last map but one, as deep supervision (Zhao et al.,
    PSPNet, CVPR 2017) in the form of U2PL's code; also that of AEL and GTA-Seg.

    Args:
        width: of the map.
        classes: logits.
        hidden: width of the convolution.
        dropout: of whole channels.
    """
    return nn.Sequential(
        nn.Conv2d(width, hidden, 3, padding=1), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True),
        nn.Dropout2d(dropout), nn.Conv2d(hidden, classes, 1),
    )  # fmt: skip


def auxiliary_logits(
    head: nn.Module, maps: Sequence[Float[Tensor, "B _D _h _w"]], count: int, size: tuple[int, int]
) -> Float[Tensor, "_n K H W"]:
    """Return the logits of an auxiliary head for the first images of a batch.

    Args:
        head: of `auxiliary_head`; its norms see all images, as published.
        maps: of the encoder, fine to coarse; of a single map, that one is used.
        count: n, images that have labels.
        size: H and W.
    """
    logits: Tensor = F.interpolate(head(maps[-2:][0])[:count], size=size, mode="bilinear", align_corners=True)
    return logits
