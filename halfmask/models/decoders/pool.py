"""Global average pooling: the decoder of image classification.

Lin et al., "Network In Network", ICLR 2014, arXiv:1312.4400. The coarsest map is averaged over all its cells; one
linear layer gives the logits, as in ResNet and its successors.
"""

from jaxtyping import Float
from torch import Tensor

from halfmask.models.decoders._decoder import Decoder


class Pool(Decoder):
    """Average of the coarsest map; no parameters. Plain transformers are pooled over their patch tokens."""

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__(channels, strides)
        self.embedding = channels[-1]

    def fuse(self, features: list[Float[Tensor, "B _D _h _w"]]) -> Float[Tensor, "B E 1 1"]:
        """Average all cells."""
        return features[-1].mean((-2, -1), keepdim=True)
