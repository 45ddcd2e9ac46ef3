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
    rules: ClassVar[Rules] = (
        (r"encoder\.base\.0\.0\.conv1\.", "encoder.net.conv1.0."),
        (r"encoder\.base\.0\.0\.bn1\.", "encoder.net.conv1.1."),
        (r"encoder\.base\.0\.0\.conv2\.", "encoder.net.conv1.3."),
        (r"encoder\.base\.0\.0\.bn2\.", "encoder.net.conv1.4."),
        (r"encoder\.base\.0\.0\.conv3\.", "encoder.net.conv1.6."),
        (r"encoder\.base\.0\.0\.bn3\.", "encoder.net.bn1."),
        (r"encoder\.base\.([1-4])\.", r"encoder.net.layer\1."),
        (r"encoder\.psp\.stages\.(\d)\.1\.", r"decoder.branches.\1.0."),
        (r"encoder\.psp\.stages\.(\d)\.2\.", r"decoder.branches.\1.1."),
        (r"encoder\.psp\.bottleneck\.", "decoder.bottleneck."),
        (r"main_decoder\.upsample\.0\.", "classifier.project."),
        (r"main_decoder\.upsample\.1\.conv\.", "classifier.stages.0."),
        (r"main_decoder\.upsample\.2\.conv\.", "classifier.stages.1."),
        (r"main_decoder\.upsample\.3\.conv\.", "classifier.stages.2."),
        (r"aux_decoders\.", None),
    )

    def classes(self, state: Mapping[str, Tensor]) -> int:
        """Return K."""
        return shape(state, "main_decoder.upsample.0.weight")[0]

    def section(self, state: Mapping[str, Tensor], task: Task) -> dict[str, Any]:
        """Return the sizes of encoder and decoder."""
        embedding = shape(state, "encoder.psp.bottleneck.0.weight")[0]
        return {
            "encoder": resnet_entry(state, "encoder.base.", stem="deep", output_stride=8),
            "decoder": {"name": "psp", "embedding": embedding, "upscale": 8},
        }
