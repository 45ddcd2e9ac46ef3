"""Networks whose output is known by hand: for tests of protocols, not of learning."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from halfmask.models.build import Builder
from halfmask.models.decoders._decoder import Decoder
from halfmask.models.encoders._encoder import Encoder
from halfmask.models.model import Model, Segmenter
from halfmask.recipe.read import ModelRecipe
from halfmask.task import Task

THREE = Task("segmentation", ("ground", "disc", "bar"))


class Window(Encoder):
    """Gives its input and the mean of it, and remembers the sizes it was called with."""

    channels, strides, mean, std = (6,), (1,), (0.0,) * 3, (1.0,) * 3

    def __init__(self, size_multiple: int = 1) -> None:
        super().__init__()
        self.size_multiple = size_multiple
        self.calls: list[tuple[int, ...]] = []

    def forward(self, image: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B D h w"]]:
        self.calls.append(tuple(image.shape))
        return [torch.cat([image, image.mean((-2, -1), keepdim=True).expand_as(image)], dim=1)]


class Through(Decoder):
    embedding = 6

    def fuse(self, features: list[Float[Tensor, "B _D _h _w"]]) -> Float[Tensor, "B E h w"]:
        return features[0]


def window_model(weight: Tensor, size_multiple: int = 1) -> Segmenter:
    """f(x) = A x + B mean(x), with weight = [A | B] of shape (K, 6): the result depends on the window."""
    model = Segmenter(Window(size_multiple), Through((6,), (1,)), len(weight))
    assert isinstance(model.classifier, nn.Conv2d)
    model.classifier.weight.data = weight[:, :, None, None].clone()
    model.classifier.bias = None
    return model.to(weight.dtype).eval()


def random_window_model(classes: int = 3, size_multiple: int = 1, dtype: torch.dtype = torch.float64) -> Segmenter:
    return window_model(torch.randn(classes, 6, generator=torch.Generator().manual_seed(1), dtype=dtype), size_multiple)


def small_model(task: Task = THREE, **overrides: Any) -> Model:
    """A real network with batch norm, random weights and a spec; a few thousand parameters."""
    section = {
        "encoder": {"name": "resnet", "depth": 18, "width": 8, "blocks": [1, 1, 1, 1]},
        "decoder": {"name": "deeplabv3plus", "aspp": 8, "low": 4, "embedding": 8},
    }
    return Builder(ModelRecipe.model_validate(section), task, crop=64)(**overrides).eval()
