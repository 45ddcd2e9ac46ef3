"""The mean of the weights over the last part of a run, for runs that no validation chooses for (`run.average_last`).

Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018, arXiv:1803.05407:
theta = 1/n sum_i theta_i over weights of n points of one training. The running mean is kept in float32, at most
`_POINTS` are taken, and the last step is one of them. Of batch norm the running statistics are averaged with the
weights; `run.precise_bn` takes them anew for the averaged network.

Networks that learn by gradients are averaged; teachers stay as they are. The first point of the mean decides which:
PS-MT's teachers learn in its first epochs only. With decay d a teacher is the mean of about
the last 1 / (1 - d) steps already (100 with d = 0.99), and one more mean would only move it back by half of the last
part: mean IoU of the test images of facades with 4 and 12 masks, FixMatch as planned for a CPU, 200 steps, was 46.8 and
47.3 of the last teacher, 46.3 and 47.1 of its mean; 47.6 and 48.0 of the last student, 48.2 and 48.6 of its mean.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from halfmask.batch import Batch
from halfmask.method import Method
from halfmask.run.loop.lightning_library import L

_POINTS = 20


class WeightAverage:
    """A running mean of the weights and running statistics of every predictor that learns by gradients.

    Args:
        share: last part of the run, in (0, 1].
        total_steps: of the run.

    Attributes:
        span: steps that the mean reaches back.
        active: whether the predictors hold the mean now.

    >>> average = WeightAverage(0.25, 1000)
    >>> [step for step in (750, 751, 760, 772, 1000) if average.due(step)]
    [760, 772, 1000]
    """

    def __init__(self, share: float, total_steps: int) -> None:
        self.total_steps = total_steps
        self.span = max(1, round(share * total_steps))
        self.every = max(1, self.span // _POINTS)
        self.active = False
        self._count, self._mean = 0, dict[str, Tensor]()
        self._predictors: tuple[str, ...] = ()  # a network of several predictors is in the mean once

    def due(self, step: int) -> bool:
        """Tell whether the weights after a step belong to the mean; the spacing is counted from the end."""
        return step > self.total_steps - self.span and (self.total_steps - step) % self.every == 0

    @torch.no_grad()
    def take(self, method: Method) -> None:
        """Add the weights as they are now."""
        if not self._count:
            self._predictors = _learning(method)
        names = self._mean or _tensors(method, self._predictors, once=True)
        self._count += 1
        for name, value in _named(method, names).items():
            wide = value.detach().to(torch.promote_types(value.dtype, torch.float32), copy=True)
            # Those of a checkpoint come from the CPU.
            before = self._mean[name].to(value.device) if name in self._mean else wide
            self._mean[name] = before.lerp_(wide, 1 / self._count)

    @contextmanager
    def swapped_in(self, method: Method) -> Iterator[None]:
        """Put the mean into the predictors, and restore their own weights at the end."""
        before = {name: value.detach().clone() for name, value in _named(method, self._mean).items()}
        install_average(method, self._mean)
        self.active = True
        try:
            yield
        finally:
            self.active = False
            install_average(method, before)

    def span_of(self, predictor: str) -> int:
        """Return the steps over which a predictor is averaged; 0 for a teacher."""
        return self.span if predictor in self._predictors else 0

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it; nothing before the first point."""
        mean = {name: value.cpu() for name, value in self._mean.items()}
        return {"count": self._count, "predictors": list(self._predictors), "mean": mean}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue with a saved mean."""
        self._count, self._mean = int(state["count"]), dict(state["mean"])
        # Checkpoints of before do not name the predictors.
        known = state.get("predictors", dict.fromkeys(name.partition(".")[0] for name in self._mean))
        self._predictors = tuple(known)


class AverageLast(L.Callback):
    """Takes the weights into the mean when due; comes before the validation of the same step.

    Args:
        average: the mean.
    """

    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Take the weights when due."""
        if self.average.due(module.step):
            self.average.take(module.method)


@torch.no_grad()
def install_average(method: Method, mean: Mapping[str, Tensor]) -> None:
    """Copy values, by the names of `WeightAverage.state`, into the predictors of a method."""
    for name, value in _named(method, mean).items():
        value.copy_(mean[name])


def _learning(method: Method) -> tuple[str, ...]:
    """Return the predictors that learn by gradients now; a teacher's weights need none."""
    networks = method.predictors().items()
    return tuple(name for name, network in networks if any(one.requires_grad for one in network.parameters()))


def _named(method: Method, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors of these names."""
    found = _tensors(method, method.predictors())
    return {name: found[name] for name in names}


def _tensors(method: Method, predictors: Iterable[str], *, once: bool = False) -> dict[str, Tensor]:
    """Return floating-point weights and buffers of predictors.

    With `once`, tensors of several predictors (an ensemble holds others' networks) have the first one's name only.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    networks = method.predictors()
    for predictor in predictors:
        network = networks[predictor]
        for name, value in (*network.named_parameters(), *network.named_buffers()):
            if value.is_floating_point() and not (once and id(value) in seen):
                seen.add(id(value))
                found[f"{predictor}.{name}"] = value
    return found
