"""What a method's step receives: a batch of labeled and unlabeled samples, and how far training is.

Letters: `B` batch, `T` time (2 for change detection), `C` image channels, `K` classes, `H W` pixels,
`*S` the target's spatial axes (`H W` for dense tasks, nothing for classification).
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from halfmask.errors import DataError


@dataclass(slots=True)
class Samples:
    """Images of one stream, weakly augmented (scale, crop, flip), on the training device.

    Args:
        image: RGB (or any bands) in [0, 1], not normalized: the model does that.
        valid: False where the crop was padded.
        index: position in the dataset's list of this stream.
        target: int64 labels with `Task.ignore_index` where unknown; on unlabeled samples only offline
            pseudo-labels that an earlier `Stage` wrote, never the truth.
        tags: image-level (weak) labels.
    """

    image: Float[Tensor, "B *T C H W"]
    valid: Bool[Tensor, "B *S"]
    index: Int[Tensor, " B"]
    target: Int[Tensor, "B *S"] | None = None
    tags: Bool[Tensor, "B K"] | None = None

    @property
    def labels(self) -> Int[Tensor, "B *S"]:
        """Return the target; an error if there is none.

        Raises:
            DataError: these samples have none.
        """
        if self.target is None:
            raise DataError("this batch has no labels: give Samples(target=...), or list images that have masks.")
        return self.target


@dataclass(slots=True)
class Batch:
    """One training step's data.

    Args:
        labeled: samples with targets.
        unlabeled: samples without; `None` if the method draws none. A method with `draws = 2` receives the
            second draw in `partner`.
        partner: the second unlabeled draw, the mixing partner (UniMatch V1), else `None`.
        domain: whose turn it is when a recipe names several domains.
        class_weights: of the classes in the loss of labeled images (`optim.class_weights`), for methods that support
            them; `None`: all alike.
    """

    labeled: Samples
    unlabeled: Samples | None
    partner: Samples | None = None
    domain: str = ""
    class_weights: Float[Tensor, " K"] | None = None

    def draw(self, number: int) -> Samples:
        """Return the unlabeled samples of draw 0 (`unlabeled`) or 1 (`partner`).

        Raises:
            DataError: the batch was made without that draw.
        """
        samples = (self.unlabeled, self.partner)[number]
        if samples is None:
            name = ("unlabeled", "partner")[number]
            raise DataError(
                f"this batch has no `{name}` samples, but the method mixes or labels them. "
                "Load as many unlabeled draws per step as the method's `draws` says."
            )
        return samples


@dataclass(frozen=True, slots=True)
class Progress:
    """Python numbers, so that schedules cost no device work.

    >>> Progress(step=5, total_steps=20, steps_per_epoch=10).epoch
    0.5
    """

    step: int
    total_steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> float:
        """Return the passes over the unlabeled list so far."""
        return self.step / self.steps_per_epoch

    @property
    def fraction(self) -> float:
        """Return the part of the run that is done, in [0, 1]."""
        return self.step / self.total_steps
