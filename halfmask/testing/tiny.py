"""Networks and batches that make a training step take milliseconds: no downloads, no files."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from halfmask.batch import Batch, Samples
from halfmask.models.build import Builder
from halfmask.models.decoders._decoder import Decoder
from halfmask.models.encoders._encoder import Encoder
from halfmask.recipe.sections import ModelRecipe
from halfmask.task import Task

CROP = 32


class TinyEncoder(Encoder):
    """Four maps of equal width at strides 2, 4, 8, 8.

    Args:
        in_channels: bands of the image.
        weights: must be `None`; there are none.
        norm: batch norm after each convolution.
        width: channels of every map.
    """

    def __init__(self, *, in_channels: int = 3, weights: str | None = None, norm: bool = True, width: int = 12) -> None:
        super().__init__()
        self.channels, self.strides = (width,) * 4, (2, 4, 8, 8)
        self.mean, self.std = (0.5,) * in_channels, (0.25,) * in_channels
        steps = (2, 2, 2, 1)
        inputs = (in_channels, *self.channels[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, width, 3, stride=step, padding=1),
                nn.BatchNorm2d(width) if norm else nn.Identity(),
                nn.GELU(),
            )
            for before, step in zip(inputs, steps, strict=True)
        )

    def forward(self, image: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B D _h _w"]]:
        """Return the four maps."""
        features, x = [], image
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class TinyDecoder(Decoder):
    """Sum of projected maps, then a 3x3 convolution.

    Args:
        norm: batch norm before the last activation.
        embedding: channels before the classifier.
    """

    align_corners = False

    def __init__(
        self, channels: tuple[int, ...], strides: tuple[int, ...], *, norm: bool = True, embedding: int = 12
    ) -> None:
        super().__init__(channels, strides)
        self.embedding = embedding
        self.projections = nn.ModuleList(nn.Conv2d(width, embedding, 1) for width in channels)
        self.head = nn.Sequential(
            nn.Conv2d(embedding, embedding, 3, padding=1),
            nn.BatchNorm2d(embedding) if norm else nn.Identity(),
            nn.GELU(),
        )

    def fuse(self, features: list[Float[Tensor, "B _D _h _w"]]) -> Float[Tensor, "B E h w"]:
        """Sum at the finest size."""
        size = features[0].shape[-2:]
        maps = [projection(x) for projection, x in zip(self.projections, features, strict=True)]
        return torch.stack([F.interpolate(x, size=size, mode="bilinear") for x in maps]).sum(0)

    def refine(self, fused: Float[Tensor, "B E h w"]) -> Float[Tensor, "B D h w"]:
        """Convolve."""
        return self.head(fused)  # type: ignore[no-any-return]


def tiny_task(kind: str = "segmentation", ignore_index: int = 255) -> Task:
    """Return a task of three classes, the first of them background."""
    foreground = (False, True, True)
    if kind == "change":
        return Task("change", ("unchanged", "changed"), ignore_index, (False, True))
    if kind == "classification":
        return Task("classification", ("ground", "disc", "bar"), ignore_index, foreground)
    return Task("segmentation", ("ground", "disc", "bar"), ignore_index, foreground)


def tiny_builder(task: Task, *, norm: bool = True, channels: int = 3) -> Builder:
    """Return a builder of fresh tiny networks, with batch norm or without any batch statistics.

    >>> build = tiny_builder(tiny_task(), norm=False)
    >>> build().has_batch_stats, tuple(build()(torch.rand(2, 3, 32, 32)).shape)
    (False, (2, 3, 32, 32))
    """
    section = {
        "encoder": {"name": f"{__name__}:TinyEncoder", "norm": norm},
        "decoder": {"name": f"{__name__}:TinyDecoder", "norm": norm},
    }
    return Builder(ModelRecipe.model_validate(section), task, crop=CROP, channels=channels)


def tiny_batch(
    task: Task,
    *,
    draws: int = 1,
    share_images: bool = False,
    size: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Batch:
    """Make a batch in which bright blocks are the classes; some labels are ignored, some pixels are padding.

    Args:
        task: decides the shapes.
        draws: unlabeled draws, 0 to 2.
        share_images: the second draw shows the same images (`Samples.index`) as the first.
        size: images per stream.
        seed: same seed, same batch.
        dtype: of the images.
        device: where the tensors live; drawn on the CPU, so equal on every device.
    """
    generator = torch.Generator().manual_seed(seed)

    def samples(offset: int, labeled: bool) -> Samples:
        times = (2,) if task.kind == "change" else ()
        image = torch.rand(size, *times, 3, CROP, CROP, generator=generator, dtype=dtype) / 2
        shape = (size,) if task.kind == "classification" else (size, CROP // 8, CROP // 8)
        target = torch.randint(0, task.n_classes, shape, generator=generator)
        if task.kind != "classification":
            target = target.repeat_interleave(8, 1).repeat_interleave(8, 2)  # (B, H, W)
            image += target.reshape(size, *(1,) * len(times), 1, CROP, CROP) / (2 * task.n_classes)
            target[:, :3, :5] = task.ignore_index
        valid = torch.ones(target.shape, dtype=torch.bool)
        if task.kind != "classification" and not labeled:
            valid[0, :, -6:] = False
            image[0, ..., -6:] = 0
        index = torch.arange(size) + offset
        shown = [(target == k).reshape(size, -1).any(1) for k in range(task.n_classes)]
        tags = torch.stack(shown, 1) if labeled else None
        return Samples(
            image.to(device),
            valid.to(device),
            index.to(device),
            target.to(device) if labeled else None,
            None if tags is None else tags.to(device),
        )

    labeled = samples(0, labeled=True)
    unlabeled = samples(0, labeled=False) if draws > 0 else None
    partner = samples(0 if share_images else size, labeled=False) if draws > 1 else None
    return Batch(labeled, unlabeled, partner)
