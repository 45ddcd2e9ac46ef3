"""Color changes of a batch, each image with its own strength: the formulas of torchvision's tensor transforms.

    brightness  f x                        contrast    f x + (1 - f) mean(gray(x))
    saturation  f x + (1 - f) gray(x)      hue         turn the hue of HSV by a fraction of the circle
    gray(x) = 0.2989 R + 0.587 G + 0.114 B, and every result is clamped to [0, 1]

Images are floats in [0, 1]; RGB where gray or hue are involved.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def gray(image: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 1 H W"]:
    """Weigh the channels by how bright they look.

    >>> round(gray(torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)).item(), 4)
    0.2989
    """
    red, green, blue = image.split(1, dim=1)
    luma: Tensor = 0.2989 * red
    return luma.add_(green, alpha=0.587).add_(blue, alpha=0.114)


def brightness(image: Float[Tensor, "N C H W"], factor: Float[Tensor, "N 1 1 1"]) -> Float[Tensor, "N C H W"]:
    """Scale all channels."""
    return (image * factor).clamp_(0, 1)


def contrast(image: Float[Tensor, "N C H W"], factor: Float[Tensor, "N 1 1 1"]) -> Float[Tensor, "N C H W"]:
    """Move away from, or to, the mean of the gray image; without RGB, the mean of each band."""
    source = gray(image) if image.shape[1] == 3 else image
    return _blend(image, source.mean((-2, -1), keepdim=True), factor)


def saturation(image: Float[Tensor, "N 3 H W"], factor: Float[Tensor, "N 1 1 1"]) -> Float[Tensor, "N 3 H W"]:
    """Move away from, or to, the gray image."""
    return _blend(image, gray(image), factor)


def chosen(
    image: Float[Tensor, "N 3 H W"],
    factor: Float[Tensor, "N 1 1 1"],
    is_contrast: Bool[Tensor, "N 1 1 1"],
    is_saturation: Bool[Tensor, "N 1 1 1"],
) -> Float[Tensor, "N 3 H W"]:
    """Change brightness, contrast or saturation, chosen per image: they differ only in what the image is blended with.

    A factor of 1 leaves an image exactly as it is.
    """
    luma = gray(image)
    mean = luma.mean((-2, -1), keepdim=True)
    return _blend(image, torch.where(is_saturation, luma, mean * is_contrast), factor)


def hue(image: Float[Tensor, "N 3 H W"], turn: Float[Tensor, "N 1 1 1"]) -> Float[Tensor, "N 3 H W"]:
    """Turn the hue by a fraction of the color circle, at constant HSV value V and saturation S.

    On a circle of six parts (red 0, green 2, blue 4) the angle is 2 + (G + B - R - V) / (V S), counted from red
    towards green where G >= B, else towards blue; and a channel is V - V S w, with w in [0, 1] piecewise linear in
    the angle. So neither direction needs the usual six cases, at a twentieth of their time.

    >>> hue(torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1), torch.full((1, 1, 1, 1), 1 / 3)).flatten().tolist()
    [0.0, 1.0, 0.0]
    """
    red, green, blue = image.split(1, dim=1)
    value = torch.maximum(red, green).maximum(blue)
    chroma = value - torch.minimum(red, green).minimum(blue)  # V S
    angle = (green + blue).sub_(red).sub_(value)
    # A gray pixel has no hue: 0 / tiny is 0, and its chroma of 0 keeps it gray at any angle.
    angle.div_(chroma.clamp_min(torch.finfo(image.dtype).tiny)).add_(2).copysign_(green - blue)
    angle.add_(6 * turn)
    angle.sub_((angle / 6).floor_().mul_(6))  # remainder(6), many times faster on a CPU
    weight_red = (angle - 3).abs_().neg_().add_(2)
    weight_green = (angle - 2).abs_().sub_(1)
    weight_blue = angle.sub_(4).abs_().sub_(1)
    weights = torch.cat((weight_red, weight_green, weight_blue), dim=1).clamp_(0, 1)
    return torch.addcmul(value, weights, chroma, value=-1)


def _blend(image: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    # Not torch.lerp: with two broadcast operands it is seven times slower on a CPU.
    return (image * factor).add_(other * (1 - factor)).clamp_(0, 1)
