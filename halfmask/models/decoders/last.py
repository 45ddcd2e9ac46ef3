"""No decoder: the encoder's coarsest map under a bias-free linear classifier, as class activation maps need it.

Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016, arXiv:1512.04150: the mean of the
logits over all cells is the image's score, the logits of a cell are its share in it.
"""

from jaxtyping import Float
from torch import Tensor, nn

from halfmask.models.decoders._decoder import Decoder


class Last(Decoder):
    """The coarsest map as it is; no parameters."""

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__(channels, strides)
        self.embedding = channels[-1]

    def fuse(self, features: list[Float[Tensor, "B _D _h _w"]]) -> Float[Tensor, "B E h w"]:
        """Return the coarsest map."""
        return features[-1]

    def make_classifier(self, classes: int) -> nn.Module:
        """Make a 1x1 convolution without bias."""
        return nn.Conv2d(self.embedding, classes, 1, bias=False)
