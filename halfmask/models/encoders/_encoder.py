"""The contract of an encoder: normalized image in, list of feature maps out, fine to coarse."""

from collections.abc import Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from halfmask.errors import ShapeError
from halfmask.models.weights import Release

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def imagenet_statistics(in_channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel for weights that were trained on RGB.

    The stem of such weights is repeated over further channels (one channel: summed), so the statistics are too.

    >>> imagenet_statistics(3)[0]
    (0.485, 0.456, 0.406)
    >>> imagenet_statistics(4)[0]
    (0.485, 0.456, 0.406, 0.485)
    """
    if in_channels == 1:
        return (sum(IMAGENET_MEAN) / 3,), (sum(IMAGENET_STD) / 3,)
    channels = range(in_channels)
    return tuple(IMAGENET_MEAN[i % 3] for i in channels), tuple(IMAGENET_STD[i % 3] for i in channels)


class Encoder(nn.Module):
    """Subclass it, set the four attributes in `__init__` and define `forward`.

    The constructor's keyword-only arguments are the recipe's schema. Every encoder takes `in_channels: int = 3`
    and `weights: str | None = None` (a tag or a local file; `None` starts from random weights) and, where it makes
    sense, `frozen: bool = False`.

    Attributes:
        channels: width of each returned map.
        strides: input pixels per cell of each returned map.
        mean: per input channel, subtracted by the model before `forward`; images are in [0, 1].
        std: per input channel, divided by.
        size_multiple: image sides must be multiples of it (14 for DINOv2; 1 = any size).
        frozen: set by `freeze()`.
        weights_license: license of the published weights, where it is the same for all of them.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    size_multiple: int = 1
    frozen: bool = False
    weights_license: ClassVar[str] = ""

    @classmethod
    def published(cls, params: Mapping[str, Any]) -> dict[str, Release]:
        """Return the weights that are published for such a network, by tag, the default first; none by default.

        Args:
            params: of the constructor; at least those that decide which weights fit.
        """
        return {}

    def check_size(self, image: Tensor) -> None:
        """Refuse an image whose sides are not multiples of `size_multiple`.

        Raises:
            ShapeError: with the nearest size that works.
        """
        height, width = image.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple:
            name = type(self).__module__.rpartition(".")[2]
            nearest = max(1, round(max(height, width) / self.size_multiple)) * self.size_multiple
            raise ShapeError(
                f"image is {width}x{height} but encoder {name} needs multiples of {self.size_multiple}. "
                f"Use data.crop={nearest} for training; evaluation fits the size by itself (eval.fit)."
            )

    def freeze(self) -> None:
        """Stop training it: no parameter gets a gradient and batch-norm statistics stay as they are."""
        self.frozen = True
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Encoder":
        """Switch between training and evaluation; a frozen encoder stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def forward(self, image: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B D h w"]]:
        """Encode a normalized image.

        Raises:
            ShapeError: a side is not a multiple of `size_multiple`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward()")
