"""The contract of a decoder: feature maps in, dense embedding out, and the classifier that fits it."""

from jaxtyping import Float
from torch import Tensor, nn


class Decoder(nn.Module):
    """Subclass it and define `__init__(channels, strides, *, ...)`, `fuse` and `refine`.

    Keyword-only constructor arguments are the recipe's schema.

    Attributes:
        embedding: width of `refine`'s output.
        align_corners: of the upsampling of the logits: SegFormer False; DPT, DeepLabV3+ and PSP True.
    """

    embedding: int
    align_corners: bool = False

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()

    def fuse(self, features: list[Float[Tensor, "B _D _h _w"]]) -> Float[Tensor, "B E h w"]:
        """Combine the encoder's maps (fine to coarse) into one."""
        raise NotImplementedError(f"{type(self).__name__} must define fuse()")

    def refine(self, fused: Float[Tensor, "B E h w"]) -> Float[Tensor, "B D h2 w2"]:
        """Turn the fused map into the embedding before the classifier; the default does nothing."""
        return fused

    def make_classifier(self, classes: int) -> nn.Module:
        """Make the layer from embedding to logits: a 1x1 convolution unless the paper has another one."""
        return nn.Conv2d(self.embedding, classes, 1)
