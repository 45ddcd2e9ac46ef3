"""The contract of a method: a plain `nn.Module` whose `step` reads like its paper."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from halfmask.batch import Batch, Progress
from halfmask.errors import RecipeError
from halfmask.losses.class_weights import ClassWeighted
from halfmask.models.model import Model
from halfmask.task import Task

if TYPE_CHECKING:
    from halfmask.recipe.read import Recipe


@runtime_checkable
class ModelBuilder(Protocol):
    """Makes networks: every call gives a fresh, independently initialized one."""

    crop: int  # training crop side in pixels

    def __call__(self, **overrides: Any) -> Model:
        """Build a model; overrides replace parts of the recipe's `model` section."""
        ...


class StepOutput(NamedTuple):
    """Result of one step.

    Args:
        loss: scalar with a graph.
        logs: device tensors, 0-d or (K,) (one value per class, NaN for a class without one in this step); the engine
            detaches and names them (`loss_sup` -> `train/loss_sup`, `pseudo/coverage` stays).
    """

    loss: Float[Tensor, ""]
    logs: dict[str, Tensor]


class Update(NamedTuple):
    """One optimizer update: its loss and the key of the optimizer that steps."""

    output: StepOutput
    group: str = "main"


class ParamGroup(NamedTuple):
    """Parameters that share a learning rate; `name` is "encoder" or "decoder" (everything else)."""

    name: str
    params: list[nn.Parameter]


@dataclass
class Stage:
    """One training of a staged method.

    Args:
        name: sub-folder of the run.
        overrides: dotted recipe keys that differ in this stage.
        keep_checkpoints: how many evenly spaced checkpoints to keep.
        after: called with the stage's folder and the shipped predictor; writes files for the next stage.
        label: gives the pseudo-mask (H, W) of an image (C, H, W) in [0, 1] with tags (K,), by the stage's method and
            its shipped predictor; the engine labels all tagged images, later stages read them (`data.weak.masks`).
    """

    name: str
    overrides: dict[str, Any] = field(default_factory=dict)
    keep_checkpoints: int = 1
    after: Callable[[Path, Model], None] | None = None
    label: "Callable[[Method, Model, Tensor, Tensor], Tensor] | None" = None


class Method(nn.Module):
    """Subclass it, write `__init__` and `step`. The keyword-only constructor arguments ARE the recipe's schema.

    A subclass names its networks as attributes (`self.student`, `self.teacher`) and calls
    `super().__init__(task)` first.
    """

    draws: int = 1  # unlabeled batches a step consumes: 0 supervised, 2 with a mixing partner; may be set in __init__
    draws_share_images: bool = False  # True: the draws are other crops of the same images
    smallest_batch: int = 1  # unlabeled images a step needs per device: 2 where images of one batch are paired
    tasks: ClassVar[frozenset[str]] = frozenset({"segmentation", "change"})
    equal_batches: ClassVar[bool] = False  # True: a step needs as many unlabeled as labeled images
    weak_labels: ClassVar[frozenset[str]] = frozenset()  # what of `data.weak` a step uses: "tags", "masks"
    partial_updates: ClassVar[bool] = False  # True: some parameters get no gradient in some updates
    status: ClassVar[str] = "experimental"  # "implemented": equals the paper's by numbers; or "reproduced"
    host_sync: str | None = None  # the reason, if an operator must visit the host; may be set in __init__

    student: Model
    labeled_loss: Callable[..., Tensor]  # of logits and labels, for `optim.class_weights`; takes `weight`

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of one update: the paper's algorithm, without any host synchronization."""
        raise NotImplementedError(f"{type(self).__name__} must define step()")

    def updates(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield the updates of one step in order; the default is a single one."""
        yield Update(self.step(batch, progress))

    def after_update(self, progress: Progress) -> None:
        """Run after the optimizer step(s): EMA, queue pointers. `progress.step` is the step just done."""

    def after_evaluation(self, scores: dict[str, float], progress: Progress) -> None:
        """Run after each validation; keys as in metrics.jsonl."""

    def predictors(self) -> dict[str, Model]:
        """Networks to evaluate; the first one is shipped."""
        return {"student": self.student}

    def parameter_groups(self) -> dict[str, list[ParamGroup]]:
        """Trainable parameters per optimizer: the encoder's, and all others (`optim.decoder_lr_scale`)."""
        encoder: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        encoder_ids = {
            id(parameter)
            for module in self.modules()
            if isinstance(module, Model)
            for parameter in module.encoder.parameters()
        }
        for parameter in self.parameters():
            if parameter.requires_grad:
                (encoder if id(parameter) in encoder_ids else rest).append(parameter)
        return {"main": [ParamGroup("encoder", encoder), ParamGroup("decoder", rest)]}

    def weigh_classes(self, weights: Sequence[float]) -> None:
        """Weight the classes in the loss of labeled images (`optim.class_weights`).

        Raises:
            RecipeError: the method's own labeled loss takes no weights.
        """
        if not hasattr(self, "labeled_loss"):
            raise RecipeError(
                f"method {type(self).__name__} has a loss of its own, which takes no weights of classes. Use "
                "optim.class_weights=none; rare classes can be shown more often instead: data.balance=classes."
            )
        self.labeled_loss = ClassWeighted(self.labeled_loss, weights)

    @classmethod
    def plan(cls, recipe: "Recipe") -> list[Stage]:
        """Stages of the run; more than one only for multi-stage methods."""
        return [Stage("train")]
