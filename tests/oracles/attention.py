"""Attention with its matrix of weights in memory."""

from jaxtyping import Float
from torch import Tensor


def attention(
    q: Float[Tensor, "B heads n d"], k: Float[Tensor, "B heads m d"], v: Float[Tensor, "B heads m e"]
) -> Float[Tensor, "B heads n e"]:
    """Return softmax(q k^T / sqrt(d)) v."""
    weights: Tensor = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
    out: Tensor = weights.to(v.dtype) @ v
    return out
