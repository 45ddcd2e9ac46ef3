"""AllSpark: labeled features rebuilt from channels of unlabeled ones, between encoder and decoder.

Wang et al., "AllSpark: Reborn Labeled Features from Unlabeled in Transformer for Semi-Supervised Semantic
Segmentation", CVPR 2024, arXiv:2403.01818, section 3.2. The channels of the last map are the sequence; each is a
vector of d = h * w tokens. With X the C x d channels of an image after the first norm, Y those of a key group, and
M = heads * C projected channels:

    labeled image     Q = W_q X, K = [W_k Y for all groups], V likewise;  A = softmax(psi(Q K^T)),  out = W_o (A V)
    unlabeled image   the same with its own weights and Y = X, head by head
    psi(S)            (S - mean) / sqrt(variance + 1e-5) over one score matrix

    x' = gelu(conv1x1(e4));  z = norm2(x' + attention(norm1(x')));  result = gelu(conv1x1(z))

A labeled query finds keys of every head: the heads are pooled (`cross_heads: pooled`). Evaluation uses the labeled form
with the image itself as the only group, so that it needs no memory and no other image.

Deviations from the paper, all as in the published code: pooled heads (the paper says multi-head), two sets of weights
(`share_projections: true` for one), the two convolutions, the norms, the residual and dropout 0.1. Our own: a last map
wider than 512 (ResNet) is reduced to 512 channels by the first convolution and restored by the last; the paper reports
such a network, but its code does not run it.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from halfmask.models.bottlenecks._bottleneck import Bottleneck
from halfmask.models.channel_attention import Impl, channel_attention

_WIDEST = 512


class AllSpark(Bottleneck):
    """Channel-wise cross-attention; in a training step call `embed`, choose the keys, call `attend`.

    Args:
        width: C, channels inside; `null` takes the map's, at most 512.
        heads: projected channels per channel.
        dropout: of attention weights, and of each attention's result.
        cross_heads: of labeled images: every head attends to the keys of all (`pooled`, the published code), or to its
            own (`separate`).
        share_projections: one set of weights for labeled and unlabeled images, as the paper's text suggests.
        impl: `auto` streams over keys where the scores would be large; `dense`, `stream`, `sdpa` force one
            form. All are exact.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: Annotated[int, Field(ge=1)] | None = None,
        heads: Annotated[int, Field(ge=1)] = 2,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        cross_heads: Literal["pooled", "separate"] = "pooled",
        share_projections: bool = False,
        impl: Impl = "auto",
    ) -> None:
        super().__init__(channels)
        self.width = width = width or min(channels, _WIDEST)
        self.heads, self.cross_heads, self.impl = heads, cross_heads, impl
        self.attention_dropout = dropout
        self.map_in = nn.Sequential(nn.Conv2d(channels, width, 1), nn.GELU())
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.cross = _Projections(width, heads)
        self.own = None if share_projections else _Projections(width, heads)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.map_out = nn.Sequential(nn.Conv2d(width, channels, 1), nn.GELU())

    def forward(
        self, x: Float[Tensor, "B D h w"], keys: Float[Tensor, "G C d"] | None = None
    ) -> Float[Tensor, "B D h w"]:
        """Treat every image as a labeled one.

        Args:
            x: last map of the encoder.
            keys: groups of channels to attend to, for all images; `None` = each image attends to itself.
        """
        tokens, residual = self.embed(x)
        return self.attend(tokens, residual, keys, labeled=len(x))

    def embed(self, x: Float[Tensor, "B D h w"]) -> tuple[Float[Tensor, "B d C"], Float[Tensor, "B C h w"]]:
        """Return the normalized tokens, whose channels are the keys, and the map they came from."""
        residual = self.map_in(x)
        return self.norm1(residual.flatten(2).transpose(1, 2)), residual

    def attend(
        self,
        tokens: Float[Tensor, "B d C"],
        residual: Float[Tensor, "B C h w"],
        keys: Float[Tensor, "G C d"] | None,
        *,
        labeled: int,
        present: Bool[Tensor, " G"] | None = None,
    ) -> Float[Tensor, "B D h w"]:
        """Attend and return the map for the decoder.

        Args:
            tokens: of `embed`.
            residual: of `embed`.
            keys: groups of channels, as `tokens` transposed, for the labeled images; `None` = each its own.
            labeled: the first so many images attend to `keys`, the others to themselves.
            present: groups that take part; `None` = all.
        """
        attended = self.attention(tokens, keys, labeled=labeled, present=present)
        tokens = self.norm2(attended.transpose(1, 2) + residual.flatten(2).transpose(1, 2))
        return self.map_out(tokens.transpose(1, 2).reshape(residual.shape))  # type: ignore[no-any-return]

    def attention(
        self,
        tokens: Float[Tensor, "B d C"],
        keys: Float[Tensor, "G C d"] | None,
        *,
        labeled: int,
        present: Bool[Tensor, " G"] | None = None,
    ) -> Float[Tensor, "B C d"]:
        """Return the attention's result alone, as channels; arguments as for `attend`."""
        channels = tokens.transpose(1, 2).contiguous()  # (B, C, d): rows of d are what the products run over
        parts = []
        if labeled > 0:
            parts.append(self._cross(channels[:labeled], keys, present))
        if labeled < len(tokens):
            parts.append(self._own(channels[labeled:]))
        return self.dropout(torch.cat(parts))  # type: ignore[no-any-return]

    def _cross(
        self, queries: Float[Tensor, "B C d"], keys: Float[Tensor, "G C d"] | None, present: Bool[Tensor, " G"] | None
    ) -> Float[Tensor, "B C d"]:
        sets = len(queries) if keys is None else 1  # of keys: each image's own, or one for all
        source = queries if keys is None else keys
        parts = []
        for rows in self._head_rows():
            q, k, v = (
                _project(layer.weight[rows], x)
                for layer, x in zip((self.cross.q, self.cross.k, self.cross.v), (queries, source, source), strict=True)
            )
            keep = None if present is None else present.unsqueeze(1).expand(-1, k.shape[1]).flatten()
            k, v = (x.reshape(sets, -1, x.shape[-1]) for x in (k, v))  # (S, group * row, d)
            parts.append(self._scored(q, k, v, keep))
        return _project(self.cross.out.weight, torch.cat(parts, dim=1))  # index of the input: head * C + c

    def _own(self, channels: Float[Tensor, "B C d"]) -> Float[Tensor, "B C d"]:
        own = self.cross if self.own is None else self.own
        q, k, v = (
            _project(layer.weight, channels).unflatten(1, (self.heads, -1)).flatten(0, 1)  # (B * heads, C, d)
            for layer in (own.q, own.k, own.v)
        )
        out = self._scored(q, k, v, None).unflatten(0, (-1, self.heads))  # (B, heads, C, d)
        if self.own is not None:
            out = out.transpose(1, 2)  # the published code counts c * heads + head here
        return _project(own.out.weight, out.flatten(1, 2))

    def _scored(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
        dropout = self.attention_dropout if self.training else 0.0
        return channel_attention(q, k, v, dropout, keep, self.impl)

    def _head_rows(self) -> list[slice]:
        """Return the rows of the projections that attend to each other."""
        if self.cross_heads == "pooled":
            return [slice(None)]
        return [slice(head * self.width, (head + 1) * self.width) for head in range(self.heads)]


class _Projections(nn.Module):
    """Query, key, value (C -> heads * C channels, index head * C + c) and output projection, without bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, heads * width, bias=False) for _ in range(3))
        self.out = nn.Linear(heads * width, width, bias=False)
        for layer in (self.q, self.k, self.v, self.out):
            nn.init.xavier_uniform_(layer.weight)


def _project(weight: Float[Tensor, "M C"], x: Float[Tensor, "G C d"]) -> Float[Tensor, "G M d"]:
    # `weight @ x` and nn.Linear would copy x or the result to bring the axes into their order.
    return torch.bmm(weight.expand(len(x), -1, -1), x)
