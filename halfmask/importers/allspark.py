"""Checkpoints of AllSpark: MiT, the AllSpark bottleneck, SegFormer's head.

Wang et al., "AllSpark: Reborn Labeled Features from Unlabeled in Transformer for Semi-Supervised Semantic
Segmentation", CVPR 2024, arXiv:2403.01818. Files hold `model`. The class memory and its pointers are left out: they
serve training only, and a new run fills its own.

The weights first released for Pascal have an older layout of the bottleneck, whose code was never published. It is
refused; with `partial` encoder and head are loaded into a network without bottleneck, which needs further training.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from halfmask.errors import CheckpointError
from halfmask.importers._importer import Importer, shape
from halfmask.importers.mit import mit_entry
from halfmask.models.key_rules import Rules
from halfmask.task import Task

_OLD = ("decoder.allspark.embeddings.", "decoder.allspark.encoder.")


class AllSparkCheckpoint(Importer):
    """Every size of MiT, with the published bottleneck."""

    signs: ClassVar[tuple[str, ...]] = (r"backbone\.patch_embed1\.", r"decoder\.allspark\.")
    classifier: ClassVar[str] = "decoder.decoder.linear_pred.weight"
    rules: ClassVar[Rules] = (
        (r"backbone\.", "encoder."),
        (r"decoder\.allspark\.(embeddings|encoder)\.", None),
        (r"decoder\.allspark\.attn\.(kv_queue|queue_ptr)$", None),
        (r"decoder\.allspark\.attn\.(q|k|v|out)_l2u\.", r"bottleneck.cross.\1."),
        (r"decoder\.allspark\.attn\.(q|k|v|out)_u\.", r"bottleneck.own.\1."),
        (r"decoder\.allspark\.attn_norm\.", "bottleneck.norm1."),
        (r"decoder\.allspark\.encoder_norm\.", "bottleneck.norm2."),
        (r"decoder\.allspark\.(map_in|map_out)\.", r"bottleneck.\1."),
        *((rf"decoder\.decoder\.linear_c{n + 1}\.proj\.", f"decoder.projections.{n}.") for n in range(4)),
        (r"decoder\.decoder\.linear_fuse\.conv\.", "decoder.mix."),
        (r"decoder\.decoder\.linear_fuse\.bn\.", "decoder.norm."),
        (r"decoder\.decoder\.linear_pred\.", "classifier."),
    )
    crop: ClassVar[Mapping[str, int]] = {"": 513, "cityscapes": 801}
    protocols: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"mode": "whole", "absent_classes": "zero"},
        "cityscapes": {"mode": "slide", "border": "clip", "window": 801, "absent_classes": "zero"},
    }

    def refuse(self, state: Mapping[str, Tensor], partial: bool) -> None:
        """Refuse the older layout unless a network without bottleneck is wanted."""
        if _is_old(state) and not partial:
            raise CheckpointError(
                "the bottleneck is of an older layout (decoder.allspark.embeddings, decoder.allspark.encoder), whose "
                "code was never published, so it cannot be built. Encoder and head can be loaded, into a network "
                "without bottleneck that must be trained further: --partial (partial=True). Take a newer release for "
                "the published numbers.",
                "H403",
            )

    def section(self, state: Mapping[str, Tensor], task: Task) -> dict[str, Any]:
        """Return the sizes of encoder, bottleneck and decoder."""
        embedding = shape(state, "decoder.decoder.linear_fuse.conv.weight")[0]
        bottleneck: dict[str, Any] | None = None
        if not _is_old(state):
            rows, width = shape(state, "decoder.allspark.attn.q_l2u.weight")
            bottleneck = {"name": "allspark", "width": width, "heads": rows // width}
        return {
            "encoder": mit_entry(state, "backbone."),
            "decoder": {"name": "segformer", "embedding": embedding},
            "bottleneck": bottleneck,
        }


def _is_old(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith(_OLD) for key in state)
