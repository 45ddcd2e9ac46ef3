"""Strong views, made where the batch is: every image with its own parameters, without asking the device anything.

The chain of UniMatch (Yang et al., CVPR 2023, arXiv:2208.09910, and UniMatch V2, arXiv:2410.10777), also used by
ST++ and AllSpark: with probability 0.8 color jitter (brightness, contrast, saturation 0.5, hue 0.25, in random
order), with 0.2 grayscale, with 0.5 Gaussian blur of a radius from U(0.1, 2). Geometry is not touched, so pseudo-labels
of the weak view fit the strong one.

Two forms with equal results:

  * on a CPU, image by image, doing only what was drawn; the parameters lie in host memory anyway, and one image fits
    the cache;
  * elsewhere, the whole batch at once. The hue change, the costly one, is computed once: each image's operations are
    split into those before its hue change and those after, three slots each, filled up with the identity.
"""

from typing import Annotated, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from halfmask.views import color
from halfmask.views.blur import gaussian_blur

Probability = Annotated[float, Field(ge=0, le=1)]

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


class StrongParams(NamedTuple):
    """What was drawn for each image."""

    jitter: Bool[Tensor, " N"]  # whether the four color changes are applied
    order: Int[Tensor, "N 4"]  # a permutation of brightness 0, contrast 1, saturation 2, hue 3
    factors: Float[Tensor, "N 4"]  # strength of each of the four; the hue's is a fraction of the color circle
    gray: Bool[Tensor, " N"]  # whether the image becomes gray
    radius: Float[Tensor, " N"]  # standard deviation of the blur in pixels; 0 = none


class StrongAugment(nn.Module):
    """Color jitter, grayscale and blur; the geometry stays.

    Images of other than three bands get brightness and contrast per band, and blur. The dates of an image pair get
    parameters of their own, and neither becomes gray (as in UniMatch's change detection): a gray date beside a colored
    one would be a change. With `same_light` both dates get the same parameters, gray among them (not in the paper: its
    pairs are satellite images of different years). No gradient flows through.

    Args:
        jitter: probability of the color jitter.
        brightness: strength, 0 to 1: factors from [1 - s, 1 + s].
        contrast: likewise.
        saturation: likewise.
        hue: strength, 0 to 0.5: turns from [-s, s] of the color circle.
        gray: probability of a gray image.
        blur: probability of a Gaussian blur.
        radius: range of the blur's standard deviation in pixels.
        same_light: change all dates of a pair alike, see `Task.same_light`.

    >>> StrongAugment()(torch.rand(2, 3, 8, 8)).shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        *,
        jitter: Probability = 0.8,
        brightness: Probability = 0.5,
        contrast: Probability = 0.5,
        saturation: Probability = 0.5,
        hue: Annotated[float, Field(ge=0, le=0.5)] = 0.25,
        gray: Probability = 0.2,
        blur: Probability = 0.5,
        radius: tuple[float, float] = (0.1, 2.0),
        same_light: bool = False,
    ) -> None:
        super().__init__()
        self.same_light = same_light
        self.jitter, self.gray, self.blur, self.radius = jitter, gray, blur, radius
        self.strengths = (brightness, contrast, saturation, hue)

    def forward(self, image: Float[Tensor, "B *T C H W"]) -> Float[Tensor, "B *T C H W"]:
        """Make a strong view of images in [0, 1]."""
        if self.same_light:
            dates = image.shape[1:-3].numel()
            params = self.sample(len(image), image.device)
            params = StrongParams(*(values.repeat_interleave(dates, 0) for values in params))
        else:
            params = self.sample(image.shape[:-3].numel(), image.device)
            if image.ndim == 5:
                params = params._replace(gray=torch.zeros_like(params.gray))
        return self.apply_params(image, params)

    def sample(self, images: int, device: torch.device | str, generator: torch.Generator | None = None) -> StrongParams:
        """Draw the parameters on the device, from its default generator or a given one."""

        def uniform(*columns: int) -> Tensor:
            return torch.rand(images, *columns, device=device, generator=generator)

        on = uniform(3)
        centered = uniform(4) * 2 - 1
        scale = torch.stack([torch.full((), strength, device=device) for strength in self.strengths])
        # Brightness, contrast and saturation are factors around 1, the hue is a turn around 0.
        offset = (torch.arange(4, device=device) != HUE).float()
        low, high = self.radius
        return StrongParams(
            jitter=on[:, 0] < self.jitter,
            order=uniform(4).argsort(dim=1),
            factors=centered * scale + offset,
            gray=on[:, 1] < self.gray,
            radius=(low + uniform() * (high - low)) * (on[:, 2] < self.blur),
        )

    @torch.no_grad()
    def apply_params(
        self, image: Float[Tensor, "B *T C H W"], params: StrongParams, *, batched: bool | None = None
    ) -> Float[Tensor, "B *T C H W"]:
        """Apply drawn parameters, one entry per image (and date).

        Args:
            image: in [0, 1].
            params: what `sample` drew.
            batched: the form; `None` takes the one that suits the device.
        """
        flat = image.flatten(0, -4)  # (N, C, H, W)
        if batched is None:
            batched = flat.device.type != "cpu"
        view = self._batch(flat, params) if batched else self._one_by_one(flat, params)
        return view.reshape(image.shape)

    def _batch(self, image: Tensor, params: StrongParams) -> Tensor:
        rgb = image.shape[1] == 3
        image = _jitter_rgb(image, params) if rgb else _jitter_bands(image, params)
        if rgb:
            image = torch.where(_column(params.gray), color.gray(image), image)
        return gaussian_blur(image, params.radius, largest=self.radius[1])

    def _one_by_one(self, image: Tensor, params: StrongParams) -> Tensor:
        changes = (color.brightness, color.contrast, color.saturation, color.hue)
        rgb = image.shape[1] == 3
        jitter, order, gray = params.jitter.numpy(), params.order.numpy(), params.gray.numpy()
        radius = params.radius.numpy()
        factors = params.factors.to(image.dtype)[:, :, None, None, None, None]  # (N, 4, 1, 1, 1, 1)
        out = torch.empty_like(image)
        for number in range(len(image)):
            one = image[number : number + 1]
            if jitter[number]:
                for change in order[number]:
                    if rgb or change in (BRIGHTNESS, CONTRAST):
                        one = changes[change](one, factors[number, change])
            if rgb and gray[number]:
                one = color.gray(one).expand_as(one)
            if radius[number] > 0:
                one = gaussian_blur(one, params.radius[number : number + 1], largest=float(radius[number]))
            out[number] = one[0]
        return out


def _jitter_rgb(image: Tensor, params: StrongParams) -> Tensor:
    # The place of the hue change in each image's order, and for each slot whether it comes before.
    place = (params.order == HUE).int().argmax(1, keepdim=True)  # (N, 1)
    before = torch.arange(4, device=image.device) < place  # (N, 4)
    active = params.jitter[:, None] & (params.order != HUE)
    image = _blend_slots(image, params, active & before, range(3))
    turned = color.hue(image, _column(params.factors[:, HUE].to(image.dtype)))
    image = torch.where(_column(params.jitter), turned, image)
    return _blend_slots(image, params, active & ~before, range(1, 4))


def _blend_slots(image: Tensor, params: StrongParams, active: Tensor, slots: range) -> Tensor:
    for slot in slots:
        change, on = params.order[:, slot], active[:, slot]
        factor = params.factors.gather(1, change[:, None])[:, 0]
        factor = torch.where(on, factor, 1).to(image.dtype)
        image = color.chosen(image, _column(factor), _column(change == CONTRAST), _column(change == SATURATION))
    return image


def _jitter_bands(image: Tensor, params: StrongParams) -> Tensor:
    ones = torch.ones_like(params.factors[:, 0])
    scale, spread = (
        _column(torch.where(params.jitter, params.factors[:, change], ones).to(image.dtype))
        for change in (BRIGHTNESS, CONTRAST)
    )
    place = params.order.argsort(dim=1)
    bright_first = _column(place[:, BRIGHTNESS] < place[:, CONTRAST])
    return torch.where(
        bright_first,
        color.contrast(color.brightness(image, scale), spread),
        color.brightness(color.contrast(image, spread), scale),
    )


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]
