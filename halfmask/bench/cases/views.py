"""Strong views on the device."""

import torch
from torch import Tensor

from halfmask.bench.row import Pair, Row, Setting, close
from halfmask.reference import strong_views as plain
from halfmask.views.strong import BRIGHTNESS, CONTRAST, HUE, SATURATION, StrongAugment, StrongParams


def _by_image(image: Tensor, params: StrongParams) -> Tensor:
    changes = {
        BRIGHTNESS: plain.brightness,
        CONTRAST: plain.contrast,
        SATURATION: plain.saturation,
        HUE: plain.hue,
    }
    views = []
    for number, one in enumerate(image):
        if params.jitter[number]:
            for change in params.order[number].tolist():
                one = changes[change](one, float(params.factors[number, change]))
        if params.gray[number]:
            one = plain.gray(one).expand_as(one)
        if params.radius[number] > 0:
            one = plain.gaussian_blur(one, float(params.radius[number]))
        views.append(one)
    return torch.stack(views)


def _strong(setting: Setting, images: int = 8) -> Pair:
    side = setting.size(518, 32)
    image = torch.rand(images, 3, side, side, generator=setting.generator()).to(setting.device)
    augment = StrongAugment()
    params = augment.sample(images, "cpu", setting.generator())
    params = StrongParams(*(tensor.to(setting.device) for tensor in params))
    return Pair(
        lambda: _by_image(image, params),
        lambda: augment.apply_params(image, params),
        close(atol=1e-4),
        traffic=2 * image.nbytes,
    )


ROWS = [
    Row(
        "strong-views",
        "8 x 518x518",
        _strong,
        "color jitter, grayscale, blur: image by image, hue by its six cases | branch-free hue, fused passes",
    )
]
