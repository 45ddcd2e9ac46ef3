"""Plain form of the strong views: one image after the other, HSV by its six cases, box filters by summing pixels."""

import math

import torch
from torch import Tensor


def gray(image: Tensor) -> Tensor:
    """(3, H, W) in [0, 1] -> (H, W), with torchvision's weights."""
    return 0.2989 * image[0] + 0.587 * image[1] + 0.114 * image[2]


def brightness(image: Tensor, factor: float) -> Tensor:
    """Blend with black."""
    return (factor * image).clamp(0, 1)


def contrast(image: Tensor, factor: float) -> Tensor:
    """Blend with the mean of the gray image; other than three bands: each with its own mean."""
    mean = gray(image).mean() if len(image) == 3 else image.mean((1, 2), keepdim=True)
    return (factor * image + (1 - factor) * mean).clamp(0, 1)


def saturation(image: Tensor, factor: float) -> Tensor:
    """Blend with the gray image."""
    return (factor * image + (1 - factor) * gray(image)).clamp(0, 1)


def hue(image: Tensor, turn: float) -> Tensor:
    """RGB -> HSV, add to the hue, -> RGB."""
    red, green, blue = image
    value, low = image.max(0).values, image.min(0).values
    chroma = value - low
    divisor = torch.where(chroma == 0, 1, chroma)
    sector = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixth = (sector + 6 * turn) % 6
    number, part = sixth.floor().long() % 6, sixth - sixth.floor()
    falling, rising = value - chroma * part, value - chroma * (1 - part)
    cases = [
        (value, rising, low),
        (falling, value, low),
        (low, value, rising),
        (low, falling, value),
        (rising, low, value),
        (value, low, falling),
    ]
    result = torch.zeros_like(image)
    for case, channels in enumerate(cases):
        result = torch.where(number == case, torch.stack(channels), result)
    return result


def gaussian_blur(image: Tensor, radius: float, *, whole_levels: bool = False) -> Tensor:
    """Three box filters of fractional radius along the width, then along the height, edge pixels repeated.

    With `whole_levels` every pass is rounded, as Pillow does with its bytes.
    """
    variance = radius**2 / 3
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    for axis in (2, 1):
        last = image.shape[axis] - 1
        for _ in range(3):
            total = torch.zeros_like(image)
            for offset in range(-whole - 1, whole + 2):
                places = (torch.arange(last + 1) + offset).clamp(0, last)
                share = part if abs(offset) == whole + 1 else 1.0
                total += share * image.index_select(axis, places)
            image = total / (2 * (whole + part) + 1)
            # Pillow cuts its fixed-point weights off, so halves are rounded down.
            image = (image - 0.5 - 1e-5).ceil() if whole_levels else image
    return image


def strong_view(
    image: Tensor,
    *,
    jitter: bool,
    order: list[int],
    factors: list[float],
    make_gray: bool,
    radius: float,
) -> Tensor:
    """Apply one image's parameters in turn (see `halfmask.views.strong.StrongParams`)."""
    if jitter:
        for change in order:
            operation = (brightness, contrast, saturation, hue)[change]
            if len(image) == 3 or operation in (brightness, contrast):
                image = operation(image, factors[change])
    if make_gray and len(image) == 3:
        image = gray(image).expand_as(image)
    return gaussian_blur(image, radius) if radius > 0 else image


def strong_views(
    images: Tensor, *, jitter: Tensor, order: Tensor, factors: Tensor, gray: Tensor, radius: Tensor
) -> Tensor:
    """Make the views of a batch (N, C, H, W), image by image; entry n of every parameter is of image n."""
    return torch.stack(
        [
            strong_view(
                image,
                jitter=bool(jitter[number]),
                order=order[number].tolist(),
                factors=factors[number].tolist(),
                make_gray=bool(gray[number]),
                radius=float(radius[number]),
            )
            for number, image in enumerate(images)
        ]
    )
