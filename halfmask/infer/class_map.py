"""Class map from coarse logits without the upsampled logits.

Bilinear interpolation is separable: a band of output rows needs a mix of two input rows each, then an
interpolation along the width. Taking the maximum band by band keeps the working set in the cache: 19 classes at
1024 x 2048 need 160 MB of upsampled logits, a band of 16 rows needs 2.5 MB. The result differs from the textbook
form only where two classes are equal up to rounding (measured: a few pixels in a million).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from halfmask.models.confidence import place_of
from halfmask.models.row_bands import row_mix
from halfmask.reference import class_map as reference

Implementation = Literal["auto", "bands", "reference"]

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
        impl: `bands`, `reference` (textbook), or `auto`.

    Returns:
        Class ids, uint8 if K <= 255, else int64.

    >>> upsampled_argmax(torch.tensor([[[[0.0, 1.0]], [[1.0, 0.0]]]]), (1, 4), align_corners=False)
    tensor([[[1, 1, 0, 0]]], dtype=torch.uint8)
    """
    rows, columns = keep or size
    dtype = torch.uint8 if logits.shape[1] <= 255 else torch.int64
    upsampled_bytes = logits.shape[0] * logits.shape[1] * size[0] * size[1] * 4
    if impl == "auto":
        impl = "reference" if logits.device.type != "cpu" and upsampled_bytes <= _WHOLE_BYTES else "bands"
    logits = logits.double() if logits.dtype == torch.float64 else logits.float()
    if impl == "reference" or logits.shape[-2:] == size:
        best = reference.upsampled_argmax(logits, size, align_corners)
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
