"""DINOv2 encoder weights in the authors' layout (`dinov2_vit{s,b,l,g}14_pretrain.pth`).

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024, arXiv:2304.07193.
The file becomes one that `model.encoder.weights` takes; `model.encoder` reads the authors' file just as well, so
importing it is a check and a conversion to safetensors. The mask token, which no forward pass uses, is left out.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from halfmask.errors import CheckpointError
from halfmask.importers._importer import Importer, count, shape
from halfmask.models.key_rules import Rules
from halfmask.task import Task

# Blocks and token width of the published networks; the width decides between sizes of equal depth.
_SIZES = {(12, 384): "small", (12, 768): "base", (24, 1024): "large", (40, 1536): "giant"}
_BY_DEPTH = {12: "small", 24: "large", 40: "giant"}


class DINOv2Weights(Importer):
    """Files with register tokens, another patch or another position grid are refused by the encoder `dinov2`."""

    holds: ClassVar[Literal["model", "encoder"]] = "encoder"
    signs: ClassVar[tuple[str, ...]] = (r"cls_token$", r"patch_embed\.proj\.", r"blocks\.\d+\.ls1\.gamma$")
    rules: ClassVar[Rules] = ((r"mask_token$", None),)

    def section(self, state: Mapping[str, Tensor], task: Task) -> dict[str, Any]:
        """Return the encoder's size."""
        return {"encoder": vit_entry(state, "")}


def vit_entry(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Read name, size and width of a DINOv2 encoder from its tensors. Raises CheckpointError: no published depth."""
    width = shape(state, f"{prefix}cls_token")[-1]
    blocks = count(state, rf"{prefix.replace('.', '[.]')}blocks\.(\d+)\.")
    if blocks not in _BY_DEPTH:
        raise CheckpointError(
            f"a DINOv2 encoder of {blocks} blocks; published ones have 12, 24 or 40. Is the file complete?", "H403"
        )
    entry: dict[str, Any] = {"name": "dinov2", "size": _SIZES.get((blocks, width), _BY_DEPTH[blocks])}
    if (blocks, width) in _SIZES:
        return entry | {"weights": "lvd142m"}
    # The number of heads leaves no trace in the shapes; 64 channels per head in every published size.
    return entry | {"dim": width, "heads": max(1, width // 64)}
