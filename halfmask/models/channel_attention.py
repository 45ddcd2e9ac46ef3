"""Attention among channels with instance-normalized scores, without ever storing the scores.

Wang et al., AllSpark, CVPR 2024, arXiv:2403.01818, section 3.2: softmax(psi(q k^T)) v, where psi normalizes one whole
score matrix S (m x n) to mean 0 and variance 1. Exact reformulation:

    softmax(psi(S)) = softmax(S / sigma),  sigma = sqrt(var(S) + 1e-5)        softmax ignores the mean
    var(S) = <C_q, C_k> + qbar^T C_k qbar + kbar^T C_q kbar                   all three terms >= 0

with means qbar, kbar and d x d covariances C_q, C_k of the rows of q and k. sigma has a gradient; without it the
gradient of q is wrong by percents while the output is right.

The streamed form walks over chunks of keys with a running maximum and denominator, and recomputes the weights in the
backward pass (Rabe and Staats, arXiv:2112.05682; Dao et al., FlashAttention, NeurIPS 2022): it saves q, k, v, the
output and one number per query.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Impl = Literal["auto", "dense", "stream", "sdpa"]

EPS = 1e-5  # of the instance norm
# Above this size of the scores the streamed form is taken: below, it would save little. On a CPU it takes 0 to 6 % more
# time than the stored form (21 classes of 512 channels, 289 tokens), one product more but fewer passes.
STREAM_BYTES = 16 * 2**20
# Scores of one chunk: a few buffers of this size stay in the cache. On a CPU 4 MiB took 10 % less time than 16; on a
# GPU, with its larger cache, the number is an estimate.
_CHUNK_BYTES = {"cpu": 4 * 2**20, "other": 32 * 2**20}
_NEVER = -1e30  # added to scores of keys that take no part; finite, so that 0 * it stays 0


def channel_attention(
    q: Float[Tensor, "B m d"],
    k: Float[Tensor, "S n d"],
    v: Float[Tensor, "S n e"],
    dropout: float = 0.0,
    keep: Bool[Tensor, " n"] | None = None,
    impl: Impl = "auto",
) -> Float[Tensor, "B m e"]:
    """Attend with instance-normalized scores: dropout(softmax(psi(q k^T))) v.

    Args:
        q: B query sets; channels are the sequence, so d is the number of tokens.
        k: keys of each query set (S = B), or one set for all (S = 1).
        v: values, likewise.
        dropout: probability to drop an attention weight.
        keep: keys that take part (in psi as well); `None` = all.
        impl: `stream` never stores scores; `dense` stores them; `auto` takes the first above `STREAM_BYTES`;
            `sdpa` is the framework's fused attention, which may or may not store them.

    >>> q, k, v = torch.randn(2, 4, 9), torch.randn(1, 6, 9), torch.randn(1, 6, 9)
    >>> out = channel_attention(q, k, v, impl="stream")
    >>> bool((out - channel_attention(q, k, v, impl="dense")).abs().max() < 1e-5)
    True
    """
    batch, queries, _ = q.shape
    sets = k.shape[0]
    sigma = torch.sqrt(score_variance(q, k, keep) + EPS)  # (B,)
    scaled = (q / sigma.view(-1, 1, 1)).to(k.dtype)
    if keep is not None:  # one more column, which only the keys left out feel
        scaled = F.pad(scaled, (0, 1), value=1.0)
        bias = torch.where(keep, 0.0, _NEVER).to(k.dtype).expand(sets, -1).unsqueeze(-1)
        k = torch.cat((k, bias), dim=-1)
    scaled = scaled.reshape(sets, -1, scaled.shape[-1])  # one key set for all: one stack of queries
    if impl == "auto":
        impl = "stream" if batch * queries * k.shape[1] * 4 > STREAM_BYTES else "dense"
    if impl == "stream":
        out: Tensor = _Streamed.apply(scaled, k, v, dropout)
    elif impl == "sdpa":
        out = _fused(scaled, k, v, dropout)
    else:
        weights = F.dropout(_softmax(scaled @ k.transpose(-2, -1)), dropout)
        out = weights.to(v.dtype) @ v
    return out.reshape(batch, queries, v.shape[-1])


def score_variance(
    q: Float[Tensor, "B m d"], k: Float[Tensor, "S n d"], keep: Bool[Tensor, " n"] | None = None
) -> Float[Tensor, " B"]:
    """Return the variance of all entries of q k^T, without forming it; S = B, or one key set for all.

    Computed in float32 (float64 stays float64) with autocast off. The centered form does not cancel where the means
    are large.

    >>> q, k = torch.randn(1, 5, 3), torch.randn(1, 7, 3)
    >>> torch.allclose(score_variance(q, k), (q @ k.mT).var(correction=0), atol=1e-5)
    True
    """
    return _ScoreVariance.apply(q, k, keep)  # type: ignore[no-any-return]


class _ScoreVariance(torch.autograd.Function):
    """By hand, because autograd would save centered copies of q and k."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, keep: Tensor | None) -> Tensor:
        with _own_precision(q):
            mean_q, cov_q, count_q = _moments(q, None)
            mean_k, cov_k, count_k = _moments(k, keep)
            ctx.save_for_backward(q, k, keep, mean_q, cov_q, mean_k, cov_k, count_q, count_k)
            cross = mean_q @ cov_k @ mean_q.mT + mean_k @ cov_q @ mean_k.mT  # (B, 1, 1)
            return (cov_q * cov_k).sum((-2, -1)) + cross[:, 0, 0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, keep, mean_q, cov_q, mean_k, cov_k, count_q, count_k = ctx.saved_tensors
        with _own_precision(q):
            g = gradients[0].view(-1, 1, 1)
            # d var / d C_q = C_k + kbar kbar^T, d var / d qbar = 2 C_k qbar, and the same with q and k exchanged.
            metric_q, metric_k = g * (cov_k + mean_k.mT @ mean_k), g * (cov_q + mean_q.mT @ mean_q)
            shift_q, shift_k = g * (mean_q @ cov_k), g * (mean_k @ cov_q)
            if len(k) < len(metric_k):  # one key set serves all images, so it gets the sum of their gradients
                metric_k, shift_k = metric_k.sum(0, keepdim=True), shift_k.sum(0, keepdim=True)
            grad_q = _moments_gradient(q, mean_q, metric_q, shift_q, count_q, None)
            grad_k = _moments_gradient(k, mean_k, metric_k, shift_k, count_k, keep)
        return grad_q, grad_k, None


def _moments(x: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean (S, 1, d) and the covariance (S, d, d) of the rows, and their number (0-d)."""
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    if keep is None:
        count = torch.full((), x.shape[1], dtype=dtype, device=x.device)
        mean = x.mean(1, keepdim=True, dtype=dtype)
    else:
        count = keep.sum().to(dtype).clamp_min(1)
        mean = (x.to(dtype) * keep.unsqueeze(-1)).sum(1, keepdim=True) / count
    covariance = torch.zeros(len(x), x.shape[-1], x.shape[-1], dtype=dtype, device=x.device)
    for part in _chunks(x, len(x) * x.shape[2]):
        centered = x[:, part].to(dtype) - mean
        if keep is not None:
            centered = centered * keep[part].unsqueeze(-1)
        covariance = torch.baddbmm(covariance, centered.mT, centered)
    return mean, covariance / count, count


def _moments_gradient(
    x: Tensor, mean: Tensor, metric: Tensor, shift: Tensor, count: Tensor, keep: Tensor | None
) -> Tensor:
    """Return 2 / count * ((x - mean) metric + shift), row by row; 0 for rows left out."""
    gradient = torch.empty_like(x)
    for part in _chunks(x, len(x) * x.shape[2]):
        rows = torch.baddbmm(shift, x[:, part].to(metric.dtype) - mean, metric) * (2 / count)
        gradient[:, part] = rows if keep is None else rows * keep[part].unsqueeze(-1)
    return gradient


class _Streamed(torch.autograd.Function):
    """softmax(q k^T) v over chunks of keys; q (S, R, d), k (S, n, d), v (S, n, e)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        with _own_precision(q):
            ctx.random = _random_state(q.device) if dropout > 0 else None
            ctx.dropout = dropout
            shape, dtype = (*q.shape[:2], 1), q.dtype if q.dtype == torch.float64 else torch.float32
            top = torch.full(shape, -torch.inf, dtype=dtype, device=q.device)  # running maximum of each query
            total = torch.zeros(shape, dtype=dtype, device=q.device)  # running denominator
            out = torch.zeros(*q.shape[:2], v.shape[-1], dtype=dtype, device=q.device)
            for part in _chunks(k, q.shape[0] * q.shape[1]):
                scores = torch.bmm(q, k[:, part].mT).to(dtype)
                # Sums of earlier chunks are relative to the maximum of then: a larger one shrinks them, so that no
                # exponential overflows and the result is that of one softmax over all keys.
                new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
                weights = scores.sub_(new_top).exp_()
                shrink = torch.exp(top - new_top)
                total = total * shrink + weights.sum(-1, keepdim=True)
                if dropout > 0:  # weights are dropped after the softmax: the denominator keeps them
                    weights.mul_(_kept(weights, dropout, None))
                out.mul_(shrink).add_(torch.bmm(weights.to(v.dtype), v[:, part]))
                top = new_top
            out = (out / total).to(v.dtype)
            # One number per query stands for all its weights: backward makes them again, chunk by chunk.
            ctx.save_for_backward(q, k, v, out, top + total.log())
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, log_total = ctx.saved_tensors
        generator = None
        if ctx.random is not None:
            generator = torch.Generator(device=q.device)
            generator.set_state(ctx.random)
        with _own_precision(q):
            g = gradients[0].contiguous()
            dtype = log_total.dtype
            # The softmax's gradient needs sum_j w_j dw_j over all keys, which no chunk knows; it equals g . out.
            delta = (g.to(dtype) * out.to(dtype)).sum(-1, keepdim=True)  # (S, R, 1)
            grad_q = torch.zeros(q.shape, dtype=dtype, device=q.device)
            grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)
            for part in _chunks(k, q.shape[0] * q.shape[1]):
                weights = torch.bmm(q, k[:, part].mT).to(dtype).sub_(log_total).exp_()
                wanted = torch.bmm(g, v[:, part].mT).to(dtype)
                if generator is None:
                    grad_v[:, part] = torch.bmm(weights.to(v.dtype).mT, g)
                else:
                    kept = _kept(weights, ctx.dropout, generator)
                    grad_v[:, part] = torch.bmm((weights * kept).to(v.dtype).mT, g)
                    wanted.mul_(kept)
                slope = weights.mul_(wanted.sub_(delta)).to(k.dtype)  # gradient of the scores
                grad_q.add_(torch.bmm(slope, k[:, part]))
                grad_k[:, part] = torch.bmm(slope.mT, q)
        return grad_q.to(q.dtype), grad_k, grad_v, None


def _fused(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    # Fused kernels want widths that are multiples of 8; zeros change neither scores nor the columns kept.
    width = -(-max(q.shape[-1], v.shape[-1]) // 8) * 8
    q, k, padded = (F.pad(x, (0, width - x.shape[-1])).unsqueeze(1) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, padded, dropout_p=dropout, scale=1.0)
    return out[:, 0, :, : v.shape[-1]]


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(-1, dtype=scores.dtype if scores.dtype == torch.float64 else torch.float32)


def _kept(weights: Tensor, dropout: float, generator: torch.Generator | None) -> Tensor:
    """Return 1 / (1 - dropout) for weights that stay, else 0."""
    kept = torch.empty_like(weights)
    if weights.device.type != "cpu":
        return kept.bernoulli_(1 - dropout, generator=generator).div_(1 - dropout)
    # 32 random bits for each weight, drawn in pairs: 40 % of the time of `bernoulli_`, which is that of a product.
    pairs = torch.empty((weights.numel() + 1) // 2, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    bits = pairs.view(torch.int32)[: weights.numel()].view(weights.shape)
    return torch.ge(bits, round(dropout * 2**32) - 2**31, out=kept).div_(1 - dropout)


def _random_state(device: torch.device) -> Tensor:
    """Return the state of the device's generator, from which the backward pass repeats the forward's draws."""
    module: Any = torch if device.type == "cpu" else torch.get_device_module(device)
    state: Tensor = module.get_rng_state()
    return state


def _chunks(x: Tensor, per_row: int) -> Iterator[slice]:
    """Cut the rows of x (S, n, d) so that `per_row` float32 values per row fill about `_CHUNK_BYTES`."""
    size = _CHUNK_BYTES["cpu" if x.device.type == "cpu" else "other"]
    length, step = x.shape[1], max(64, size // (4 * per_row))
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _own_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Switch autocast off, dtypes are chosen here; the meta device, used for shapes only, knows none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
