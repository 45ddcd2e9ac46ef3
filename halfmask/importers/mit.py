"""MiT encoder weights in the layout of SegFormer's authors (`mit_b0.pth` to `mit_b5.pth`).

Xie et al., "SegFormer", NeurIPS 2021, arXiv:2105.15203. The file becomes one that `model.encoder.weights` takes;
`model.encoder` reads the authors' file just as well, so importing it is a check and a conversion to safetensors.
The ImageNet classifier is left out.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from halfmask.errors import CheckpointError
from halfmask.importers._importer import Importer, count, shape
from halfmask.models.key_rules import Rules
from halfmask.task import Task

# Width of the first stage and blocks of the third, which differ between all sizes.
_SIZES = {(32, 2): "b0", (64, 2): "b1", (64, 6): "b2", (64, 18): "b3", (64, 27): "b4", (64, 40): "b5"}


class MiTWeights(Importer):
    """Files of the authors and of AllSpark."""

    holds: ClassVar[Literal["model", "encoder"]] = "encoder"
    signs: ClassVar[tuple[str, ...]] = (r"patch_embed1\.proj\.weight$", r"block1\.0\.attn\.q\.weight$")
    rules: ClassVar[Rules] = ((r"head\.", None),)

    def section(self, state: Mapping[str, Tensor], task: Task) -> dict[str, Any]:
        """Return the encoder's size."""
        return {"encoder": mit_entry(state, "")}


def mit_entry(state: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Read the size of a MiT encoder from its tensors. Raises CheckpointError: no published size."""
    width = shape(state, f"{prefix}patch_embed1.proj.weight")[0]
    blocks = count(state, rf"{prefix.replace('.', '[.]')}block3\.(\d+)\.")
    if (width, blocks) not in _SIZES:
        raise CheckpointError(
            f"a MiT encoder of width {width} with {blocks} blocks in its third stage, which is none of b0 to b5. "
            "Is the file complete?",
            "H403",
        )
    return {"name": "mit", "size": _SIZES[width, blocks], "weights": "imagenet"}
