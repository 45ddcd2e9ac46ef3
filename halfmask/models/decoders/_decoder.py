"""The contract of a decoder: feature maps in, dense embedding out, and the classifier that fits it."""

from jaxtyping import Float
from torch import Tensor, nn

from halfmask.errors import ShapeError


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

    def decode(self, features: list[Float[Tensor, "B _D _h _w"]]) -> Float[Tensor, "B D h2 w2"]:
        """Fuse and refine; override it where both together take less work than one after the other."""
        return self.refine(self.fuse(features))

    def make_classifier(self, classes: int) -> nn.Module:
        """Make the layer from embedding to logits: a 1x1 convolution unless the paper has another one."""
        return nn.Conv2d(self.embedding, classes, 1)

    def check_pooled_batch(self, x: Tensor) -> None:
        """Refuse to train with batch norm on a globally pooled map of one image: it would see a single value.

        Raises:
            ShapeError: with the batch size to set.
        """
        norms = [module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        synchronized = all(isinstance(module, nn.SyncBatchNorm) for module in norms)
        if self.training and len(x) == 1 and not synchronized:
            name = type(self).__module__.rpartition(".")[2]
            raise ShapeError(
                f"decoder {name} cannot train on one image per forward: batch norm after global pooling sees a single "
                "value. Use data.batch.labeled and data.batch.unlabeled of 2 or more per device, data.drop_last=true, "
                "or decoder segformer."
            )
