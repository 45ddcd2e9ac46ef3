"""The contract of an importer: which network an official checkpoint holds, and how its tensors are named here."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from halfmask.errors import CheckpointError
from halfmask.models.key_rules import Rules
from halfmask.task import Task

# Blocks per stage of networks with bottlenecks -> depth.
_DEPTHS: dict[tuple[int, ...], int] = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}


class Importer:
    """Subclass it; the file's name is the name of the format.

    Attributes:
        holds: `model` (encoder, decoder, classifier) or `encoder` (a file of pretrained weights).
        signs: patterns of names that occur together in files of this format and no other.
        networks: where a file keeps its networks: predictor -> entry, the one that is taken by default first.
        classifier: name of the tensor whose first axis is the classes.
        rules: official names to ours; of encoder files, which our encoders read themselves, only what they leave out.
        crop: training crop of the published models, by dataset; `""` for any other.
        protocols: `eval` section the published numbers were made with, by dataset; `""` for any other.
    """

    holds: ClassVar[Literal["model", "encoder"]] = "model"
    signs: ClassVar[tuple[str, ...]] = ()
    networks: ClassVar[Mapping[str, str]] = {"student": "model"}
    classifier: ClassVar[str] = ""
    rules: ClassVar[Rules] = ()
    crop: ClassVar[Mapping[str, int]] = {"": 320}
    protocols: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {"absent_classes": "zero"}}

    def recognizes(self, state: Mapping[str, Tensor]) -> bool:
        """Tell by its names whether a state dict is of this format."""
        return bool(self.signs) and all(any(re.match(sign, key) for key in state) for sign in self.signs)

    def classes(self, state: Mapping[str, Tensor]) -> int:
        """Return K, the number of classes the network was trained for.

        Raises:
            CheckpointError: the tensor that tells it is missing.
        """
        return shape(state, self.classifier)[0]

    def section(self, state: Mapping[str, Tensor], task: Task) -> dict[str, Any]:
        """Return the `model` section of a recipe that builds the network, read from the shapes of the tensors.

        Raises:
            CheckpointError: a tensor that tells a size is missing, or the network is one that cannot be built here.
        """
        raise NotImplementedError(f"{type(self).__name__} must define section()")

    def refuse(self, state: Mapping[str, Tensor], partial: bool) -> None:
        """Refuse a known layout that cannot be read completely; the default refuses nothing.

        Raises:
            CheckpointError: what cannot be read, and what to do.
        """


def shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    """Return the shape of a tensor that tells a size of the network.

    Raises:
        CheckpointError: it is missing.
    """
    if key not in state:
        raise CheckpointError(
            f"the tensor {key} is missing, so the network cannot be told from the file. Is it complete, and "
            "of the format that was named? Formats: halfmask list importers",
            "H403",
        )
    return tuple(state[key].shape)


def count(state: Mapping[str, Tensor], pattern: str) -> int:
    """Count the values that the first group of a pattern takes among the names: blocks of a stage, for example."""
    return len({match[1] for match in (re.match(pattern, key) for key in state) if match is not None})


def resnet_entry(state: Mapping[str, Tensor], stage: str, *, stem: str, output_stride: int) -> dict[str, Any]:
    """Read depth and width of a ResNet from the shapes of its tensors.

    Args:
        state: official names.
        stage: in front of the names of stage 1, 2, 3, 4, for example `backbone.layer`.
        stem: `deep` or `plain`.
        output_stride: leaves no trace in the tensors.

    Raises:
        CheckpointError: the first convolution of the first stage is missing.
    """
    blocks = tuple(count(state, rf"{stage.replace('.', '[.]')}{number}\.(\d+)\.") for number in range(1, 5))
    width = shape(state, f"{stage}1.0.conv1.weight")[0]
    entry: dict[str, Any] = {"name": "resnet", "depth": _DEPTHS.get(blocks, 50), "stem": stem, "width": width}
    entry["output_stride"] = output_stride
    if blocks not in _DEPTHS:
        return entry | {"blocks": list(blocks)}
    return entry | ({"weights": "imagenet"} if width == 64 else {})
