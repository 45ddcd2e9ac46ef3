"""Compute AllSpark's figures for any run of it: what the bottleneck, the channel grouping and the class memory do.

Wang et al., CVPR 2024, arXiv:2403.01818: channels of a labeled image before and after the bottleneck (Figure 5),
channels per class chosen by the grouping (Figure 6), slots of the memory beside the image they came from (Figure 7).
All from the last checkpoint, in evaluation mode, on the middle of the images.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from halfmask.data.contract import Dataset
from halfmask.data.splits.split import open_dataset, resolve_split, unlabeled_dataset
from halfmask.errors import HalfmaskError
from halfmask.infer.bundle import own_bundle
from halfmask.infer.runs import open_run
from halfmask.methods.allspark import AllSpark
from halfmask.models.model import Model
from halfmask.palette import Color
from halfmask.report.charts import Series, line_chart, sparkline
from halfmask.report.draw import palette, three_bands
from halfmask.report.evidence import Images, load_method
from halfmask.report.records import Run
from halfmask.task import Task
from halfmask.teaching.grouping import channel_classes

LINK, TITLE = "AllSpark", "AllSpark: bottleneck and class memory"

_SHOWN_CHANNELS = 6
_GROUPED_IMAGES = 16
_EXAMPLES = 3
_SLOTS = 3
_MOST_CLASSES = 8
_LINES = 4  # classes drawn as lines; more get a small curve each
_BARS = 12


class Channels(NamedTuple):
    """One labeled image and some of its channels (Figure 5)."""

    id: str  # of the image
    image: UInt8[np.ndarray, "H W 3"]  # the part that was used
    numbers: tuple[int, ...]  # of the channels shown: those that vary most over the image, before and after
    before: Float[np.ndarray, "n h w"]  # the encoder's last map
    after: Float[np.ndarray, "n h w"]  # the bottleneck's result
    likeness: tuple[float, float]  # mean absolute correlation of two channels, before and after; lower is more diverse


class Grouping(NamedTuple):
    """How channels are spread over the classes (Figure 6)."""

    images: int  # how many unlabeled images
    channels: int  # per image
    chosen: Float[np.ndarray, " K"]  # mean channels per class and image
    share: Float[np.ndarray, " K"]  # of the images' predicted pixels
    # some images with their own numbers of channels and shares
    examples: tuple[tuple[str, UInt8[np.ndarray, "H W 3"], Int[np.ndarray, " K"], Float[np.ndarray, " K"]], ...]


class Slots(NamedTuple):
    """Newest slots of one class (Figure 7)."""

    name: str  # of the class
    filled: float  # part of its slots that hold a channel
    maps: Float[np.ndarray, "n h w"]  # the channels, as maps
    # id and picture of the image that each came from; `None` where the list has changed since
    sources: tuple[tuple[str, UInt8[np.ndarray, "H W 3"]] | None, ...]


class Figures(NamedTuple):
    """The figures of one run; `slots` is empty without a memory."""

    channels: tuple[Channels, ...]
    grouping: Grouping | None
    slots: tuple[Slots, ...]
    uses_memory: bool


def values(run: Run, images: Images | None) -> dict[str, Any]:
    """Compute the figures as far as images and checkpoint are there, and the fill of the memory from the records."""
    fill = run.family("memory/filled")
    lines = [Series(name, points, number, number) for number, (name, points) in enumerate(fill.items())]
    found: dict[str, Any] = {
        "why": "The images of the run are not there (see Result).",
        "figures": None,
        "fill": [(name, sparkline(points, name), points[0][1], points[-1][1]) for name, points in fill.items()],
        "fill_chart": line_chart(lines, "Slots that hold a channel") if len(fill) <= _LINES else None,
    }
    if images is None:
        return found
    if run.task is None or run.task.kind != "segmentation":
        return found | {"why": "The figures of the bottleneck are drawn for single images only, not for pairs."}
    try:
        figures = allspark_figures(run, images)
    except HalfmaskError as error:
        return found | {"why": f"The figures of the bottleneck need the last checkpoint: {error}"}
    if (grouping := figures.grouping) is not None:
        found["bars"] = _bars(grouping.chosen, grouping.share, run.task, grouping.channels)
        found["examples"] = [
            (id, picture, _bars(chosen, share, run.task, grouping.channels))
            for id, picture, chosen, share in grouping.examples
        ]
    return found | {"figures": figures}


def _bars(
    chosen: Int[np.ndarray, " K"] | Float[np.ndarray, " K"], share: Float[np.ndarray, " K"], task: Task, total: int
) -> list[tuple[Color, str, float, float, float]]:
    """List color and name, channels, their share and the share of pixels of the classes with most channels."""
    colors, order = palette(task), np.argsort(-chosen, kind="stable")[:_BARS]
    return [
        (colors[k], task.classes[k], float(chosen[k]), float(chosen[k]) / max(total, 1), float(share[k]))
        for k in map(int, order)
        if chosen[k] > 0 or share[k] > 0
    ]


@torch.inference_mode()
def allspark_figures(run: Run, images: Images) -> Figures:
    """Compute the figures from the last checkpoint and the run's own images.

    Raises:
        CheckpointError: there is no checkpoint.
        DataError: the images are not there any more.
    """
    method, progress = load_method(run, images.device)
    assert isinstance(method, AllSpark)
    recipe = open_run(own_bundle(run.path), (), sections=("data",)).data
    recipe = recipe.model_copy(update={"root": str(images.dataset.root)})
    dataset = open_dataset(recipe)
    split = resolve_split(recipe, dataset)
    other = unlabeled_dataset(recipe, dataset)
    listed = run.split.get("unlabeled", {}).get("ids", list(split.unlabeled))
    uses_memory = method.memory is not None and progress.epoch >= method.warmup_epochs
    return Figures(
        tuple(_channels(method, id, _crop(dataset, id, method), uses_memory) for id in split.labeled[:_EXAMPLES]),
        _grouping(method, other, listed[:: max(len(listed) // _GROUPED_IMAGES, 1)][:_GROUPED_IMAGES]),
        _slots(method, other, listed, run.classes) if method.memory is not None else (),
        uses_memory,
    )


def _student(method: AllSpark) -> Model:
    (model,) = next(iter(method.predictors().values())).members
    return model


def _channels(method: AllSpark, id: str, image: Float[Tensor, "1 C H W"], uses_memory: bool) -> Channels:
    """Compute both maps as the labeled half of a training step does, but without dropout."""
    features = _student(method).encode(image)
    tokens, residual = method.bottleneck.embed(features[-1])
    keys, present = method._recall(method.memory) if uses_memory and method.memory is not None else (None, None)
    result = method.bottleneck.attend(tokens, residual, keys, labeled=1, present=present)
    before, after = features[-1][0].float(), result[0].float()  # (D, h, w)
    spread = _rank(before) + _rank(after)
    numbers = tuple(sorted(spread.argsort(descending=True)[:_SHOWN_CHANNELS].tolist()))
    shown = [maps[list(numbers)].cpu().numpy() for maps in (before, after)]
    return Channels(id, _picture(image), numbers, shown[0], shown[1], (_likeness(before), _likeness(after)))


def _rank(maps: Float[Tensor, "D h w"]) -> Float[Tensor, " D"]:
    """Return each channel's place when ordered by its variation over the image; the most varying last."""
    return maps.flatten(1).std(1).argsort().argsort().float()


def _likeness(maps: Float[Tensor, "D h w"]) -> float:
    """Compute the mean absolute correlation between different channels; dead channels are left out."""
    flat = maps.flatten(1)
    flat = flat[(flat - flat.mean(1, keepdim=True)).norm(dim=1) > 1e-6]
    count = len(flat)
    return float((torch.corrcoef(flat).abs().sum() - count) / (count * (count - 1))) if count > 1 else math.nan


def _grouping(method: AllSpark, dataset: Dataset, ids: Sequence[str]) -> Grouping | None:
    if not ids:
        return None
    classes = method.task.n_classes
    found = []
    for id in ids:
        image = _crop(dataset, id, method)
        logits = method._label(image)
        tokens, _ = method.bottleneck.embed(_student(method).encode(image)[-1])
        grouped = channel_classes(tokens, logits, (method.side, method.side), method.grouping)[0]
        chosen = torch.bincount(grouped.cpu(), minlength=classes).numpy()
        predicted = torch.bincount(logits.argmax(1).flatten().cpu(), minlength=classes).double()
        found.append((id, _picture(image), chosen, (predicted / predicted.sum()).numpy()))
    means = [np.mean(rows, axis=0) for rows in ([one[2] for one in found], [one[3] for one in found])]
    return Grouping(len(ids), int(found[0][2].sum()), means[0], means[1], tuple(found[:_EXAMPLES]))


def _slots(method: AllSpark, dataset: Dataset, listed: Sequence[str], names: Sequence[str]) -> tuple[Slots, ...]:
    memory = method.memory
    assert memory is not None
    found = []
    filled = memory.filled.float().mean(1).tolist()
    # Of many classes those whose memory is fullest: an empty one shows noise.
    chosen = sorted(range(len(names)), key=lambda k: -filled[k])[:_MOST_CLASSES]
    pictures: dict[int, tuple[str, UInt8[np.ndarray, "H W 3"]]] = {}
    for k in sorted(chosen):
        size, pointer = memory.slots.shape[1], int(memory.pointer[k])
        newest: dict[int, int] = {}  # one slot per image, so that different images are seen
        for slot in ((pointer - 1 - back) % size for back in range(size)):
            if (origin := int(memory.origin[k, slot])) >= 0:
                newest.setdefault(origin, slot)
        picked = dict(list(newest.items())[:_SLOTS])
        for origin in picked:
            if origin not in pictures and origin < len(listed):
                pictures[origin] = (listed[origin], three_bands(dataset.read_image(listed[origin])))
        maps = memory.slots[k, list(picked.values())].float().cpu().numpy().reshape(-1, method.side, method.side)
        found.append(Slots(names[k], filled[k], maps, tuple(pictures.get(origin) for origin in picked)))
    return tuple(found)


def _crop(dataset: Dataset, id: str, method: AllSpark) -> Float[Tensor, "1 C S S"]:
    """Cut the middle out of an image at the training crop's size; what is missing is black."""
    crop = int(_student(method).spec["crop"])
    image = dataset.read_image(id)
    height, width = image.shape[:2]
    top, left = max((height - crop) // 2, 0), max((width - crop) // 2, 0)
    part = image[top : top + crop, left : left + crop]
    whole = np.zeros((crop, crop, image.shape[2]), dtype=np.uint8)
    whole[: part.shape[0], : part.shape[1]] = part
    mean = _student(method).mean
    return torch.from_numpy(whole).permute(2, 0, 1)[None].to(mean.device).to(mean.dtype) / 255


def _picture(image: Float[Tensor, "1 C H W"]) -> UInt8[np.ndarray, "H W 3"]:
    return three_bands((image[0].permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy())
