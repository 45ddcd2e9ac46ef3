"""Color operations of AugSeg, exact to Pillow's on 8-bit images, made where the batch is.

Zhao et al., "Augmentation Matters: A Simple-yet-Effective Approach to Semi-supervised Semantic Segmentation", CVPR
2023, arXiv:2212.04976, Table 1: k ~ U{1, ..., most} operations per image, drawn with replacement, each with a random
strength and without a chance to be skipped.

    identity                            equalize, autocontrast    per channel
    contrast, brightness, color, sharpness    factor in (0.05, 0.95]: toward gray mean, black, gray, smoothed image
    blur        standard deviation 0.1 to 2 (three boxes, each rounded to 8 bit)
    posterize   4 to 8 bits kept        solarize    values from 1 to 256 on are inverted
    hue         turn by int(255 h) / 256 of the circle, |h| <= 0.5 (rounded toward zero)

What to do is drawn on the CPU, so nothing waits for the device. Pillow stands for the arithmetic: it rounds to 8 bit
after every operation, and so do these functions, on tensors of integers (C, H, W).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

Bytes = Int[Tensor, "C H W"]


class RandomColors(nn.Module):
    """Apply a few random color operations to each image.

    Args:
        most: largest number of operations per image.

    >>> RandomColors()(torch.rand(2, 3, 8, 8)).shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(self, most: int = 3) -> None:
        super().__init__()
        self.most = most

    @torch.no_grad()
    def forward(self, image: Float[Tensor, "B *T C H W"]) -> Float[Tensor, "B *T C H W"]:
        """Make a strong view of images in [0, 1]; each date of a pair has operations of its own."""
        flat = image.flatten(0, -4)
        result = torch.empty_like(flat)
        for place, own in zip(result, flat, strict=True):
            pixels = (own * 255).round().long()
            for name, strength in draw(self.most, colored=len(own) == 3):
                pixels = OPERATIONS[name](pixels, strength)
            place.copy_(pixels).div_(255)
        return result.view_as(image)


def draw(most: int, colored: bool = True) -> list[tuple[str, float]]:
    """Draw the operations of one image and their strengths, on the CPU.

    Args:
        most: largest number of operations.
        colored: the image has three channels; otherwise nothing that needs colors is drawn.
    """
    names = [name for name in OPERATIONS if colored or name not in ("color", "hue")]
    # From torch's generator, by way of NumPy: numbers of the host, which no device has to be asked for.
    first, *draws = torch.rand(1 + 2 * most, dtype=torch.float64).numpy().tolist()
    chosen = [names[int(u * len(names))] for u in draws[:most]]
    strengths = [_strength(name, u) for name, u in zip(chosen, draws[most:], strict=True)]
    return list(zip(chosen, strengths, strict=True))[: 1 + int(first * most)]


def _strength(name: str, u: float) -> float:
    if name == "blur":
        return 0.1 + 1.9 * u
    if name == "posterize":
        return float(4 + int(u * 5))
    if name == "solarize":
        return float(1 + int(u * 256))
    if name == "hue":
        return u - 0.5
    return 0.95 - 0.9 * u  # a factor in (0.05, 0.95]


def identity(image: Bytes, strength: float = 0.0) -> Bytes:
    """Return the image as it is."""
    return image


def autocontrast(image: Bytes, strength: float = 0.0) -> Bytes:
    """Stretch each channel to 0..255; a channel of one value stays."""
    low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
    spread = (high - low).clamp_min(1).double()
    scale = torch.full_like(spread, 255.0) / spread  # `255.0 / spread` would multiply by the reciprocal
    stretched = (image * scale - low * scale).trunc().long().clamp(0, 255)
    return torch.where(high > low, stretched, image)


def equalize(image: Bytes, strength: float = 0.0) -> Bytes:
    """Spread the values of each channel evenly, by its histogram."""
    flat = image.flatten(1)
    counts = torch.zeros(len(image), 256, dtype=torch.int64, device=image.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    step = (flat.shape[1] - counts.gather(1, flat.amax(1, keepdim=True))) // 255
    below = counts.cumsum(1) - counts + step // 2
    table = (below // step.clamp_min(1)).clamp(max=255)
    return torch.where(step[..., None] > 0, table.gather(1, flat).view_as(image), image)


def blur(image: Bytes, strength: float) -> Bytes:
    """Blur by three boxes of fractional width, rounded after each; `strength` is the standard deviation."""
    variance = strength * strength / 3
    whole = int(((12 * variance + 1) ** 0.5 - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    radius = whole + part
    inner = int((1 << 24) / (2 * radius + 1))
    outer = ((1 << 24) - (2 * whole + 1) * inner) // 2
    for axis in (2, 1):
        for _ in range(3):
            image = _box(image, axis, whole, inner, outer)
    return image


def _box(image: Bytes, axis: int, whole: int, inner: int, outer: int) -> Bytes:
    side = image.shape[axis]
    places = torch.arange(-whole - 1, side + whole + 1, device=image.device).clamp(0, side - 1)
    padded = image.index_select(axis, places)
    total = padded.unfold(axis, 2 * whole + 3, 1)
    middle = total[..., 1:-1].sum(-1)
    ends = total[..., 0] + total[..., -1]
    blurred: Tensor = (middle * inner + ends * outer + (1 << 23)) >> 24
    return blurred


def _blend(degenerate: Tensor, image: Bytes, factor: float) -> Bytes:
    low = degenerate.float()
    mixed: Tensor = low + torch.tensor(factor, dtype=torch.float32) * (image.float() - low)
    return mixed.trunc().long()


def _gray(image: Bytes) -> Int[Tensor, "1 H W"]:
    if len(image) != 3:
        return (image.sum(0, keepdim=True) / len(image)).round().long()
    red, green, blue = image.split(1)
    weighted: Tensor = red * 19595 + green * 38470 + blue * 7471 + 0x8000
    return weighted >> 16


def brightness(image: Bytes, strength: float) -> Bytes:
    """Blend with black."""
    return _blend(torch.zeros_like(image), image, strength)


def contrast(image: Bytes, strength: float) -> Bytes:
    """Blend with the mean of the gray image."""
    mean = (_gray(image).double().mean() + 0.5).floor().long()
    return _blend(mean.expand_as(image), image, strength)


def color(image: Bytes, strength: float) -> Bytes:
    """Blend with the gray image."""
    return _blend(_gray(image).expand_as(image), image, strength)


def sharpness(image: Bytes, strength: float) -> Bytes:
    """Blend with the smoothed image; the outermost pixels stay."""
    pixels = image[:, None].double()
    kernel = torch.ones(1, 1, 3, 3, dtype=pixels.dtype, device=image.device)
    smooth = ((F.conv2d(pixels, kernel) + 4 * pixels[..., 1:-1, 1:-1]) / 13)[:, 0]
    result = image.clone()
    result[:, 1:-1, 1:-1] = (smooth + 0.5).floor().long()
    return _blend(result, image, strength)


def posterize(image: Bytes, strength: float) -> Bytes:
    """Keep the `strength` highest bits."""
    low = (1 << (8 - int(strength))) - 1
    return image - (image & low)


def solarize(image: Bytes, strength: float) -> Bytes:
    """Invert the values from `strength` on."""
    return torch.where(image < strength, image, 255 - image)


def hue(image: Bytes, strength: float) -> Bytes:
    """Turn the hue by 255 * strength of 256 steps, rounded toward zero."""
    hues, saturations, values = _to_hsv(image)
    return _to_rgb((hues + int(255 * strength)) % 256, saturations, values)


def _to_hsv(image: Bytes) -> tuple[Tensor, Tensor, Tensor]:
    red, green, blue = image
    high, low = image.amax(0), image.amin(0)
    spread = (high - low).clamp_min(1).float()
    # Single precision where Pillow keeps it, double where it computes.
    from_red, from_green, from_blue = (((high - channel).float() / spread).double() for channel in (red, green, blue))
    turn = torch.where(
        red == high,
        from_blue - from_green,
        torch.where(green == high, 2.0 + from_red - from_blue, 4.0 + from_green - from_red),
    )
    turn = torch.fmod(turn.float().double() / 6.0 + 1.0, 1.0).float()
    gray = high == low
    hues = (turn.double() * 255.0).trunc().long().clamp(0, 255).masked_fill(gray, 0)
    share = (spread / high.clamp_min(1).float()).double()
    saturations = (share * 255.0).trunc().long().clamp(0, 255).masked_fill(gray, 0)
    return hues, saturations, high


def _to_rgb(hues: Tensor, saturations: Tensor, values: Tensor) -> Bytes:
    turn = hues.double() * 6.0 / 255.0
    sector = turn.floor()
    # Single precision where Pillow keeps it.
    rest, share = (turn - sector).float().double(), (saturations / 255.0).float().double()
    bright = values.double()

    def rounded(x: Tensor) -> Tensor:
        return (x + 0.5).floor().long().clamp(0, 255)

    low, falling = rounded(bright * (1 - share)), rounded(bright * (1 - share * rest))
    rising = rounded(bright * (1 - share * (1 - rest)))
    by_sector: list[tuple[Tensor, Tensor, Tensor]] = [
        (values, rising, low),
        (falling, values, low),
        (low, values, rising),
        (low, falling, values),
        (rising, low, values),
        (values, low, falling),
    ]
    table = torch.stack([torch.stack(channels) for channels in by_sector])  # (6, 3, H, W)
    index = (sector.long() % 6)[None, None].expand(1, 3, *hues.shape)
    return table.gather(0, index)[0]


OPERATIONS: dict[str, Callable[[Bytes, float], Bytes]] = {
    "identity": identity,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "blur": blur,
    "contrast": contrast,
    "brightness": brightness,
    "color": color,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "hue": hue,
}
