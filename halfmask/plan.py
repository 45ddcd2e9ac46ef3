"""Choose a recipe and its settings when a user gives only a folder: what fits this machine, and why."""

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
    """Choose by the hardware: the recipe as it is on a GPU, a smaller network and fewer pixels without one."""
    import torch

    device = torch.accelerator.current_accelerator(check_available=True)
    recipe = "fixmatch/folder"
    if device is not None:
        return Plan(recipe, {}, (f"because this machine has an accelerator ({device.type}): the recipe as it is",))
    # 0.25 of the multiply-adds per pixel, and 0.28 of the pixels per step, of the recipe.
    settings = {
        "model.encoder.width": 32,
        "data.crop": 192,
        "data.batch.labeled": 4,
        "data.batch.unlabeled": 4,
        "run.steps": 1000,
    }
    return Plan(
        recipe,
        settings,
        ("because there is no GPU: half the width, small crops, few steps; a run on a GPU is more accurate",),
    )
