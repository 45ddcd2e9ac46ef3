"""Bilinear upsampling in bands of output rows: which input rows an output row mixes, and how."""

import torch
from torch import Tensor


def row_mix(
    source: int, target: int, align_corners: bool, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Give, for each of `target` output rows, the two of `source` input rows it mixes and the weight of the second.

    >>> top, bottom, weight = row_mix(2, 4, False, torch.device("cpu"), torch.float32)
    >>> top.tolist(), bottom.tolist(), weight.tolist()
    ([0, 0, 0, 1], [1, 1, 1, 1], [0.0, 0.25, 0.75, 0.25])
    """
    row = torch.arange(target, device=device, dtype=torch.float64)
    if align_corners:
        position = row * ((source - 1) / max(target - 1, 1))
    else:
        position = ((row + 0.5) * (source / target) - 0.5).clamp_min(0)
    top = position.floor().long().clamp_max(source - 1)
    return top, (top + 1).clamp_max(source - 1), (position - top).to(dtype)
