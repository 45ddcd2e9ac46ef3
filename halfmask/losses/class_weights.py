"""Weights of classes in the loss of labeled images, from how many labeled pixels each class has.

With n_k pixels of class k, N = sum_k n_k, and K' classes that occur:

    inverse      w_k ~ 1 / n_k
    effective    w_k ~ (1 - beta) / (1 - beta^n_k)       Cui et al., "Class-Balanced Loss Based on Effective Number of
                                                         Samples", CVPR 2019, arXiv:1901.05555, equation 10

`effective` takes beta = 1 - K' / N, so a class saturates at its even share of the pixels: of two frequent classes
neither is held back, of two rare ones the rarer weighs more, about as with `inverse`. (The paper counts images; with
millions of pixels its values of beta would make all weights equal.)

Weights are scaled to a mean of 1 over the classes that occur; none is more than 100 times another, so that a handful
of pixels cannot decide a batch. A class that does not occur has weight 1, which is never used.
"""

from collections.abc import Sequence
from typing import Literal

WeightRule = Literal["none", "inverse", "effective"]
_LARGEST_RATIO = 100.0


def class_weights(counts: Sequence[int], rule: Literal["inverse", "effective"]) -> tuple[float, ...]:
    """Return a weight for each class.

    Args:
        counts: labeled pixels of each class.
        rule: see the equations above.

    >>> [round(weight, 3) for weight in class_weights([900, 100, 0], "inverse")]
    [0.2, 1.8, 1.0]
    """
    present = [count for count in counts if count > 0]
    if not present:
        return (1.0,) * len(counts)
    beta = 1 - len(present) / sum(present)

    def raw(count: int) -> float:
        return 1 / count if rule == "inverse" else (1 - beta) / (1 - beta**count)

    ceiling = _LARGEST_RATIO * raw(max(present))
    mean = sum(min(raw(count), ceiling) for count in present) / len(present)
    return tuple(min(raw(count), ceiling) / mean if count > 0 else 1.0 for count in counts)
