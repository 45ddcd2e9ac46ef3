"""Small heads that map embeddings to vectors for contrastive losses; methods hold them, bundles do not."""

from torch import nn


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
