"""The contract of a bottleneck: the encoder's last map in, a map of the same shape out."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from halfmask.errors import RecipeError
from halfmask.models.encoders._encoder import Encoder
from halfmask.models.model import eval_mode

_PROBE_SIDE = 64


class Bottleneck(nn.Module):
    """Subclass it and define `__init__(channels, *, ...)` and `forward`.

    Keyword-only constructor arguments are the recipe's schema. `forward` is what evaluation, prediction and export
    use: it needs nothing but the map, and takes maps of any size. What a method does differently in a training step
    (other keys, other halves of the batch) are further methods of the subclass.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """Transform the last map."""
        raise NotImplementedError(f"{type(self).__name__} must define forward()")


def require_map(encoder: Encoder, in_channels: int = 3) -> None:
    """Encode one small image, to find out before training whether a bottleneck can work on the encoder's last output.

    Raises:
        RecipeError: the last output is no map (B, D, h, w) of the promised width.
    """
    side = -(-_PROBE_SIDE // encoder.size_multiple) * encoder.size_multiple
    parameter = next(encoder.parameters())
    image = torch.zeros(1, in_channels, side, side, dtype=parameter.dtype, device=parameter.device)
    with torch.no_grad(), eval_mode(encoder):
        last = encoder(image)[-1]
    if last.ndim != 4 or last.shape[1] != encoder.channels[-1]:
        name = type(encoder).__module__.rpartition(".")[2]
        raise RecipeError(
            f"a bottleneck works on a map (batch, {encoder.channels[-1]}, height, width), but the last output of "
            f"encoder {name} has shape {tuple(last.shape)}. Let the encoder reshape its tokens to a map, choose "
            "another model.encoder, or set model.bottleneck=null."
        )
