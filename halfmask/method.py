"""The contract of a method: a plain `nn.Module` whose `step` reads like its paper."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from halfmask.batch import Batch, Progress
from halfmask.errors import RecipeError
from halfmask.models.model import Model, Network
from halfmask.task import Task

if TYPE_CHECKING:
    from halfmask.data.contract import Dataset
    from halfmask.data.splits.split import Split
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


class Optim(NamedTuple):
    """Parameters of one optimizer, and what differs for it from the recipe's `optim`.

    Args:
        groups: its parameters.
        overrides: keys of `optim`: `{"name": "adam", "lr": 1e-3, "clip_norm": 50}`. A `lr` given here is used as
            written, whatever the batch. The recipe may change them: `optim.optimizers.KEY.lr=...`.
    """

    groups: list[ParamGroup]
    overrides: dict[str, Any] = {}  # noqa: RUF012  # never changed


Artifacts = Mapping[str, Path]  # files and folders that finished stages wrote, by the names their `after` gave them


@runtime_checkable
class StageContext(Protocol):
    """A finished stage: its data, its trained networks, and where to write what later stages need.

    Attributes:
        recipe: of this stage.
        dataset: of the labeled and validation images.
        unlabeled: of the unlabeled images; the same object where they lie in one place.
        split: ids of the labeled, unlabeled and validation images.
        tags: image-level labels (K,) of the unlabeled images by id; empty without `data.weak.tags`.
        artifacts: what earlier stages wrote.
        device: where models and images are.
    """

    recipe: "Recipe"
    dataset: "Dataset"
    unlabeled: "Dataset"
    split: "Split"
    tags: Mapping[str, Tensor]
    artifacts: Artifacts
    device: torch.device

    @property
    def folder(self) -> Path:
        """Folder of the stage, in the folder of the run."""
        ...

    def predictor(self) -> Network:
        """Load the shipped predictor at its best validation, in evaluation mode."""
        ...

    def checkpoints(self) -> list[Path]:
        """List the kept checkpoints (`Stage.keep_checkpoints`) in order of their steps; the last ends the training."""
        ...

    def load(self, checkpoint: Path | None = None) -> "Method":
        """Load the method with all its networks, in evaluation mode, from a kept checkpoint or from the last one."""
        ...

    def image(self, id: str) -> Float[Tensor, "*T C H W"]:
        """Read an unlabeled image, RGB in [0, 1], on the device; the two dates of a pair in front."""
        ...

    def probabilities(
        self, model: Network, image: Float[Tensor, "*T C H W"], *, scales: Sequence[float] | None = None,
        flip: bool | None = None,
    ) -> Float[Tensor, "K H W"]:  # fmt: skip
        """Predict an image of any size by the recipe's protocol; `scales` and `flip` replace those of `eval`."""
        ...

    def class_map(
        self, model: Network, image: Float[Tensor, "*T C H W"], *, scales: Sequence[float] | None = None,
        flip: bool | None = None, mode: Literal["whole", "slide"] | None = None,
    ) -> Integer[Tensor, "H W"]:  # fmt: skip
        """Label an image by the largest of the `probabilities`; `mode` replaces that of `eval` too.

        Memory is bounded: an image whose probabilities would take more than 1 GiB is labeled in overlapping tiles, as
        `halfmask predict` does.
        """
        ...

    def write_masks(self, name: str, ids: Sequence[str], label: Callable[[str, Tensor], Tensor]) -> Path:
        """Label unlabeled images and return the folder of their masks, which `data.weak.masks` takes.

        Args:
            name: of the folder.
            ids: images to label; no tags are needed.
            label: called with an id and its image; returns the classes (H, W), `ignore_index` where unknown. It must
                give the same labels when a killed run calls it again.
        """
        ...

    def write_list(self, name: str, ids: Sequence[str]) -> Path:
        """Write a list of images and return its path, which `data.labeled`, `data.unlabeled` and `data.val` take."""
        ...

    def place(self, name: str) -> Path:
        """Return the path in the stage's folder for a file or folder of your own; `--overwrite` removes it."""
        ...


@dataclass
class Stage:
    """One training of a staged method, with fresh networks.

    Args:
        name: sub-folder of the run.
        overrides: dotted recipe keys that differ in this stage; or a function of what the stages before wrote.
        keep_checkpoints: how many evenly spaced checkpoints `after` can load; the last one ends the training.
        after: called once when the training is finished; returns what later stages name. A run that was killed in it
            calls it again: masks that are already written are kept.
    """

    name: str
    overrides: dict[str, Any] | Callable[[Artifacts], dict[str, Any]] = field(default_factory=dict)
    keep_checkpoints: int = 1
    after: Callable[[StageContext], Mapping[str, str | Path]] | None = None


def groups_of(*modules: nn.Module) -> list[ParamGroup]:
    """Return the trainable parameters of some modules: the encoders', and all others (`optim.decoder_lr_scale`)."""
    parts = [part for module in modules for part in module.modules()]
    in_encoders = {id(one) for part in parts if isinstance(part, Model) for one in part.encoder.parameters()}
    encoder: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for parameter in dict.fromkeys(one for module in modules for one in module.parameters()):
        if parameter.requires_grad:
            (encoder if id(parameter) in in_encoders else rest).append(parameter)
    return [ParamGroup("encoder", encoder), ParamGroup("decoder", rest)]


def optimizers_of(method: "Method") -> dict[str, Optim]:
    """Return the optimizers of a method, each as an `Optim`."""
    return {
        key: found if isinstance(found, Optim) else Optim(found) for key, found in method.parameter_groups().items()
    }


def trained_models(method: nn.Module) -> dict[str, Model]:
    """Return the networks of a method that receive gradients, by the name of their attribute."""
    return {
        name: module
        for name, module in method.named_modules()
        if isinstance(module, Model) and any(parameter.requires_grad for parameter in module.parameters())
    }


class Method(nn.Module):
    """Subclass it, write `__init__` and `step`. The keyword-only constructor arguments ARE the recipe's schema.

    A subclass calls `super().__init__(task)` first and keeps its networks as attributes of any name. The engine knows
    a method by what is defined here alone.
    """

    draws: int = 1  # unlabeled batches a step consumes: 0 supervised, 2 with a mixing partner; may be set in __init__
    draws_share_images: bool = False  # True: the draws are other crops of the same images
    smallest_batch: int = 1  # unlabeled images a step needs per device: 2 where images of one batch are paired
    tasks: ClassVar[frozenset[str]] = frozenset({"segmentation", "change"})
    equal_batches: ClassVar[bool] = False  # True: a step needs as many unlabeled as labeled images
    weak_labels: ClassVar[frozenset[str]] = frozenset()  # what of `data.weak` a step uses: "tags", "masks"
    supports: ClassVar[frozenset[str]] = frozenset()  # "class_weights": a step uses `batch.class_weights`
    partial_updates: ClassVar[bool] = False  # True: some parameters get no gradient in some updates
    status: ClassVar[str] = "experimental"  # "implemented": equals the paper's by numbers; or "reproduced"
    host_sync: str | None = None  # the reason, if an operator must visit the host; may be set in __init__

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
        """Run after each validation; keys as in metrics.jsonl, and none where there are no validation images."""

    def predictors(self) -> Mapping[str, Network]:
        """Return the networks to evaluate, by name; the first one is shipped. Default: the trained networks.

        Raises:
            RecipeError: the method keeps no network as an attribute.
        """
        found = trained_models(self)
        if not found:
            raise RecipeError(
                f"method {type(self).__name__} has no trained network, so there is nothing to evaluate. Make one in "
                "its constructor (self.net = build()), or let predictors() return what is evaluated."
            )
        return found

    def parameter_groups(self) -> Mapping[str, list[ParamGroup] | Optim]:
        """Return the trainable parameters of each optimizer, by its key; the default is one optimizer for all.

        Optimizers follow the recipe's `optim`; an `Optim` says what differs for its key.
        """
        return {"main": groups_of(self)}

    def class_weights_for_sampling(self) -> Float[Tensor, " K"] | None:
        """Return how often each class is to be drawn, in any scale, where the recipe says `data.balance=classes`.

        Asked at the start of every epoch; the answer is kept in the checkpoint, and averaged over processes. `None`,
        the default: all classes equally often.
        """
        return None

    @classmethod
    def control_params(cls) -> dict[str, Any] | None:
        """Return the parameters that leave out what unlabeled images teach, and nothing else: the control of a run.

        The control has the same networks, averages, batches, passes and augmentation, so that what a run is better by
        is due to the unlabeled images. `None`: no parameters do that, and only method `supervised` is left to compare
        with. Default: `unlabeled_weight` 0 where the constructor has it.
        """
        return {"unlabeled_weight": 0.0} if "unlabeled_weight" in inspect.signature(cls).parameters else None

    @classmethod
    def plan(cls, recipe: "Recipe") -> list[Stage]:
        """Return the stages of the run; more than one only for multi-stage methods."""
        return [Stage("train")]


class DomainMethod(Method):
    """A method that learns several datasets in turns (`data.domains`): a method of each over what they share.

    It is built with a task and a builder per domain, by name, in the order of the turns.
    """

    names: tuple[str, ...]  # of the domains

    @classmethod
    def of_each(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return `{name, **params}` of the method that each domain is trained by; `params` are this method's."""
        raise NotImplementedError(f"{cls.__name__} must define of_each()")

    def of(self, domain: str) -> Method:
        """Return the method of one domain."""
        raise NotImplementedError(f"{type(self).__name__} must define of()")
