"""Noise that moves features to where they are rare, as a normalizing flow knows it.

Wang et al., DDFP, CVPR 2024, with the flow of Dinh et al., RealNVP, ICLR 2017, arXiv:1605.08803. With e the flow of a
feature f, mu_k a fixed random mean of each class and d the width:

    NLL(f, k)  = |e(f) - mu_k|^2 / 2 + d / 2 log 2 pi - log |det de/df|       a pixel of class k
    NLL(f)     = -log of the mean over classes of exp(-NLL(f, k))               a pixel without a label
    noise      = length * g / |g|,  g = gradient at f of NLL(f)                  one step towards lower density

DDFP trains the flow beside the network on features of the teacher, with an optimizer of its own (Adam, 0.001), and
perturbs the student by a length of 4. No method here uses these functions yet.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class FeatureFlow(nn.Module):
    """An invertible map of feature vectors, under which each class is a Gaussian.

    It starts as the identity. Everything is computed in float32 at least.

    Args:
        width: d, of the features.
        classes: K.
        blocks: each changes one half of a vector given the other half, then the other way round.
        hidden: width of the networks inside.
    """

    def __init__(self, width: int, classes: int, *, blocks: int = 2, hidden: int = 256) -> None:
        super().__init__()
        self.width, half = width, width // 2
        self.known = (half, width - half) * blocks  # entries that each coupling is given
        self.couplings = nn.ModuleList(_coupling(known, width - known, hidden) for known in self.known)
        self.register_buffer("means", torch.randn(classes, width))
        self.means: Float[Tensor, "K d"]

    def forward(self, x: Float[Tensor, "N d"]) -> tuple[Float[Tensor, "N d"], Float[Tensor, " N"]]:
        """Return e and the logarithm of the determinant of its derivative."""
        stretch = x.new_zeros(len(x))
        for coupling, known in zip(self.couplings, self.known, strict=True):
            given, changed = x[:, :known], x[:, known:]
            log_scale, shift = coupling(given).chunk(2, dim=1)
            log_scale = log_scale.tanh()  # bounded: a single vector must not overflow the scale
            # The changed half comes first, so that it is the given one of the next coupling.
            x = torch.cat((changed * log_scale.exp() + shift, given), dim=1)
            stretch = stretch + log_scale.sum(1)
        return x, stretch

    def nll(self, x: Float[Tensor, "N d"], classes: Int[Tensor, " N"] | None = None) -> Float[Tensor, " N"]:
        """Return the negative log-likelihood of each vector.

        Args:
            x: features.
            classes: of the vectors; K, or `None` for all: not known.
        """
        x = x if x.dtype == torch.float64 else x.float()
        placed, stretch = self(x)
        likelihood = -(placed[:, None] - self.means.to(x)).square().sum(2) / 2  # (N, K), but for what is added below
        mixed = likelihood.logsumexp(1) - math.log(len(self.means))
        if classes is not None:
            count = len(self.means)
            own = likelihood.gather(1, classes.clamp(max=count - 1)[:, None])[:, 0]
            mixed = torch.where(classes < count, own, mixed)
        nll: Tensor = self.width / 2 * math.log(2 * math.pi) - mixed - stretch
        return nll


def flow_noise(z: Float[Tensor, "B d h w"], flow: FeatureFlow, length: float) -> Float[Tensor, "B d h w"]:
    """Return the noise to add to an embedding, a constant; neither the flow nor the graph of z is touched.

    Args:
        z: embedding.
        flow: trained on such embeddings.
        length: of the noise at each pixel; 4 in DDFP.
    """
    with torch.enable_grad(), torch.autocast(z.device.type, enabled=False):
        wide = z.detach() if z.dtype == torch.float64 else z.detach().float()
        wide.requires_grad_()
        unlikely = flow.nll(wide.movedim(1, -1).flatten(0, 2)).sum()
        (gradient,) = torch.autograd.grad(unlikely, wide)
    size = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
    noise: Tensor = length * gradient / size.clamp_min(torch.finfo(size.dtype).tiny)
    return noise.to(z)


def _coupling(known: int, changed: int, hidden: int) -> nn.Sequential:
    last = nn.Linear(hidden, 2 * changed)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(known, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last)
