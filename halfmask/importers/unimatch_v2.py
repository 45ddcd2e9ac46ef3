"""Checkpoints of UniMatch V2: DINOv2 with DPT, student and EMA teacher.

Yang et al., "UniMatch V2: Pushing the Limit of Semi-Supervised Semantic Segmentation", TPAMI 2025,
arXiv:2410.10777. Files hold `model` and, except for supervised ones, `model_ema`; the published numbers are the
teacher's, so it is the default. Left out: the mask token and the unit of the coarsest fusion block that would add a
skip map it never gets; no forward pass uses them.

Change detection checkpoints have the same tensors: import them with --task change.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from halfmask.importers._importer import Importer, shape
from halfmask.importers.dinov2 import vit_entry
from halfmask.models.key_rules import Rules
from halfmask.task import Task

_WHOLE = {"mode": "whole", "fit": "resize", "absent_classes": "zero"}


def _fusion_rules() -> list[tuple[str, str | None]]:
    rules: list[tuple[str, str | None]] = []
    for level in range(4):
        official = rf"head\.scratch\.refinenet{level + 1}\."
        rules += [
            (rf"head\.scratch\.layer{level + 1}_rn\.", f"decoder.to_common.{level}."),
            (rf"{official}out_conv\.", f"decoder.fusions.{level}.out."),
            (rf"{official}resConfUnit1\.", f"decoder.fusions.{level}.skip." if level < 3 else None),
            (rf"{official}resConfUnit2\.", f"decoder.fusions.{level}.unit."),
        ]
    return rules


class UniMatchV2Checkpoint(Importer):
    """Every size of DINOv2, trained with UniMatch V2, FixMatch or labels only."""

    signs: ClassVar[tuple[str, ...]] = (r"backbone\.blocks\.0\.", r"head\.scratch\.")
    networks: ClassVar[Mapping[str, str]] = {"teacher": "model_ema", "student": "model"}
    classifier: ClassVar[str] = "head.scratch.output_conv.2.weight"
    rules: ClassVar[Rules] = (
        (r"backbone\.mask_token$", None),
        (r"backbone\.blocks\.(\d+)\.mlp\.w12\.", r"encoder.net.blocks.\1.mlp.fc1."),
        (r"backbone\.blocks\.(\d+)\.mlp\.w3\.", r"encoder.net.blocks.\1.mlp.fc2."),
        (r"backbone\.", "encoder.net."),
        (r"head\.projects\.", "decoder.projects."),
        (r"head\.resize_layers\.", "decoder.resize."),
        *_fusion_rules(),
        (r"head\.scratch\.output_conv\.0\.", "decoder.head.0."),
        (r"head\.scratch\.output_conv\.2\.", "classifier."),
    )
    crop: ClassVar[Mapping[str, int]] = {"": 518, "cityscapes": 798, "levir": 252, "whu": 252}
    protocols: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": _WHOLE,
        "cityscapes": {"mode": "slide", "border": "shift", "window": 798, "absent_classes": "zero"},
    }

    def section(self, state: Mapping[str, Tensor], task: Task) -> dict[str, Any]:
        """Return the sizes of encoder and decoder."""
        projections = [shape(state, f"head.projects.{level}.weight")[0] for level in range(4)]
        features = shape(state, "head.scratch.output_conv.0.weight")[0]
        return {
            "encoder": vit_entry(state, "backbone.") | {"interpolation": "offset"},
            "decoder": {"name": "dpt", "features": features, "projections": projections},
        }
