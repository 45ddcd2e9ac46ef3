"""Names of tensors in the published checkpoints of UniMatch, as names of our models."""

import re

from torch import Tensor

_DEEPLAB = [
    (r"^backbone\.", "encoder.net."),
    (r"^head\.b([0-3])\.", r"decoder.branches.\1."),
    (r"^head\.b4\.gap\.1\.", "decoder.pool.0."),
    (r"^head\.b4\.gap\.2\.", "decoder.pool.1."),
    (r"^head\.project\.", "decoder.project."),
    (r"^reduce\.", "decoder.reduce."),
    (r"^fuse\.([01])\.", r"decoder.convs.0.\1."),
    (r"^fuse\.3\.", "decoder.convs.1.0."),
    (r"^fuse\.4\.", "decoder.convs.1.1."),
    (r"^classifier\.", "classifier."),
]
_DPT = [
    (r"^backbone\.", "encoder.net."),
    (r"^head\.projects\.", "decoder.projects."),
    (r"^head\.resize_layers\.", "decoder.resize."),
    (r"^head\.scratch\.output_conv\.0\.", "decoder.head.0."),
    (r"^head\.scratch\.output_conv\.2\.", "classifier."),
]
for _level in range(4):
    _fusion = rf"^head\.scratch\.refinenet{_level + 1}\."
    _DPT += [
        (rf"^head\.scratch\.layer{_level + 1}_rn\.", f"decoder.to_common.{_level}."),
        (rf"{_fusion}out_conv\.", f"decoder.fusions.{_level}.out."),
        (rf"{_fusion}resConfUnit1\.", f"decoder.fusions.{_level}.skip."),
        (rf"{_fusion}resConfUnit2\.", f"decoder.fusions.{_level}.unit."),
    ]

# Parameters of the published DPT network that no forward pass uses; ours has none of them.
UNUSED = ("backbone.mask_token", "head.scratch.refinenet4.resConfUnit1.")


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors below a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def deeplab(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DeepLabV3+ of UniMatch V1."""
    return {_rename(key, _DEEPLAB): value for key, value in state.items()}


def dpt(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2 with DPT of UniMatch V2, without the unused parameters."""
    return {_rename(key, _DPT): value for key, value in state.items() if not key.startswith(UNUSED)}


def _rename(key: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        if re.match(pattern, key):
            return re.sub(pattern, replacement, key)
    raise KeyError(key)
