"""The mean of several networks, as one network: co-training and methods with two teachers score it.

    p = 1/n sum_i softmax(f_i(x))        output: log p, so that its softmax is p and its largest class that of p

`predictors` of a method returns it like a single model, and everything that follows treats it alike: evaluation, the
choice of the best checkpoint, the bundle, export, prediction.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from halfmask.errors import ShapeError
from halfmask.models.model import Model, Network


class Ensemble(Network):
    """Mean of the softmax probabilities of several models; it returns their logarithm.

    Make one in `predictors`: `Ensemble(self.net_a, self.net_b)`. It holds the models, and copies nothing.

    Args:
        models: one or more, for the same classes and bands.

    Raises:
        ShapeError: no model, or models of other classes or bands.
    """

    def __init__(self, *models: Model) -> None:
        super().__init__()
        kinds = {(model.classes, model.mean.numel()) for model in models}
        if len(kinds) != 1:
            found = ", ".join(f"{classes} classes of {bands} bands" for classes, bands in sorted(kinds))
            raise ShapeError(
                f"an ensemble needs models of the same classes and bands, but got {found or 'no model'}. Build all of "
                "them with the method's `build`."
            )
        self.models = nn.ModuleList(models)
        self.classes = models[0].classes

    @property
    def members(self) -> tuple[Model, ...]:
        """Return the models whose probabilities are averaged."""
        return tuple(model for model in self.models if isinstance(model, Model))

    @property
    def mean(self) -> Tensor:  # type: ignore[override]  # belongs to the first model
        """Return the mean of the bands that the first model subtracts; each model normalizes by its own."""
        return self.members[0].mean

    @property
    def std(self) -> Tensor:  # type: ignore[override]
        """Return the standard deviation of the bands, likewise."""
        return self.members[0].std

    @property
    def spec(self) -> dict[str, Any]:  # type: ignore[override]  # made of those of the models as they are now
        """Return the descriptions of all models; empty where one has none."""
        specs = [model.spec for model in self.members]
        return {"ensemble": specs, "crop": specs[0]["crop"]} if all(specs) else {}

    def forward(self, image: Float[Tensor, "B *T C H W"]) -> Float[Tensor, "B K ..."]:
        """Compute the logarithm of the mean probability of each class."""
        return log_mean_probabilities([model(image) for model in self.members])


def log_mean_probabilities(logits: list[Tensor]) -> Float[Tensor, "B K ..."]:
    """Average the softmax probabilities of several logits (B, K, ...), and take the logarithm.

    >>> both = log_mean_probabilities([torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, math.log(3)]])])
    >>> both.exp().round(decimals=3)
    tensor([[0.3750, 0.6250]])
    """
    found = [one if one.dtype == torch.float64 else one.float() for one in logits]
    return torch.stack([one.log_softmax(1) for one in found]).logsumexp(0) - math.log(len(found))
