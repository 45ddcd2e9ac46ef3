"""The device that evaluation and prediction run on."""

import torch

from halfmask.errors import RecipeError


def pick_device(name: str = "auto") -> torch.device:
    """Give the device for a name; `auto` takes an accelerator when there is one.

    Raises:
        RecipeError: the name is unknown or this machine has no such device.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else found
    try:
        device = torch.device("cuda" if name == "gpu" else name)
    except RuntimeError:
        raise RecipeError(f"device {name!r} is unknown. Use auto, cpu, cuda, cuda:1, ... or mps.", "H303") from None
    if device.type == "cpu":
        return device
    module = torch.get_device_module(device) if device.type in {"cuda", "mps", "xpu"} else None
    if module is None or not module.is_available():
        raise RecipeError(
            f"device {name!r}: this machine has none, or torch was built without it. Use --device cpu.", "H503"
        )
    if device.index is not None and device.index >= module.device_count():
        raise RecipeError(f"device {name!r}: this machine has {module.device_count()}, numbered from 0.", "H503")
    return device
