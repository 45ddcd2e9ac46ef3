"""timm, imported without the compiler of torch, and its attention by fused kernels.

The compiler takes two thirds of the time of the import, and only training needs it; the framework's fused kernels keep
no (B, heads, N, N) map.

Two places import it early, for functions that are rarely called: torchvision's `roi_align` (where a kernel is
missing) and timm's NaFlexViT (`torch.compiler.disable` on five methods). Encoders take timm from here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
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
        AvgPool2dSame,
        Conv2dSame,
        DropPath,
        ScaledStdConv2dSame,
        StdConv2dSame,
        convert_sync_batchnorm,
        resample_abs_pos_embed,
        to_2tuple,
    )
    from timm.layers.pool2d_same import MaxPool2dSame

__all__ = [
    "Conv2dSame",
    "DropPath",
    "FusedAttention",
    "convert_sync_batchnorm",
    "fused_attention",
    "pads_by_size",
    "resample_abs_pos_embed",
    "timm",
]

_SAME = (AvgPool2dSame, Conv2dSame, MaxPool2dSame, ScaledStdConv2dSame, StdConv2dSame)


def pads_by_size(network: nn.Module) -> bool:
    """Tell whether a layer has SAME padding that depends on the size of its map: with stride 1 it does not."""
    return any(isinstance(part, _SAME) and max(to_2tuple(part.stride)) > 1 for part in network.modules())


def fused_attention(
    q: Float[Tensor, "B h N d"], k: Float[Tensor, "B h M d"], v: Float[Tensor, "B h M d"]
) -> Float[Tensor, "B h N d"]:
    """Compute softmax(q k^T / sqrt(d)) v.

    On a CPU bfloat16 is computed in float32, which is more exact and takes less time: the kernel's bfloat16 form,
    forward and backward, took 2.7 times as long with 82 tokens, 1.3 times with 325, and as long with 1370 (PyTorch
    2.11, one thread with native bfloat16). It saves q, k, v and the result at twice the size.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)


class FusedAttention(Attention):
    """timm's attention, through `fused_attention` where it is plain self-attention: no mask, no gate, no dropout."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attend; `fused_attn = False` and everything special are left to timm."""
        plain = attn_mask is None and not is_causal and self.gate is None
        if not (plain and self.fused_attn) or (self.training and self.attn_drop.p > 0):
            return super().forward(x, attn_mask, is_causal)
        # Taken apart before the axes are turned, so that the three gradients come together in one copy, not two.
        parts = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in parts)
        out = fused_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj_drop(self.proj(self.norm(out.transpose(1, 2).flatten(2))))  # type: ignore[no-any-return]
