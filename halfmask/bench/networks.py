"""Networks that several rows need, with random weights."""

import torch

from halfmask.bench.row import Setting
from halfmask.models.build import Builder
from halfmask.models.model import Model
from halfmask.recipe.sections import ModelRecipe
from halfmask.task import Task


def dinov2_dpt(setting: Setting, classes: int, size: str = "small") -> Model:
    """DINOv2 with the DPT decoder; a narrow one with `quick`."""
    narrow = {"dim": 24, "heads": 2} if setting.quick else {}
    return _build(setting, {"name": "dinov2", "size": size, **narrow}, {"name": "dpt"}, classes)


def resnet_deeplab(setting: Setting, classes: int) -> Model:
    """ResNet-18 with DeepLabV3+, a sixteenth of the resolution."""
    width = setting.size(32, 4)
    decoder = {"name": "deeplabv3plus", "aspp": width, "low": width // 2, "embedding": width}
    return _build(setting, {"name": "resnet", "depth": 18, "width": width, "output_stride": 16}, decoder, classes)


def _build(setting: Setting, encoder: dict[str, object], decoder: dict[str, object], classes: int) -> Model:
    torch.manual_seed(setting.seed)
    task = Task("segmentation", tuple(f"class {number}" for number in range(classes)))
    section = ModelRecipe.model_validate({"encoder": encoder, "decoder": decoder})
    return Builder(section, task, crop=setting.size(518, 28))().to(setting.device)
