"""A network with seams: encoder -> (bottleneck) -> decoder -> classifier.

Methods perturb or contrast at four taps: `encode` (stages), `decoder.fuse` (decoder input), `decode`
(before the classifier) and `classify` (logits). Images are RGB (or any bands) in [0, 1]; normalization
lives inside the model, so that augmentation never works on normalized pixels and an exported file cannot be
fed wrongly.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from halfmask.models.decoders._decoder import Decoder
from halfmask.models.encoders._encoder import Encoder

_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


class Model(nn.Module):
    """Abstract: use one of its final forms.

    Args:
        encoder: image to feature maps.
        decoder: feature maps to embedding.
        classes: K, number of logits.
        bottleneck: acts on the coarsest feature map, or `None`.
        mean: replaces the encoder's mean (one value per input channel, for images in [0, 1]).
        std: replaces the encoder's standard deviation.
        spec: plain-data description from which `halfmask.models.build` makes the same model again.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        classes: int,
        bottleneck: nn.Module | None = None,
        *,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        spec: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.bottleneck, self.decoder = encoder, bottleneck, decoder
        self.classifier = decoder.make_classifier(classes)
        self.classes = classes
        self.spec = spec or {}
        self.register_buffer("mean", torch.tensor(mean or encoder.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std or encoder.std).view(-1, 1, 1))
        self.mean: Tensor
        self.std: Tensor

    @property
    def has_batch_stats(self) -> bool:
        """Any batch norm inside: then joining two forwards into one changes the algorithm."""
        return any(isinstance(module, _BATCH_NORMS) for module in self.modules())

    @property
    def size_multiple(self) -> int:
        """Image sides must be multiples of it."""
        return self.encoder.size_multiple

    def encode(self, image: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _D _h _w"]]:
        """Normalize and encode; maps are ordered fine to coarse."""
        return self.encoder((image - self.mean) / self.std)  # type: ignore[no-any-return]

    def decode(self, features: list[Float[Tensor, "B _D _h _w"]]) -> Float[Tensor, "B D h w"]:
        """Dense embedding before the classifier."""
        return self.decoder.refine(self.decoder.fuse(features))

    def embed(self, features: list[Float[Tensor, "B _D _h _w"]]) -> Float[Tensor, "B D h w"]:
        """Decode, after the bottleneck's inference form where there is a bottleneck."""
        if self.bottleneck is not None:
            features = [*features[:-1], self.bottleneck(features[-1])]
        return self.decode(features)

    def classify(self, embedding: Float[Tensor, "B D h w"], size: tuple[int, int]) -> Float[Tensor, "B K *S"]:
        """Logits, upsampled to `size` (H, W)."""
        raise NotImplementedError(f"{type(self).__name__} must define classify()")

    def forward(self, image: Float[Tensor, "B *T C H W"]) -> Float[Tensor, "B K *S"]:
        """The seams in a row, with the bottleneck's inference form."""
        return self.classify(self.embed(self.encode(image)), (image.shape[-2], image.shape[-1]))


class Segmenter(Model):
    """Dense prediction of one image."""

    def classify(self, embedding: Float[Tensor, "B D h w"], size: tuple[int, int]) -> Float[Tensor, "B K H W"]:
        """Logits, upsampled bilinearly to `size` (H, W)."""
        logits = self.classifier(embedding)
        if tuple(logits.shape[-2:]) == tuple(size):
            return logits  # type: ignore[no-any-return]
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=self.decoder.align_corners)
