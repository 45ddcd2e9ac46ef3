"""Checkpoints of CCT: ResNet-50 at output stride 8, pyramid pooling, sub-pixel decoder.

Ouali et al., "Semi-Supervised Semantic Segmentation with Cross-Consistency Training", CVPR 2020, arXiv:2003.09005.
Files hold `state_dict`, 577 tensors; supervised ones lack the auxiliary decoders. Those only train: the main decoder
alone predicts, so they are left out.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from halfmask.importers._importer import Importer, count, shape
from halfmask.importers._rules import Rules
from halfmask.task import Task

_DEPTHS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}


class CCT(Importer):
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
        """Give K."""
        return shape(state, "main_decoder.upsample.0.weight")[0]

    def section(self, state: Mapping[str, Tensor], task: Task) -> dict[str, Any]:
        """Give the sizes of encoder and decoder."""
        blocks = [count(state, rf"encoder\.base\.{stage}\.(\d+)\.") for stage in range(1, 5)]
        encoder: dict[str, Any] = {"name": "resnet", "depth": _DEPTHS.get(tuple(blocks), 50), "output_stride": 8}
        encoder |= {"stem": "deep", "width": shape(state, "encoder.base.1.0.conv1.weight")[0]}
        if tuple(blocks) not in _DEPTHS:
            encoder["blocks"] = blocks
        elif encoder["width"] == 64:
            encoder["weights"] = "imagenet"
        embedding = shape(state, "encoder.psp.bottleneck.0.weight")[0]
        return {"encoder": encoder, "decoder": {"name": "psp", "embedding": embedding, "upscale": 8}}
