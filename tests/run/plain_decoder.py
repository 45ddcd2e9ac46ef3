"""A decoder without batch norm, named by import path: its result does not depend on how a batch is divided."""

import torch.nn.functional as F
from torch import Tensor, nn

from halfmask.models.decoders._decoder import Decoder


class PlainDecoder(Decoder):
    """Sum of 1x1 projections of all maps at the finest resolution."""

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], *, width: int = 8) -> None:
        super().__init__(channels, strides)
        self.embedding = width
        self.project = nn.ModuleList(nn.Conv2d(entry, width, 1) for entry in channels)

    def fuse(self, features: list[Tensor]) -> Tensor:
        size = features[0].shape[-2:]
        maps = [project(entry) for project, entry in zip(self.project, features, strict=True)]
        return sum((F.interpolate(entry, size, mode="bilinear") for entry in maps[1:]), maps[0])
