"""Loading as the papers' code does it: the whole image resized, every view made by Pillow in the worker, floats out.

Chain of UniMatch (Yang et al., CVPR 2023, arXiv:2208.09910) and UniMatch V2 (arXiv:2410.10777): decode, random scale of
the whole image, pad, crop, flip; an unlabeled image gets two strong views besides (color jitter in random order,
grayscale, Gaussian blur); each view becomes a normalized float tensor. Baseline of the benchmark of the data chain.
"""

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from tests.oracles.geometry import cut_whole

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def strong_view(image: Image.Image, rng: random.Random) -> Image.Image:
    """Jitter colors, turn gray, blur, each with the published probability."""
    if rng.random() < 0.8:
        changes = [_brightness, _contrast, _saturation, _hue]
        rng.shuffle(changes)
        for change in changes:
            image = change(image, rng)
    if rng.random() < 0.2:
        image = image.convert("L").convert("RGB")
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    return image


def to_normalized(image: Image.Image) -> Tensor:
    """Return floats (3, H, W), normalized by the statistics of ImageNet."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255
    return (pixels - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_STD)[:, None, None]


def load_labeled(image: Path, mask: Path, size: tuple[int, int], corner: tuple[int, int], crop: int) -> list[Tensor]:
    """Return the normalized crop and its target; `size` and `corner` as in `cut_whole`, no flip."""
    cut = _weak(image, size, corner, crop)
    with Image.open(mask) as opened:
        target = cut_whole(
            np.array(opened),
            size=size,
            corner=corner,
            crop=crop,
            flip=False,
            fill=255,
            resample=Image.Resampling.NEAREST,
        )
    return [to_normalized(cut), torch.from_numpy(target).long()]


def load_unlabeled(
    image: Path, size: tuple[int, int], corner: tuple[int, int], crop: int, rng: random.Random
) -> list[Tensor]:
    """Return three normalized views of a crop: weak and twice strong."""
    weak = _weak(image, size, corner, crop)
    return [to_normalized(view) for view in (weak, strong_view(weak, rng), strong_view(weak, rng))]


def _weak(path: Path, size: tuple[int, int], corner: tuple[int, int], crop: int) -> Image.Image:
    with Image.open(path) as opened:
        pixels = np.array(opened.convert("RGB"))
    fill = (124, 116, 104)  # the mean of ImageNet
    bilinear = Image.Resampling.BILINEAR
    return Image.fromarray(
        cut_whole(pixels, size=size, corner=corner, crop=crop, flip=False, fill=fill, resample=bilinear)
    )


def _brightness(image: Image.Image, rng: random.Random) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(rng.uniform(0.5, 1.5))


def _contrast(image: Image.Image, rng: random.Random) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(rng.uniform(0.5, 1.5))


def _saturation(image: Image.Image, rng: random.Random) -> Image.Image:
    return ImageEnhance.Color(image).enhance(rng.uniform(0.5, 1.5))


def _hue(image: Image.Image, rng: random.Random) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.array(hue).astype(np.int16) + round(rng.uniform(-0.25, 0.25) * 255)).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
