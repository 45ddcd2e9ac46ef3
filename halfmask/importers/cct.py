"""Checkpoints of CCT: ResNet-50 at output stride 8, pyramid pooling, sub-pixel decoder.

Ouali et al., "Semi-Supervised Semantic Segmentation with Cross-Consistency Training", CVPR 2020, arXiv:2003.09005.
Files hold `state_dict`, 577 tensors; supervised ones lack the auxiliary decoders. Those only train: the main decoder
alone predicts, so they are left out.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from halfmask.importers._importer import Importer, resnet_entry, shape
from halfmask.models.key_rules import Rules
from halfmask.task import Task


class CCTCheckpoint(Importer):
    """Encoder and main decoder."""

    signs: ClassVar[tuple[str, ...]] = (r"encoder\.base\.0\.0\.", r"encoder\.psp\.", r"main_decoder\.")
    networks: ClassVar[Mapping[str, str]] = {"student": "state_dict"}
    classifier: ClassVar[str] = "main_decoder.upsample.0.weight"
    rules: ClassVar[Rules] = (
        *((rf"encoder\.base\.0\.0\.conv{n + 1}\.", f"encoder.net.conv1.{3 * n}.") for n in range(3)),
        *((rf"encoder\.base\.0\.0\.bn{n + 1}\.", f"encoder.net.conv1.{3 * n + 1}.") for n in range(2)),
        (r"encoder\.base\.0\.0\.bn3\.", "encoder.net.bn1."),
        (r"encoder\.base\.([1-4])\.", r"encoder.net.layer\1."),
        (r"encoder\.psp\.stages\.(\d)\.1\.", r"decoder.branches.\1.0."),
        (r"encoder\.psp\.stages\.(\d)\.2\.", r"decoder.branches.\1.1."),
        (r"encoder\.psp\.bottleneck\.", "decoder.bottleneck."),
        (r"main_decoder\.upsample\.0\.", "classifier.project."),
        *((rf"main_decoder\.upsample\.{n + 1}\.conv\.", f"classifier.stages.{n}.") for n in range(3)),
        (r"aux_decoders\.", None),
    )

    def section(self, state: Mapping[str, Tensor], task: Task) -> dict[str, Any]:
        """Return the sizes of encoder and decoder."""
        embedding = shape(state, "encoder.psp.bottleneck.0.weight")[0]
        return {
            "encoder": resnet_entry(state, "encoder.base.", stem="deep", output_stride=8),
            "decoder": {"name": "psp", "embedding": embedding, "upscale": 8},
        }
