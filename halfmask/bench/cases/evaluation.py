"""Scores, class maps and sliding windows."""

from functools import partial

import numpy as np
import torch

from halfmask.bench.networks import resnet_deeplab
from halfmask.bench.row import Pair, Row, Setting, at_least, close, equal_but
from halfmask.infer.inference import probabilities, upsampled_argmax
from halfmask.infer.metrics import ConfusionMatrix
from halfmask.recipe.read import EvalRecipe
from halfmask.reference.confusion import areas_by_histogram

_CITYSCAPES, _ADE20K = (19, 1024, 2048), (150, 1024, 1024)  # K, H, W


def _metrics(setting: Setting, classes: int, height: int, width: int) -> Pair:
    shape = (height, width) if not setting.quick else (32, 64)
    # Blocks of one class, as in class maps: the speed of a histogram depends on how often neighbors are equal.
    cells = setting.integers(classes, 2, shape[0] // 16, shape[1] // 16)
    prediction, target = cells.repeat_interleave(16, 1).repeat_interleave(16, 2).unbind(0)
    target = torch.where(torch.rand(shape, generator=setting.generator()).to(setting.device) < 0.1, 255, target)
    prediction, target = prediction.to(torch.uint8), target.to(torch.uint8)

    def reference():  # type: ignore[no-untyped-def]  # noqa: ANN202
        counted = areas_by_histogram(prediction.cpu().numpy(), target.cpu().numpy(), classes)
        return [torch.from_numpy(np.asarray(area, dtype=np.float64)) for area in counted]

    def fast():  # type: ignore[no-untyped-def]  # noqa: ANN202
        matrix = ConfusionMatrix(classes, device=setting.device)
        matrix.update(prediction, target)
        counts = matrix.counts
        hits, targets = counts[:-1].diagonal(), counts[:-1].sum(1)
        return [hits.double().cpu(), (targets + counts.sum(0) - hits).double().cpu(), targets.double().cpu()]

    return Pair(reference, fast, close(atol=0.0), traffic=prediction.nbytes + target.nbytes)


def _class_map(setting: Setting, classes: int, height: int, width: int) -> Pair:
    size = (height, width) if not setting.quick else (64, 96)
    logits = setting.normal(1, classes, size[0] // 4, size[1] // 4)
    return Pair(
        lambda: upsampled_argmax(logits, size, align_corners=False, impl="reference"),
        lambda: upsampled_argmax(logits, size, align_corners=False),
        equal_but(1e-4),
        traffic=logits.nbytes + size[0] * size[1],
    )


def _windows(setting: Setting) -> Pair:
    size = (512, 1024) if not setting.quick else (32, 64)
    model = resnet_deeplab(setting, 19).eval()
    image = torch.rand(1, 3, *size, generator=setting.generator()).to(setting.device)

    def slide(batch: int) -> torch.Tensor:
        return probabilities(model, image, EvalRecipe(mode="slide", window=size[0] // 2, batch=batch))

    return Pair(lambda: slide(1), lambda: slide(8), close(atol=1e-5), flops=True)


def _rows(id: str, work, title: str, **least: float):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    for classes, height, width in (_CITYSCAPES, _ADE20K):
        sizes = partial(work, classes=classes, height=height, width=width)
        yield Row(id, f"K={classes}, {height}x{width}", sizes, title, {"cpu": at_least(**least)})


ROWS = [
    *_rows("eval-metrics", _metrics, "intersections and unions: three numpy histograms | one bincount", time=1.4),
    *_rows("eval-class-map", _class_map, "best class: upsample all logits | in bands of rows", time=1.5, peak=20.0),
    Row(
        "eval-windows",
        "512x1024, windows of 256, ResNet-18",
        _windows,
        "sliding windows: one | eight per forward pass",
        {"cuda": at_least(time=2.0)},
    ),
]
