"""timm, imported without the compiler of torch, which takes two thirds of the time and only training needs.

Two places import it early, for functions that are rarely called: torchvision's `roi_align` (where a kernel is
missing) and timm's NaFlexViT (`torch.compiler.disable` on five methods). Encoders take timm from here.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch._compile import _disable_dynamo

_COMPILER = "torch._dynamo.utils"


class _OnDemand(ModuleType):
    """Stand in for a module of the compiler, which is imported when something else of it is asked for."""

    def is_compile_supported(self, device: str) -> bool:
        return bool(_compiler().is_compile_supported(device))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by the import system
            raise AttributeError(name)
        return getattr(_compiler(), name)


def _compiler() -> Any:
    if isinstance(sys.modules.get(_COMPILER), _OnDemand):
        del sys.modules[_COMPILER]
    return importlib.import_module(_COMPILER)


@contextmanager
def _compiler_on_demand() -> Iterator[None]:
    compiler: Any = torch.compiler
    disable = compiler.disable
    sys.modules[_COMPILER] = _OnDemand(_COMPILER)
    compiler.disable = _disable_dynamo  # the same, but the compiler is imported when the method is called
    try:
        yield
    finally:
        compiler.disable = disable
        if isinstance(sys.modules.get(_COMPILER), _OnDemand):
            del sys.modules[_COMPILER]


with _compiler_on_demand() if "torch._dynamo" not in sys.modules else nullcontext():
    import timm
    from timm.layers import (  # type: ignore[attr-defined]
        Attention,
        Conv2dSame,
        DropPath,
        resample_abs_pos_embed,
    )

__all__ = ["Attention", "Conv2dSame", "DropPath", "resample_abs_pos_embed", "timm"]
