"""timm, imported without the compiler of torch, which takes two thirds of the time and only training needs.

Two places import it early, for functions that are rarely called: torchvision's `roi_align` (where a kernel is
missing) and timm's NaFlexViT (`torch.compiler.disable` on five methods). Encoders take timm from here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._compile import _disable_dynamo

from halfmask.on_demand import on_demand


@contextmanager
def _disable_on_demand() -> Iterator[None]:
    """Replace `torch.compiler.disable` by the decorator that torch uses, which imports the compiler at a call."""
    compiler: Any = torch.compiler
    disable = compiler.disable
    compiler.disable = _disable_dynamo
    try:
        yield
    finally:
        compiler.disable = disable


with on_demand("torch._dynamo.utils", "is_compile_supported"), _disable_on_demand():
    import timm
    from timm.layers import (  # type: ignore[attr-defined]
        Attention,
        Conv2dSame,
        DropPath,
        convert_sync_batchnorm,
        resample_abs_pos_embed,
    )

__all__ = ["Attention", "Conv2dSame", "DropPath", "convert_sync_batchnorm", "resample_abs_pos_embed", "timm"]
