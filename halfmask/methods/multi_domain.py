"""Several domains with label spaces of their own share one encoder and are learned in turns, by any method.

Domain-specific decoders over a shared encoder, as Ouali, Hudelot, Tami, "Semi-Supervised Semantic Segmentation with
Cross-Consistency Training", CVPR 2020, arXiv:2003.09005, section 3.4 train CCT on two datasets at once (after Kalluri
et al., "Universal Semi-Supervised Semantic Segmentation", ICCV 2019, arXiv:1811.10323). With n domains, encoder f, and
the wrapped method's networks g_i, its auxiliary decoders and its loss L_i for domain i:

    domain of step s     i = s mod n
    loss                 L_i(f, g_i; n labeled and n unlabeled images of domain i)
    update               f and what belongs to domain i; nothing else moves

Classes are never mapped onto one another: label spaces may overlap in part, or not at all.

Where the paper says nothing and no code was published:
  * Batch normalization of the encoder is shared (`batch_norm: own`: statistics and affine parameters per domain).
  * A schedule of domain i counts its own steps: floor(s / n) of total / n.
  * Parameters without a gradient are left out by the optimizer: no momentum, no weight decay.
  * Everything of the wrapped method but the encoder is per domain: decoder, auxiliary decoders, classifier, and a
    moving average of all weights, which is updated in its domain's steps.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ValidationError
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from halfmask.batch import Batch, Progress
from halfmask.errors import DataError, RecipeError
from halfmask.method import DomainMethod, Method, ModelBuilder, Optim, ParamGroup, StepOutput, Update, optimizers_of
from halfmask.models.model import Model, Network
from halfmask.plugins import arguments, params_model, resolve
from halfmask.recipe.explain import explain_all
from halfmask.recipe.renamed import with_present_names
from halfmask.task import Task

NormRule = Literal["shared", "own"]


def _checked(method: str | dict[str, Any]) -> dict[str, Any]:
    """Fill in the wrapped method's defaults."""
    entry = {"name": method} if isinstance(method, str) else dict(method)
    name = entry.pop("name", None)
    if not isinstance(name, str):
        raise ValueError("the wrapped method needs a name: {name: cct, ...}")
    cls = resolve("methods", name)
    if cls is MultiDomain:
        raise ValueError("multi_domain wraps a method, not itself")
    schema = params_model(cls)
    entry = with_present_names("method", entry, schema)
    try:
        checked = schema.model_validate(entry)
    except ValidationError as error:
        problems = explain_all(error.errors(), schema, entry, owner=f"method {name}")
        raise ValueError("; ".join(problems)) from None
    return {"name": name, **checked.model_dump(mode="json")}


class MultiDomain(DomainMethod):
    """One method per domain over a shared encoder; domains take turns, step by step.

    Args:
        method: what each domain is trained by: a name, or `{name: cct, ...}` with its parameters.
        batch_norm: of the encoder: `shared`, or `own` statistics and affine parameters for each domain, where their
            images differ much.
    """

    status = "implemented"
    partial_updates: ClassVar[bool] = True

    def __init__(
        self,
        task: Task | Mapping[str, Task],
        build: ModelBuilder | Mapping[str, ModelBuilder],
        *,
        method: Annotated[str | dict[str, Any], AfterValidator(_checked)] = "cct",
        batch_norm: NormRule = "shared",
    ) -> None:
        tasks = {"": task} if isinstance(task, Task) else dict(task)
        builders = dict(build) if isinstance(build, Mapping) else dict.fromkeys(tasks, build)
        super().__init__(next(iter(tasks.values())))
        wrapped = _checked(method)
        cls = resolve("methods", wrapped.pop("name"))
        given = arguments(cls, wrapped)
        encoders: list[nn.Module] = []
        self.names = tuple(tasks)
        self.domains = nn.ModuleList(
            cls(tasks[name], _SharedEncoder(builders[name], encoders, batch_norm), **given) for name in self.names
        )
        first = self.of(self.names[0])
        self.draws, self.draws_share_images = first.draws, first.draws_share_images
        self.smallest_batch, self.host_sync = first.smallest_batch, first.host_sync

    @classmethod
    def of_each(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the wrapped method with its parameters."""
        return _checked(params.get("method", "cct"))

    def of(self, domain: str) -> Method:
        """Return the method of one domain."""
        method = self.domains[self.names.index(domain)]
        assert isinstance(method, Method)
        return method

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        """Compute the loss of the domain whose turn it is."""
        domain = self._turn(batch, progress)
        return self._named(self.of(domain).step(batch, self.progress_of(domain, progress)), domain)

    def updates(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield the updates of the domain whose turn it is."""
        domain = self._turn(batch, progress)
        for update in self.of(domain).updates(batch, self.progress_of(domain, progress)):
            yield update._replace(output=self._named(update.output, domain))

    def after_update(self, progress: Progress) -> None:
        """Call `after_update` of the domain whose turn it was."""
        domain = self.names[progress.step % len(self.names)]
        self.of(domain).after_update(self.progress_of(domain, progress))

    def after_evaluation(self, scores: dict[str, float], progress: Progress) -> None:
        """Pass each domain its scores, without the domain prefix."""
        for domain in self.names:
            mark = f"val/{domain}/"
            own = {key.replace(mark, "val/"): value for key, value in scores.items() if mark in key}
            self.of(domain).after_evaluation(own if domain else scores, self.progress_of(domain, progress))

    def predictors(self) -> dict[str, Network]:
        """Return the networks of every domain, `<domain>/<predictor>`; the first one of each domain is shipped."""
        return {
            f"{domain}/{name}" if domain else name: model
            for domain in self.names
            for name, model in self.of(domain).predictors().items()
        }

    def parameter_groups(self) -> dict[str, list[ParamGroup] | Optim]:
        """Join the groups of all domains; parameters that domains share are in one group only."""
        merged: dict[str, dict[str, list[nn.Parameter]]] = {}
        overrides: dict[str, dict[str, Any]] = {}
        seen: set[int] = set()
        for domain in self.names:
            for key, found in optimizers_of(self.of(domain)).items():
                overrides.setdefault(key, found.overrides)
                for group in found.groups:
                    new = [parameter for parameter in group.params if id(parameter) not in seen]
                    seen |= {id(parameter) for parameter in new}
                    merged.setdefault(key, {}).setdefault(group.name, []).extend(new)
        parts = {key: [ParamGroup(*group) for group in groups.items()] for key, groups in merged.items()}
        return {key: Optim(groups, overrides[key]) if overrides[key] else groups for key, groups in parts.items()}

    def progress_of(self, domain: str, progress: Progress) -> Progress:
        """Return how far a domain is: it counts its own steps."""
        count, number = len(self.names), self.names.index(domain)
        own = Progress(
            _own_steps(progress.step, count, number),
            max(1, _own_steps(progress.total_steps, count, number)),
            max(1, progress.steps_per_epoch // count),
        )
        return own

    def _turn(self, batch: Batch, progress: Progress) -> str:
        domain = self.names[progress.step % len(self.names)]
        if batch.domain != domain and len(self.names) > 1:
            raise DataError(
                f"step {progress.step} is the turn of domain {domain!r}, but the batch is of {batch.domain!r}. Give "
                f"Batch(domain=...) in turns: {', '.join(self.names)}."
            )
        return domain

    def _named(self, output: StepOutput, domain: str) -> StepOutput:
        """Add the domain's name to its log values; values per class carry only that name, because classes differ."""
        if not domain:
            return output
        logs = {name: value for name, value in output.logs.items() if value.ndim == 0}
        for name, value in output.logs.items():
            family = (name if "/" in name else f"train/{name}").removesuffix("_by_class")
            if value.ndim == 0:
                head, _, tail = family.rpartition("/")
                logs[f"{head}/{domain}/{tail}"] = value
            else:
                labels = self.of(domain).task.classes
                logs |= {f"{family}/{domain}/{label}": one for label, one in zip(labels, value.unbind(), strict=True)}
        return StepOutput(output.loss, logs)


class _SharedEncoder:
    """A builder whose n-th network has the encoder of the n-th network that was built for the first domain."""

    def __init__(self, build: ModelBuilder, encoders: list[nn.Module], batch_norm: NormRule) -> None:
        self.build, self.encoders, self.batch_norm = build, encoders, batch_norm
        self.crop, self.made = build.crop, 0

    def __call__(self, **overrides: Any) -> Model:
        model = self.build(**overrides)
        if self.made < len(self.encoders):
            model.encoder = _joined(model.encoder, self.encoders[self.made], self.batch_norm)
        else:
            self.encoders.append(model.encoder)
        self.made += 1
        return model


def _joined(own: nn.Module, shared: nn.Module, batch_norm: NormRule) -> Any:
    """Return the shared encoder, or one with the same parameters but batch norms of its own.

    Raises:
        RecipeError: the encoders differ.
    """
    mine, theirs = ({key: tuple(value.shape) for key, value in part.state_dict().items()} for part in (own, shared))
    if type(own) is not type(shared) or mine != theirs:
        raise RecipeError(
            "domains share their encoder, but their images need different ones (number of bands). Bring the images to "
            "the same number of bands: data.domains.NAME.dataset.bands."
        )
    if batch_norm == "shared":
        return shared
    twin = copy.deepcopy(shared)
    for part, source in zip(twin.modules(), shared.modules(), strict=True):
        if not isinstance(part, _BatchNorm):
            part._parameters.update(source._parameters)
            part._buffers.update(source._buffers)
    return twin


def _own_steps(steps: int, count: int, number: int) -> int:
    """Count the steps of domain `number` among the first `steps`.

    >>> [_own_steps(5, 2, number) for number in (0, 1)]
    [3, 2]
    """
    return (steps - number + count - 1) // count
