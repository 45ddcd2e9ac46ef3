"""Choose a recipe and its settings when a user gives only a folder: what fits this machine, and why.

Pretrained weights are never chosen unasked: they would be downloaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """A shipped recipe, settings for this machine, and the reasons in words.

    Args:
        recipe: name of a shipped recipe.
        settings: dotted keys that differ from it.
        reasons: why, one line per decision.
    """

    recipe: str
    settings: dict[str, Any]
    reasons: tuple[str, ...]

    def describe(self, overrides: Mapping[str, Any] | None = None) -> str:
        """Write the plan for people; what the user sets is left out of the plan's own settings."""
        kept = {key: value for key, value in self.settings.items() if key not in (overrides or {})}
        lines = [f"plan     recipe {self.recipe}"]
        if kept:
            lines.append("         " + " ".join(f"{key}={value}" for key, value in kept.items()))
        return "\n".join([*lines, *(f"         {reason}" for reason in self.reasons)])


def choose_plan() -> Plan:
    """Choose by the hardware: the recipe as it is without a GPU, more pixels and steps with one."""
    import torch

    device = torch.accelerator.current_accelerator(check_available=True)
    recipe = "fixmatch/folder"
    if device is None:
        return Plan(
            recipe, {}, ("because there is no GPU: a small network, small crops and few steps; a GPU run is better",)
        )
    settings = {
        "model.encoder.output_stride": 16,
        "data.crop": 320,
        "data.batch.labeled": 8,
        "data.batch.unlabeled": 8,
        "run.steps": 4000,
    }
    return Plan(
        recipe,
        settings,
        (
            f"because this machine has an accelerator ({device.type}): larger crops and batches, finer maps, longer",
            "better still with pretrained weights, which are downloaded: model.encoder.weights=imagenet",
        ),
    )
