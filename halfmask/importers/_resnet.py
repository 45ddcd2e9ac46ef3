"""The ResNet of several official layouts, told by the shapes of its tensors."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from halfmask.importers._importer import count, shape

# Blocks per stage of networks with bottlenecks -> depth.
_DEPTHS: dict[tuple[int, ...], int] = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}


def resnet_entry(state: Mapping[str, Tensor], stage: str, *, stem: str, output_stride: int) -> dict[str, Any]:
    """Read depth and width.

    Args:
        state: official names.
        stage: in front of the names of stage 1, 2, 3, 4, for example `backbone.layer`.
        stem: `deep` or `plain`.
        output_stride: leaves no trace in the tensors.

    Raises:
        CheckpointError: the first convolution of the first stage is missing.
    """
    blocks = tuple(count(state, rf"{stage.replace('.', '[.]')}{number}\.(\d+)\.") for number in range(1, 5))
    width = shape(state, f"{stage}1.0.conv1.weight")[0]
    entry: dict[str, Any] = {"name": "resnet", "depth": _DEPTHS.get(blocks, 50), "stem": stem, "width": width}
    entry["output_stride"] = output_stride
    if blocks not in _DEPTHS:
        return entry | {"blocks": list(blocks)}
    return entry | ({"weights": "imagenet"} if width == 64 else {})
