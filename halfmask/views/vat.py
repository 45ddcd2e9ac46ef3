"""I-VAT: the small change of an embedding that changes a decoder's prediction most.

Miyato et al., "Virtual adversarial training", TPAMI 2019, arXiv:1704.03976, on the embedding of intermediate layers as
in Ouali et al., CCT, CVPR 2020, arXiv:2003.09005. With g the decoder, p = softmax g(z), and KL taken over the pixels of
each image, one power iteration is

    finite     d <- gradient at d of KL(p || softmax g(z + xi d)),  then d / (||d|| + 1e-8)        as published
    exact      d <- J^T (p * v - p (p . v)),  v = J d,  then d / ||d||                             the limit xi -> 0

with J the Jacobian of g at z; norms are those of a whole image. z~ = z + eps * d.

The published xi = 1e-6 works in float64 only. In float32 z + xi d rounds to z: the direction is rounding noise
(cosine below 0.2 to the exact one), and as the gradient scales with xi^2 the 1e-8 shrinks it, so that ||r|| is anywhere
between 0.007 and 1 where 2 is meant: I-VAT is nearly inert there. `exact` contains no xi and costs 1.3 times as much.
"""

import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Direction = Literal["exact", "finite"]
Head = Callable[[Float[Tensor, "B D h w"]], Float[Tensor, "*R K"]]  # logits, classes last

_FLOOR = 1e-8  # of the published normalization


class Adversarial(NamedTuple):
    """I-VAT of one decoder."""

    eps: float = 2.0  # length of the change of an image's embedding
    direction: Direction = "exact"  # `exact`, or the published finite difference (`finite`)
    xi: float = 0.1  # of the finite difference; 0.1 is sound in float32
    iterations: int = 1  # of the power method
    relative: bool = False  # `eps` is a share of the length of the image's embedding

    def sample(
        self, z: Float[Tensor, "B D h w"], head: Head, generator: torch.Generator | None = None
    ) -> Float[Tensor, "B D h w"]:
        """Draw a start and return r, a constant to add to z.

        Neither the gradients of the head's parameters nor z's graph are touched.
        """
        return self.offset(z, head, torch.rand(z.shape, device=z.device, dtype=z.dtype, generator=generator))

    def offset(self, z: Float[Tensor, "B D h w"], head: Head, u: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """Return r for a start u ~ U[0, 1)."""
        z = z.detach()
        wide = z if z.dtype == torch.float64 else z.float()
        iterate = exact_direction if self.direction == "exact" else self._finite
        with torch.autocast(z.device.type, enabled=False):
            d = u.to(wide) - 0.5
            d = d / (norm(d) + _FLOOR)
            for _ in range(self.iterations):
                d = iterate(head, wide, d)
            r = self.eps * d
            return (r * norm(wide) if self.relative else r).to(z)

    def _finite(self, head: Head, z: Tensor, d: Tensor) -> Tensor:
        return finite_direction(head, z, d, self.xi)


def exact_direction(head: Head, z: Float[Tensor, "B D h w"], d: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
    """Return the unit vector (per image) along the Hessian of the KL divergence applied to d; 0 for a dead head."""
    with torch.no_grad():
        with warnings.catch_warnings():
            # The first forward-mode derivative of a process loads rules that torch itself warns about.
            warnings.simplefilter("ignore", FutureWarning)
            logits, v, *_ = torch.func.jvp(head, (z,), (d,))
        p = logits.softmax(-1)
        w = p * (v - (p * v).sum(-1, keepdim=True))
        (a,) = torch.func.vjp(head, z)[1](w)
    unit: Tensor = a / norm(a).clamp_min(torch.finfo(a.dtype).tiny)
    return unit


def finite_direction(
    head: Head, z: Float[Tensor, "B D h w"], d: Float[Tensor, "B D h w"], xi: float
) -> Float[Tensor, "B D h w"]:
    """Return the normalized gradient of KL(softmax g(z) || softmax g(z + xi d)) at d."""
    with torch.no_grad():
        target = head(z).softmax(-1)
    with torch.enable_grad():
        d = d.detach().requires_grad_()
        divergence = F.kl_div(head(z + xi * d).log_softmax(-1), target, reduction="sum") / len(z)
        (gradient,) = torch.autograd.grad(divergence, d)
    return gradient / (norm(gradient) + _FLOOR)


def norm(x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B 1 1 1"]:
    """Return the length of each image's vector."""
    length: Tensor = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)
    return length
