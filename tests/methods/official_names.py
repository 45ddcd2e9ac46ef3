"""Tensors under the names of published checkpoints of UniMatch, renamed by the rules of the importers."""

from torch import Tensor

from halfmask.importers.unimatch import UniMatchCheckpoint
from halfmask.importers.unimatch_v2 import UniMatchV2Checkpoint
from halfmask.models.key_rules import Rules, rename

# Parameters of the published DPT network that no forward pass uses; ours has none of them.
UNUSED = ("backbone.mask_token", "head.scratch.refinenet4.resConfUnit1.")


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors below a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def deeplab(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DeepLabV3+ of UniMatch V1."""
    return _renamed(state, UniMatchCheckpoint.rules)


def dpt(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2 with DPT of UniMatch V2, without the unused parameters."""
    return _renamed(state, UniMatchV2Checkpoint.rules)


def _renamed(state: dict[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    made = rename(state, rules)
    assert not made.unknown, made.unknown
    return made.state
