"""A network with seams: encoder -> (bottleneck) -> decoder -> classifier.

Methods perturb or contrast at four taps: `encode` (stages), `decoder.fuse` (decoder input), `decode`
(before the classifier) and `classify` (logits). Images are RGB (or any bands) in [0, 1]; normalization
lives inside the model, so that augmentation never works on normalized pixels and an exported file cannot be
fed wrongly.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from halfmask.errors import ShapeError
from halfmask.models.coarse_logits import CoarseLogits
from halfmask.models.decoders._decoder import Decoder
from halfmask.models.encoders._encoder import Encoder

if TYPE_CHECKING:
    Logits: TypeAlias = Any  # both are sliced and split alike
else:
    Logits = Float[Tensor, "_ K ..."] | CoarseLogits  # (B, K, H, W) or (B, K); batches of one call may differ
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
Passes: TypeAlias = Literal["published", "separate", "apart"]


class Network(nn.Module):
    """Abstract: what can be evaluated, shipped and exported: one `Model`, or an `Ensemble` of several.

    Call it with an image in [0, 1]; it returns logits.
    """

    classes: int  # K, number of logits
    mean: Tensor  # one value per band, for images in [0, 1]; the network normalizes by itself
    std: Tensor
    spec: dict[str, Any]  # plain data from which `halfmask.models.build` makes the same network again

    @property
    def members(self) -> "tuple[Model, ...]":
        """Return the models it consists of; a model consists of itself."""
        raise NotImplementedError(f"{type(self).__name__} must define members")

    @property
    def size_multiple(self) -> int:
        """Return the number that image sides must be multiples of."""
        return math.lcm(*(model.encoder.size_multiple for model in self.members))

    @property
    def has_batch_stats(self) -> bool:
        """Whether there is batch norm inside: then joining two forwards into one changes the algorithm."""
        return has_batch_norm(self)


class Model(Network):
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
        self.streams_loss = False  # give `CoarseLogits` where a loss will be taken of them
        self.passes: Passes = "published"  # see `halfmask.models.statistics`
        self.spec = spec or {}
        self.register_buffer("mean", torch.tensor(mean or encoder.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std or encoder.std).view(-1, 1, 1))

    @property
    def passes_apart(self) -> bool:
        """Tell whether labeled images have a pass of their own."""
        return self.passes != "published"

    @property
    def members(self) -> "tuple[Model, ...]":
        """Return the model itself."""
        return (self,)

    def encode(self, image: Float[Tensor, "B *T C H W"]) -> list[Float[Tensor, "B _D _h _w"]]:
        """Normalize and encode; maps are ordered fine to coarse."""
        return self.encoder((image - self.mean) / self.std)  # type: ignore[no-any-return]

    def decode(self, features: list[Float[Tensor, "B _D _h _w"]]) -> Float[Tensor, "B D h w"]:
        """Return the dense embedding before the classifier."""
        return self.decoder.decode(features)

    def embed(self, features: list[Float[Tensor, "B _D _h _w"]]) -> Float[Tensor, "B D h w"]:
        """Decode, after the bottleneck's inference form where there is a bottleneck."""
        if self.bottleneck is not None:
            features = [*features[:-1], self.bottleneck(features[-1])]
        return self.decode(features)

    def classify(self, embedding: Float[Tensor, "B D h w"], size: tuple[int, int]) -> Logits:
        """Return the logits, upsampled to `size` (H, W)."""
        raise NotImplementedError(f"{type(self).__name__} must define classify()")

    def forward(self, image: Float[Tensor, "B *T C H W"]) -> Logits:
        """Run encode, decode and classify, with the bottleneck's inference form."""
        return self.classify(self.embed(self.encode(image)), (image.shape[-2], image.shape[-1]))

    def _upsampled(self, logits: Float[Tensor, "B K h w"], size: tuple[int, int]) -> Any:
        if tuple(logits.shape[-2:]) == tuple(size):
            return logits
        coarse = CoarseLogits(logits, size, self.decoder.align_corners)
        return coarse if self.streams_loss and self.training and torch.is_grad_enabled() else coarse.upsampled()


class Segmenter(Model):
    """Dense prediction of one image."""

    def classify(self, embedding: Float[Tensor, "B D h w"], size: tuple[int, int]) -> Logits:
        """Return the logits, upsampled bilinearly to `size` (H, W)."""
        return self._upsampled(self.classifier(embedding), size)


class ChangeSegmenter(Model):
    """Dense prediction of what differs between the two dates of an image pair (B, 2, C, H, W).

    The features are |f(x_1) - f(x_2)| of every level (Yang et al., UniMatch, CVPR 2023, arXiv:2208.09910, and UniMatch
    V2, arXiv:2410.10777), so the prediction does not depend on the order of the dates, and whatever a method does to
    features it does to the differences.
    """

    def encode(self, image: Float[Tensor, "B *T C H W"]) -> list[Float[Tensor, "B _D _h _w"]]:
        """Normalize and encode both dates; maps of their differences, fine to coarse. Raises ShapeError: no pairs."""
        # Drop path draws otherwise for one pass over both dates than for two: results differ, not their distribution.
        apart = self.encoder.training and has_batch_norm(self.encoder)
        return date_differences(super().encode, image, apart=apart)

    def classify(self, embedding: Float[Tensor, "B D h w"], size: tuple[int, int]) -> Logits:
        """Return the logits, upsampled bilinearly to `size` (H, W)."""
        return self._upsampled(self.classifier(embedding), size)


class Classifier(Model):
    """One label per image: the classifier's logits, averaged over the cells of the embedding.

    Decoder `pool` gives a single cell, so that the average is the network's own pooling; with any other decoder its
    dense logits are averaged.
    """

    def classify(self, embedding: Float[Tensor, "B D h w"], size: tuple[int, int]) -> Float[Tensor, "B K"]:
        """Return the logits of the image; `size` has no meaning here."""
        return self.classifier(embedding).mean((-2, -1))  # type: ignore[no-any-return]


def date_differences(
    encode: Callable[[Tensor], list[Tensor]], image: Float[Tensor, "B *T C H W"], *, apart: bool
) -> list[Float[Tensor, "B _D _h _w"]]:
    """Encode the two dates of image pairs and give |f(x_1) - f(x_2)| per level.

    Args:
        encode: of single images (N, C, H, W).
        image: (B, 2, C, H, W).
        apart: encode one date after the other, so that batch norm takes its statistics per date, as published; else
            both dates in one batch, which gives the same maps faster.

    Raises:
        ShapeError: the images are not pairs.
    """
    if image.ndim != 5 or image.shape[1] != 2:
        raise ShapeError(
            f"change detection compares two dates, (B, 2, C, H, W), but the images have shape {tuple(image.shape)}. "
            "Stack the dates: torch.stack((before, after), dim=1)."
        )
    if apart:
        before, after = encode(image[:, 0]), encode(image[:, 1])
        return [(first - second).abs() for first, second in zip(before, after, strict=True)]
    joint = encode(image.flatten(0, 1))  # (2B, D, h, w)
    pairs = [level.unflatten(0, (-1, 2)) for level in joint]
    return [(pair[:, 0] - pair[:, 1]).abs() for pair in pairs]


def has_batch_norm(module: nn.Module) -> bool:
    """Tell whether anything in a network takes statistics over the batch."""
    return any(isinstance(part, _BATCH_NORMS) for part in module.modules())


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Switch a network to evaluation mode and give every part its former mode back.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout().eval())
    >>> with eval_mode(net):
    ...     net[0].training
    False
    >>> net[0].training, net[1].training
    (True, False)
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
