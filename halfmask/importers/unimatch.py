"""Checkpoints of UniMatch V1: deep-stem ResNet-50 or -101, or Xception-65, and DeepLabV3+.

Yang et al., "Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation", CVPR 2023,
arXiv:2208.09910. Files hold `model`; there is no teacher. The output stride leaves no trace in the tensors: 16, as in
every published model, unless `model.encoder.output_stride=8` says otherwise.

Refused: PSPNet.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from halfmask.importers._importer import Importer, count, resnet_entry, shape
from halfmask.models.encoders.xception import OUTER_BLOCKS
from halfmask.models.key_rules import Rules
from halfmask.task import Task

_WHOLE = {"mode": "whole", "fit": "resize", "absent_classes": "zero"}


class UniMatchCheckpoint(Importer):
    """ResNet or Xception with DeepLabV3+, trained with UniMatch V1, FixMatch or labels only."""

    signs: ClassVar[tuple[str, ...]] = (r"backbone\.", r"head\.b4\.gap\.", r"fuse\.0\.")
    classifier: ClassVar[str] = "classifier.weight"
    rules: ClassVar[Rules] = (
        (r"backbone\.", "encoder.net."),
        (r"head\.b([0-3])\.", r"decoder.branches.\1."),
        (r"head\.b4\.gap\.1\.", "decoder.pool.0."),
        (r"head\.b4\.gap\.2\.", "decoder.pool.1."),
        (r"head\.project\.", "decoder.project."),
        (r"reduce\.", "decoder.reduce."),
        (r"fuse\.([01])\.", r"decoder.convs.0.\1."),
        (r"fuse\.3\.", "decoder.convs.1.0."),
        (r"fuse\.4\.", "decoder.convs.1.1."),
        (r"classifier\.", "classifier."),
    )
    crop: ClassVar[Mapping[str, int]] = {"": 321, "cityscapes": 801, "coco": 513, "levir": 256, "whu": 256}
    protocols: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": _WHOLE,
        "cityscapes": {"mode": "slide", "border": "clip", "window": 801, "absent_classes": "zero"},
    }

    def section(self, state: Mapping[str, Tensor], task: Task) -> dict[str, Any]:
        """Return the sizes of encoder and decoder."""
        decoder = {
            "name": "deeplabv3plus",
            "rates": [6, 12, 18],
            "aspp": shape(state, "head.b0.0.weight")[0],
            "low": shape(state, "reduce.0.weight")[0],
            "embedding": shape(state, "fuse.0.weight")[0],
        }
        return {"encoder": _encoder(state), "decoder": decoder}


def _encoder(state: Mapping[str, Tensor]) -> dict[str, Any]:
    if any(key.startswith("backbone.block1.") for key in state):
        width, blocks = shape(state, "backbone.conv1.weight")[0], count(state, r"backbone\.block(\d+)\.")
        return {"name": "xception", "output_stride": 16, "width": width, "blocks": max(blocks - OUTER_BLOCKS, 0)}
    stem = "deep" if "backbone.conv1.0.weight" in state else "plain"
    return resnet_entry(state, "backbone.layer", stem=stem, output_stride=16)
