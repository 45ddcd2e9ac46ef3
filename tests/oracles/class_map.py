"""Class map from coarse logits, with the whole upsampled tensor in memory."""

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def upsampled_argmax(
    logits: Float[Tensor, "B K h w"], size: tuple[int, int], align_corners: bool
) -> Int64[Tensor, "B H W"]:
    """Upsample logits bilinearly to `size` (H, W) and take the best class of each pixel."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners).argmax(1)
