"""AllSpark's figures for any run of it: what the bottleneck, the channel grouping and the class memory do.

Wang et al., CVPR 2024, arXiv:2403.01818: channels of a labeled image before and after the bottleneck (Figure 5),
channels per class chosen by the grouping (Figure 6), slots of the memory beside the image they came from (Figure 7).
All from the last checkpoint, in evaluation mode, on the middle of the images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from halfmask.batch import Progress
from halfmask.data.contract import Dataset
from halfmask.data.splits.split import open_dataset, resolve_split, unlabeled_dataset
from halfmask.infer.runs import open_run
from halfmask.methods.allspark import AllSpark
from halfmask.report.evidence import Images, load_method
from halfmask.report.records import Run
from halfmask.teaching.grouping import channel_classes

_SHOWN_CHANNELS = 6
_GROUPED_IMAGES = 16
_EXAMPLES = 3
_SLOTS = 3
_MOST_CLASSES = 8


@dataclass(frozen=True)
class Channels:
    """One labeled image and some of its channels (Figure 5).

    Args:
        id: of the image.
        image: the part that was used.
        numbers: of the channels shown: those that vary most over the image, before and after.
        before: the encoder's last map.
        after: the bottleneck's result.
        likeness: mean absolute correlation of two channels, before and after; lower is more diverse.
    """

    id: str
    image: UInt8[np.ndarray, "H W 3"]
    numbers: tuple[int, ...]
    before: Float[np.ndarray, "n h w"]
    after: Float[np.ndarray, "n h w"]
    likeness: tuple[float, float]


@dataclass(frozen=True)
class Grouping:
    """How channels are spread over the classes (Figure 6).

    Args:
        images: how many unlabeled images.
        channels: per image.
        chosen: mean channels per class and image.
        share: of the images' predicted pixels.
        examples: some images with their own numbers of channels and shares.
    """

    images: int
    channels: int
    chosen: Float[np.ndarray, " K"]
    share: Float[np.ndarray, " K"]
    examples: tuple[tuple[str, UInt8[np.ndarray, "H W 3"], Int[np.ndarray, " K"], Float[np.ndarray, " K"]], ...]


@dataclass(frozen=True)
class Slots:
    """Newest slots of one class (Figure 7).

    Args:
        name: of the class.
        filled: part of its slots that hold a channel.
        maps: the channels, as maps.
        sources: id and picture of the image that each came from; `None` where the list has changed since.
    """

    name: str
    filled: float
    maps: Float[np.ndarray, "n h w"]
    sources: tuple[tuple[str, UInt8[np.ndarray, "H W 3"]] | None, ...]


@dataclass(frozen=True)
class Figures:
    """Everything about one run's bottleneck and memory; `slots` is empty without a memory."""

    channels: tuple[Channels, ...]
    grouping: Grouping | None
    slots: tuple[Slots, ...]
    uses_memory: bool


def is_allspark(run: Run) -> bool:
    """Whether these figures make sense for a run."""
    return run.method == "allspark"


@torch.inference_mode()
def allspark_figures(run: Run, images: Images) -> Figures:
    """Compute the figures from the last checkpoint and the run's own images.

    Raises:
        CheckpointError: there is no checkpoint.
        DataError: the images are not there any more.
    """
    method, progress = load_method(run, images.device)
    assert isinstance(method, AllSpark)
    recipe = open_run(run.path, (), sections=("data",)).data.model_copy(update={"root": str(images.dataset.root)})
    dataset = open_dataset(recipe)
    split = resolve_split(recipe, dataset)
    other = unlabeled_dataset(recipe, dataset)
    listed = run.split.get("unlabeled", {}).get("ids", list(split.unlabeled))
    labeled = [_crop(dataset, id, method) for id in split.labeled[:_EXAMPLES]]
    uses_memory = method.memory is not None and progress.epoch >= method.warmup_epochs
    channels = [_channels(method, id, image, progress) for id, image in zip(split.labeled, labeled, strict=False)]
    return Figures(
        tuple(channels),
        _grouping(method, other, listed[:: max(len(listed) // _GROUPED_IMAGES, 1)][:_GROUPED_IMAGES]),
        _slots(method, other, listed, run.classes) if method.memory is not None else (),
        uses_memory,
    )


def _channels(method: AllSpark, id: str, image: Float[Tensor, "1 C H W"], progress: Progress) -> Channels:
    """As the labeled half of a training step sees it, but without dropout."""
    features = method.student.encode(image)
    tokens, residual = method.bottleneck.embed(features[-1])
    keys, present = None, None
    if method.memory is not None and progress.epoch >= method.warmup_epochs:
        keys, present = method._recall(method.memory)
    result = method.bottleneck.attend(tokens, residual, keys, labeled=1, present=present)
    before, after = features[-1][0].float(), result[0].float()  # (D, h, w)
    spread = _rank(before) + _rank(after)
    numbers = tuple(sorted(spread.argsort(descending=True)[:_SHOWN_CHANNELS].tolist()))
    return Channels(
        id,
        _picture(image),
        numbers,
        before[list(numbers)].cpu().numpy(),
        after[list(numbers)].cpu().numpy(),
        (_likeness(before), _likeness(after)),
    )


def _rank(maps: Float[Tensor, "D h w"]) -> Float[Tensor, " D"]:
    """Place of each channel when ordered by its variation over the image; the most varying last."""
    return maps.flatten(1).std(1).argsort().argsort().float()


def _likeness(maps: Float[Tensor, "D h w"]) -> float:
    """Mean absolute correlation between different channels; dead channels are left out."""
    flat = maps.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    norm = flat.norm(dim=1)
    flat = flat[norm > 1e-6] / norm[norm > 1e-6].unsqueeze(1)
    count = len(flat)
    if count < 2:
        return float("nan")
    return float(((flat @ flat.T).abs().sum() - count) / (count * (count - 1)))


def _grouping(method: AllSpark, dataset: Dataset, ids: Sequence[str]) -> Grouping | None:
    if not ids:
        return None
    classes = method.task.n_classes
    rows, shares, examples = [], [], []
    for number, id in enumerate(ids):
        image = _crop(dataset, id, method)
        logits = method._label(image)
        tokens, _ = method.bottleneck.embed(method.student.encode(image)[-1])
        grouped = channel_classes(tokens, logits, (method.side, method.side), method.grouping)[0]
        chosen = torch.bincount(grouped.cpu(), minlength=classes).numpy()
        predicted = torch.bincount(logits.argmax(1).flatten().cpu(), minlength=classes).double()
        share = (predicted / predicted.sum()).numpy()
        rows.append(chosen)
        shares.append(share)
        if number < _EXAMPLES:
            examples.append((id, _picture(image), chosen, share))
    return Grouping(len(ids), int(rows[0].sum()), np.mean(rows, axis=0), np.mean(shares, axis=0), tuple(examples))


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
        order = [(pointer - 1 - back) % size for back in range(size)]  # newest first
        picked: dict[int, int] = {}  # one slot per image, so that different images are seen
        for slot in order:
            origin = int(memory.origin[k, slot])
            if origin >= 0 and origin not in picked:
                picked[origin] = slot
            if len(picked) == _SLOTS:
                break
        for origin in picked:
            if origin not in pictures and origin < len(listed):
                pictures[origin] = (listed[origin], _whole(dataset, listed[origin]))
        maps = memory.slots[k, list(picked.values())].float().cpu().numpy()
        found.append(
            Slots(
                names[k],
                filled[k],
                maps.reshape(-1, method.side, method.side),
                tuple(pictures.get(origin) for origin in picked),
            )
        )
    return tuple(found)


def _crop(dataset: Dataset, id: str, method: AllSpark) -> Float[Tensor, "1 C S S"]:
    """The middle of an image at the training crop's size; what is missing is black."""
    crop = int(method.student.spec["crop"])
    image = dataset.read_image(id)
    image = image[-1] if image.ndim == 4 else image
    height, width = image.shape[:2]
    top, left = max((height - crop) // 2, 0), max((width - crop) // 2, 0)
    part = image[top : top + crop, left : left + crop]
    whole = np.zeros((crop, crop, image.shape[2]), dtype=np.uint8)
    whole[: part.shape[0], : part.shape[1]] = part
    mean = method.student.mean
    return torch.from_numpy(whole).permute(2, 0, 1)[None].to(mean.device).to(mean.dtype) / 255


def _whole(dataset: Dataset, id: str) -> UInt8[np.ndarray, "H W 3"]:
    image = dataset.read_image(id)
    return _three(image[-1] if image.ndim == 4 else image)


def _picture(image: Float[Tensor, "1 C H W"]) -> UInt8[np.ndarray, "H W 3"]:
    return _three((image[0].permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy())


def _three(image: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "H W 3"]:
    return np.ascontiguousarray(image[:, :, :3] if image.shape[2] >= 3 else np.repeat(image[:, :, :1], 3, 2))
