"""Turn an image into class probabilities or a class map, by the evaluation protocol of a recipe.

    whole         one forward of the whole image (`eval.fit` brings it to a size the network takes)
    slide         overlapping windows, softmax probabilities summed where windows overlap
    center_crop   one forward; an evaluation cuts the middle window out of image and target before (`center`)
    scales, flip  softmax probabilities of every view averaged

Windows as published: UniMatch V2 (Yang et al. 2025) moves the last window back to the border (`shift`); AllSpark
(Wang et al. 2024) and UniMatch (Yang et al. 2023) start one at every multiple of the stride and truncate it
(`clip`), even where the window before already reached the border. With `shift`, an image smaller than the window
is one window of the image's own size; the published code fails there.

Images are RGB (or any bands) in [0, 1] and never normalized here: the model does that. `fit: resize`
interpolates them before normalization, which is the same as after, because both are linear and the weights of
an interpolation sum to one.

A class map is made from coarse logits without the upsampled ones (`upsampled_argmax`): a band of output rows mixes two
input rows each, then is interpolated along the width. Band by band the working set stays in the cache: 19 classes at
1024 x 2048 need 160 MB of upsampled logits, a band of 16 rows needs 2.5 MB. The result differs from the textbook
form only where two classes are equal up to rounding (measured: a few pixels in a million).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from halfmask.errors import RecipeError, ShapeError
from halfmask.models.coarse_logits import CoarseLogits, full, place_of, row_mix
from halfmask.models.ensemble import Ensemble, log_mean_probabilities
from halfmask.models.model import ChangeSegmenter, Network, Segmenter
from halfmask.recipe.read import EvalRecipe

Box = tuple[int, int, int, int]  # top, left, height, width
READERS = 2  # threads that read images ahead, unless another number is asked for


@torch.inference_mode()
def class_map(
    model: Network, image: Float[Tensor, "B *T C H W"], protocol: EvalRecipe, crop: int | None = None
) -> Integer[Tensor, "B *S"]:
    """Predict the class of every pixel (or image).

    Args:
        model: in eval mode.
        image: in [0, 1], images of one size.
        protocol: how to evaluate.
        crop: training crop side; the window of `slide` unless the protocol names one.

    Returns:
        Class ids of the images' own size, uint8 if K <= 255, else int64.

    Raises:
        RecipeError: windows without a size.
        ShapeError: a stride larger than the window would leave pixels without prediction.
    """
    one_forward = protocol.mode != "slide" and protocol.scales == (1.0,) and not protocol.flip
    if one_forward and isinstance(model, Segmenter | ChangeSegmenter):
        return _whole_class_map(model, image, protocol)
    scores = _fitted_logits(model, image, protocol) if one_forward else probabilities(model, image, protocol, crop)
    best = scores.max(1).indices
    return best.to(torch.uint8) if scores.shape[1] <= 255 else best


@torch.inference_mode()
def probabilities(
    model: Network, image: Float[Tensor, "B *T C H W"], protocol: EvalRecipe, crop: int | None = None
) -> Float[Tensor, "B K *S"]:
    """Predict class probabilities, averaged over scales, flips and overlapping windows.

    Arguments and errors are those of `class_map`; the result is float32 (float64 for a float64 model) of the
    images' own size.
    """
    size = (image.shape[-2], image.shape[-1])
    total: Tensor | None = None
    for scale in protocol.scales:
        scaled = image if scale == 1 else _scaled(image, scale, protocol.antialias)
        for flip in (False, True) if protocol.flip else (False,):
            view = scaled.flip(-1) if flip else scaled
            found = _slide(model, view, protocol, crop) if protocol.mode == "slide" else _whole(model, view, protocol)
            if found.ndim == 4:
                found = found.flip(-1) if flip else found
                found = found if found.shape[-2:] == size else _interpolate(found, size, not protocol.antialias)
            total = found if total is None else total.add_(found)
    assert total is not None  # a recipe has at least one scale
    return total.div_(len(protocol.scales) * (2 if protocol.flip else 1))


def center(size: tuple[int, int], protocol: EvalRecipe, crop: int | None = None) -> Box:
    """Return the middle window of the `center_crop` protocol; a shorter image side is taken whole.

    >>> center((64, 71), EvalRecipe(mode="center_crop", window=33))
    (15, 19, 33, 33)
    """
    side = _side(protocol, crop)
    height, width = (min(side, length) for length in size)
    return (size[0] - height) // 2, (size[1] - width) // 2, height, width


def windows(size: tuple[int, int], protocol: EvalRecipe, crop: int | None = None) -> list[Box]:
    """List the windows of the sliding protocol, row by row.

    >>> windows((28, 64), EvalRecipe(mode="slide", window=28))
    [(0, 0, 28, 28), (0, 18, 28, 28), (0, 36, 28, 28)]
    >>> windows((28, 64), EvalRecipe(mode="slide", window=28, stride=20, border="clip"))[-1]
    (20, 60, 8, 4)
    """
    side = _side(protocol, crop)
    stride = protocol.stride or max(side * 2 // 3, 1)
    if stride > side:
        raise ShapeError(
            f"eval.stride={stride} is larger than the window of {side}: pixels between the windows would get no "
            f"prediction. Use a stride of at most {side} (default {max(side * 2 // 3, 1)})."
        )
    rows, columns = (_spans(length, side, stride, protocol.border) for length in size)
    return [(top, left, height, width) for top, height in rows for left, width in columns]


def _side(protocol: EvalRecipe, crop: int | None) -> int:
    side = protocol.window or crop
    if side is None:
        raise RecipeError(
            f"eval.mode={protocol.mode} needs the side of the window, and the model names no training crop. "
            "Set it, for example eval.window=512."
        )
    return side


def _spans(length: int, side: int, stride: int, border: str) -> list[tuple[int, int]]:
    """Return start and length of each window along one axis."""
    if border == "clip":
        return [(start, min(side, length - start)) for start in range(0, length, stride)]
    last = max(length - side, 0)
    starts = [*range(0, last, stride), last]
    return [(start, min(side, length)) for start in starts]


def _slide(model: Network, image: Tensor, protocol: EvalRecipe, crop: int | None) -> Tensor:
    """Average the softmax of all windows that cover a pixel, (B, K, H, W)."""
    height, width = image.shape[-2:]
    boxes = windows((height, width), protocol, crop)
    images_at_once = image.shape[0]
    total: Tensor | None = None
    for group in _equal_size(boxes, max(protocol.batch // images_at_once, 1)):
        stack = torch.cat([image[..., top : top + h, left : left + w] for top, left, h, w in group])
        found = _of_windows(model, stack, protocol, crop)
        if found.ndim != 4:
            raise ShapeError("eval.mode=slide needs a dense prediction; use eval.mode=whole for classification.")
        if total is None:
            total = found.new_zeros(images_at_once, found.shape[1], height, width)
        for (top, left, h, w), part in zip(group, found.split(images_at_once), strict=True):
            total[:, :, top : top + h, left : left + w] += part
    assert total is not None  # an image has at least one window
    return total.div_(_coverage(boxes, (height, width)).to(total))


def _of_windows(model: Network, stack: Tensor, protocol: EvalRecipe, crop: int | None) -> Tensor:
    """Return probabilities of windows of one size.

    Raises:
        ShapeError: `clip` cut a last window so short that the network cannot take it.
    """
    try:
        return _whole(model, stack, protocol)
    except ShapeError as error:
        height, width = stack.shape[-2:]
        side = _side(protocol, crop)
        if protocol.border == "shift" or min(height, width) >= side:
            raise
        raise ShapeError(
            f"eval.border=clip ends with a window of {width}x{height} pixels, cut off windows of {side}x{side}, and "
            f"the network cannot take it: {str(error).partition('. ')[0]}. Use eval.border=shift, which moves the last "
            "window back, or another eval.window or eval.stride."
        ) from error


def _equal_size(boxes: list[Box], at_once: int) -> Iterator[list[Box]]:
    """Group windows of the same height and width, at most so many at once."""
    by_size: dict[tuple[int, int], list[Box]] = {}
    for box in boxes:
        by_size.setdefault(box[2:], []).append(box)
    for group in by_size.values():
        for start in range(0, len(group), at_once):
            yield group[start : start + at_once]


def _coverage(boxes: list[Box], size: tuple[int, int]) -> Integer[Tensor, "H W"]:
    """Count how many windows cover each pixel."""
    count = torch.zeros(size, dtype=torch.int64)
    for top, left, height, width in boxes:
        count[top : top + height, left : left + width] += 1
    return count


def _whole(model: Network, image: Tensor, protocol: EvalRecipe) -> Tensor:
    """Compute softmax probabilities of one forward, (B, K, H, W), or (B, K) of a classifier."""
    return _fitted_logits(model, image, protocol).softmax(1)


def _fitted_logits(model: Network, image: Tensor, protocol: EvalRecipe) -> Tensor:
    if isinstance(model, Ensemble):  # each model takes the image at a size of its own
        return log_mean_probabilities([_fitted_logits(member, image, protocol) for member in model.members])
    size = (image.shape[-2], image.shape[-1])
    logits = _logits(model, _fit(image, model.size_multiple, protocol), protocol)
    if logits.ndim != 4 or logits.shape[-2:] == size:
        return logits
    if protocol.fit == "resize":
        return _interpolate(logits, size)
    return logits[:, :, : size[0], : size[1]]


def _whole_class_map(model: Segmenter | ChangeSegmenter, image: Tensor, protocol: EvalRecipe) -> Tensor:
    """Compute the class map of one forward; the logits are upsampled band by band, never held whole."""
    size = (image.shape[-2], image.shape[-1])
    fitted = _fit(image, model.size_multiple, protocol)
    fitted_size = (fitted.shape[-2], fitted.shape[-1])
    if protocol.fit == "resize" and fitted_size != size:
        return upsampled_argmax(_logits(model, fitted, protocol), size, align_corners=True)
    return upsampled_argmax(_coarse(model, fitted, protocol), fitted_size, model.decoder.align_corners, keep=size)


def _logits(model: Network, image: Tensor, protocol: EvalRecipe) -> Tensor:
    """Compute the logits of one forward of an image that fits: float32, or float64 of such a network."""
    if protocol.precision == "32-true":
        return _full_precision(model(image))
    if isinstance(model, Segmenter | ChangeSegmenter):  # upsampled in bfloat16, more classes would be equal
        coarse = _coarse(model, image, protocol)
        size = (image.shape[-2], image.shape[-1])
        return full(CoarseLogits(coarse, size, model.decoder.align_corners))
    with _autocast(image, protocol):
        return _full_precision(model(image))


def _coarse(model: Segmenter | ChangeSegmenter, image: Tensor, protocol: EvalRecipe) -> Tensor:
    """Return the logits before upsampling."""
    with _autocast(image, protocol):
        return _full_precision(model.classifier(model.embed(model.encode(image))))


def _autocast(image: Tensor, protocol: EvalRecipe) -> AbstractContextManager[object]:
    mixed = protocol.precision == "bf16-mixed" and image.dtype == torch.float32
    return torch.autocast(image.device.type, torch.bfloat16) if mixed else nullcontext()


def _fit(image: Tensor, multiple: int, protocol: EvalRecipe) -> Tensor:
    """Bring an image to sides that are multiples of `multiple`."""
    height, width = image.shape[-2:]
    if protocol.fit == "resize":
        # int(x + 0.5), not round(): 3.5 goes up to 4, as in the published code
        target = tuple(max(int(side / multiple + 0.5), 1) * multiple for side in (height, width))
        return image if target == (height, width) else _resize(image, (target[0], target[1]))
    bottom, right = -height % multiple, -width % multiple
    if not bottom and not right:
        return image
    # An image cannot be mirrored by more than its own size; its border pixels are repeated instead.
    mode = "reflect" if bottom < height and right < width else "replicate"
    padded = F.pad(image.flatten(0, -4), (0, right, 0, bottom), mode=mode)
    return padded.reshape(*image.shape[:-2], height + bottom, width + right)


def _scaled(image: Tensor, scale: float, antialias: bool) -> Tensor:
    size = (_round(image.shape[-2] * scale), _round(image.shape[-1] * scale))
    if not antialias:
        return _resize(image, size)
    # As training views are (`views.weak`): a network should meet the images it learned from.
    flat = F.interpolate(image.flatten(0, -4), size=size, mode="bilinear", antialias=scale < 1)
    return flat.reshape(*image.shape[:-2], *size)


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    return _interpolate(image.flatten(0, -4), size).reshape(*image.shape[:-2], *size)


def _interpolate(values: Tensor, size: tuple[int, int], aligned: bool = True) -> Tensor:
    return F.interpolate(values, size=size, mode="bilinear", align_corners=aligned)


def _round(value: float) -> int:
    return max(int(value + 0.5), 1)


def _full_precision(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


Implementation = Literal["auto", "bands", "whole"]

_BAND_BYTES = 5 * 2**19  # fits the cache; half of what 32 rows of 19 classes would take
# A GPU has one kernel launch per band to pay; below this size of the upsampled tensor it is faster whole.
_WHOLE_BYTES = 256 * 2**20


def upsampled_argmax(
    logits: Float[Tensor, "B K h w"],
    size: tuple[int, int],
    align_corners: bool,
    *,
    keep: tuple[int, int] | None = None,
    impl: Implementation = "auto",
) -> Integer[Tensor, "B H2 W2"]:
    """Upsample logits bilinearly to `size` (H, W), take the best class of each pixel, keep the top left part.

    Args:
        logits: at the resolution of the classifier.
        size: rows and columns of the upsampled map.
        align_corners: convention of the interpolation.
        keep: rows and columns to return, when the input was padded at the bottom and right; default: all.
        impl: `bands` of rows, `whole` (all upsampled logits at once), or `auto`.

    Returns:
        Class ids, uint8 if K <= 255, else int64.

    >>> upsampled_argmax(torch.tensor([[[[0.0, 1.0]], [[1.0, 0.0]]]]), (1, 4), align_corners=False)
    tensor([[[1, 1, 0, 0]]], dtype=torch.uint8)
    """
    rows, columns = keep or size
    dtype = torch.uint8 if logits.shape[1] <= 255 else torch.int64
    upsampled_bytes = logits.shape[0] * logits.shape[1] * size[0] * size[1] * 4
    if impl == "auto":
        impl = "whole" if logits.device.type != "cpu" and upsampled_bytes <= _WHOLE_BYTES else "bands"
    logits = logits.double() if logits.dtype == torch.float64 else logits.float()
    if impl == "whole" or logits.shape[-2:] == size:
        best = F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners).argmax(1)
        return best[:, :rows, :columns].to(dtype)
    top, bottom, weight = row_mix(logits.shape[2], size[0], align_corners, logits.device, logits.dtype)
    result = torch.empty(logits.shape[0], rows, columns, dtype=dtype, device=logits.device)
    fast_index = logits.device.type == "cpu" and logits.shape[1] <= 255
    band_rows = max(1, _BAND_BYTES * size[0] // upsampled_bytes)
    for start in range(0, rows, band_rows):
        band = slice(start, min(start + band_rows, rows))
        mixed = torch.lerp(logits[:, :, top[band]], logits[:, :, bottom[band]], weight[band, None])
        wide = F.interpolate(mixed, (mixed.shape[2], size[1]), mode="bilinear", align_corners=align_corners)
        best = place_of(wide.amax(1), wide, axis=1) if fast_index else wide.max(1).indices
        result[:, band] = best[:, :, :columns]
    return result


Key = TypeVar("Key")
Value = TypeVar("Value")


def read_ahead(read: Callable[[Key], Value], keys: Iterable[Key], workers: int) -> Iterator[Value]:
    """Return `read(key)` for each key in order, read by threads while the caller works.

    Image decoders release the interpreter lock, so threads are enough, and unlike processes they start at once,
    share everything, and work the same on every platform. At most 2 * workers results wait.

    Args:
        read: must be safe from several threads; an exception surfaces at its key's turn.
        keys: what to read.
        workers: threads; 0 reads in the caller's thread.

    >>> list(read_ahead(str.upper, "abc", workers=2))
    ['A', 'B', 'C']
    """
    if workers < 1:
        yield from map(read, keys)
        return
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[Value]] = deque()
        try:
            for key in keys:
                pending.append(pool.submit(read, key))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
