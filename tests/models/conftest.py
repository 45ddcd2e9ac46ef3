"""Official key names of the reference tensors, turned into ours by the rules of the importers."""

from collections.abc import Callable

import pytest
from torch import Tensor

from halfmask.importers.allspark import AllSparkCheckpoint
from halfmask.importers.cct import CCTCheckpoint
from halfmask.importers.unimatch import UniMatchCheckpoint
from halfmask.importers.unimatch_v2 import UniMatchV2Checkpoint
from halfmask.models.key_rules import Rules, rename

Renamer = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def _renamer(rules: Rules, place: str = "", ours: str = "") -> Renamer:
    """Rename a recorded part that stood at `place` in the checkpoint and stands at `ours` in our model."""

    def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
        made = rename({f"{place}{key}": value for key, value in state.items()}, rules)
        assert not made.unknown, made.unknown
        return {key.removeprefix(ours): value for key, value in made.state.items()}

    return renamed


@pytest.fixture(scope="session")
def deeplab_names() -> Renamer:
    return _renamer(UniMatchCheckpoint.rules)


@pytest.fixture(scope="session")
def dpt_names() -> Renamer:
    return _renamer(UniMatchV2Checkpoint.rules)


@pytest.fixture(scope="session")
def mlp_head_names() -> Renamer:
    return _renamer(AllSparkCheckpoint.rules, "decoder.decoder.")


@pytest.fixture(scope="session")
def psp_names() -> Renamer:
    return _renamer(CCTCheckpoint.rules, "encoder.psp.", "decoder.")
