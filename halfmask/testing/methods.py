"""`check_method`: does a method keep the contract of `halfmask.methods.Method`?

    from halfmask.testing import check_method
    from mylab.method import MyMethod

    def test_my_method():
        check_method(MyMethod, threshold=0.9)

Each broken rule raises `AssertionError` saying what is wrong and how to mend it.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import fields
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from halfmask.batch import Batch, Progress, Samples
from halfmask.method import Method, optimizers_of
from halfmask.models.model import Network
from halfmask.plugins import arguments
from halfmask.task import Task
from halfmask.teaching.ema import Teacher
from halfmask.testing.host_sync import no_host_sync
from halfmask.testing.tiny import tiny_batch, tiny_builder, tiny_task
from halfmask.testing.training import trains

_TOTAL = 8
_KINDS = ("segmentation", "change", "classification")


def check_method(cls: type[Method], *, device: torch.device | str = "cpu", **params: Any) -> None:
    """Train a method for a few steps on tiny networks, with and without batch norm, and check every rule.

    Args:
        cls: the method.
        device: where to run; on a GPU host synchronization is also watched by CUDA itself.
        params: constructor arguments that differ from their defaults.

    Raises:
        AssertionError: a rule is broken.
        HostSyncError: a step reads a tensor's values on the host.
    """
    params = arguments(cls, params)  # every keyword argument is annotated, every default is legal
    kinds = [kind for kind in _KINDS if kind in cls.tasks]
    _rule(bool(cls.tasks), f"{cls.__name__}.tasks is empty: name the kinds of task it is for.")
    for kind in kinds:
        # Norms change who shares a forward pass; once is enough to see that.
        for norm in (True, False) if kind == kinds[0] else (True,):
            bench = _Bench(cls, tiny_task(kind), norm, torch.device(device), params)
            for check in _CHECKS:
                # One seed per check: none depends on what another one drew.
                torch.manual_seed(0)
                with warnings.catch_warnings():
                    warnings.simplefilter("error", UserWarning)
                    check(bench)
    found = trains(cls, kinds[0], params)
    _rule(not found, f"{cls.__name__}: keeps every other rule, but `halfmask train` ends with\n{found}")


class _Bench:
    """Makes methods of one class for one task, and steps them."""

    def __init__(self, cls: type[Method], task: Task, norm: bool, device: torch.device, params: dict[str, Any]) -> None:
        self.make: Callable[..., Method] = cls
        self.cls, self.task, self.norm, self.device, self.params = cls, task, norm, device, params
        self.name = cls.__name__

    def method(self, seed: int = 1, task: Task | None = None) -> Method:
        torch.manual_seed(seed)
        task = task or self.task
        return self.make(task, tiny_builder(task, norm=self.norm), **self.params).to(self.device).train()

    @cached_property
    def unbroken(self) -> "_Unbroken":
        """Four steps in one go, and what was there after two."""
        method = self.method()
        optimizers = self.optimizers(method)
        losses = torch.stack(self.train(method, optimizers, 0, 2))
        states = {key: optimizer.state_dict() for key, optimizer in optimizers.items()}
        half = copy.deepcopy((method.state_dict(), states))
        self.train(method, optimizers, 2, 4)
        return _Unbroken(losses, *half, method.state_dict())

    def batch(self, method: Method, seed: int = 0) -> Batch:
        share = method.draws_share_images
        return tiny_batch(method.task, draws=method.draws, share_images=share, seed=seed, device=self.device)

    def optimizers(self, method: Method) -> dict[str, Optimizer]:
        return {
            key: torch.optim.SGD([p for group in found.groups for p in group.params], lr=0.05, momentum=0.9)
            for key, found in optimizers_of(method).items()
        }

    def train(self, method: Method, optimizers: dict[str, Optimizer], first: int, last: int) -> list[Tensor]:
        """Run steps `first` to `last` - 1 as the engine does; step n draws from seed n alone."""
        losses = []
        for step in range(first, last):
            progress = Progress(step, _TOTAL, 4)
            torch.manual_seed(1000 + step)
            for update in method.updates(self.batch(method, seed=step), progress):
                optimizers[update.group].zero_grad(set_to_none=True)
                update.output.loss.backward()
                optimizers[update.group].step()
                losses.append(update.output.loss.detach().clone())
            method.after_update(progress)
            if step % 2:  # a validation; the scores are arbitrary, but the same in every run
                scores = {f"{name}/val/miou": 0.1 * step for name in method.predictors()}
                method.after_evaluation({"val/miou": 0.1 * step, **scores}, progress)
        return losses


class _Unbroken(NamedTuple):
    """Losses and state after two steps, and the state after four."""

    losses: Tensor
    state: dict[str, Tensor]
    optimizers: dict[str, dict[str, Any]]
    end: dict[str, Tensor]


def _step_gives_a_finite_loss_and_logs(bench: _Bench) -> None:
    method = bench.method()
    classes = bench.task.n_classes
    count = 0
    for update in method.updates(bench.batch(method), Progress(0, _TOTAL, 4)):
        count += 1
        loss, logs = update.output
        _rule(loss.shape == () and loss.requires_grad, f"{bench.name}: the loss must be a scalar with a graph.")
        _rule(bool(loss.isfinite()), f"{bench.name}: the loss of the first step is {loss.item()}.")
        _rule(
            update.group in method.parameter_groups(),
            f"{bench.name}: update.group {update.group!r} is no key of parameter_groups().",
        )
        for key, value in logs.items():
            _rule(isinstance(value, Tensor), f"{bench.name}: log {key} must be a tensor, without .item().")
            _rule(value.shape in ((), (classes,)), f"{bench.name}: log {key} must be 0-d or (K,), not {value.shape}.")
            given = value[~value.isnan()] if value.ndim else value  # NaN: a class that did not occur
            _rule(bool(given.isfinite().all()), f"{bench.name}: log {key} is not finite.")
        loss.backward()
    _rule(count > 0, f"{bench.name}: updates() yields nothing, so nothing is trained.")


def _step_leaves_the_batch_as_it_is(bench: _Bench) -> None:
    method = bench.method()
    batch = bench.batch(method)
    before = copy.deepcopy(batch)
    bench_steps = list(method.updates(batch, Progress(0, _TOTAL, 4)))
    _rule(bool(bench_steps), f"{bench.name}: no update.")
    for stream in ("labeled", "unlabeled", "partner"):
        old, new = getattr(before, stream), getattr(batch, stream)
        changed = [
            f.name for f in fields(Samples) if old is not None and not _same(getattr(old, f.name), getattr(new, f.name))
        ]
        _rule(not changed, f"{bench.name}: the step changes {stream}.{changed} in place; work on copies.")


def _gradients_reach_the_networks_but_no_teacher(bench: _Bench) -> None:
    method = bench.method()
    reached: set[int] = set()
    for update in method.updates(bench.batch(method), Progress(_TOTAL - 1, _TOTAL, 4)):
        method.zero_grad()
        update.output.loss.backward()
        reached |= {id(p) for p in method.parameters() if p.grad is not None and bool(p.grad.isfinite().all())}
    named = dict(method.named_parameters())
    missed = [name for name, p in named.items() if p.requires_grad and id(p) not in reached]
    _rule(
        not missed or method.partial_updates,
        f"{bench.name}: no (finite) gradient reaches {missed[:5]}. Freeze what is not trained "
        "(requires_grad_(False)), or set partial_updates = True if it is trained in other steps only.",
    )
    for name, module in method.named_modules():
        if isinstance(module, Teacher):
            taught = [key for key, p in module.named_parameters() if p.requires_grad or p.grad is not None]
            _rule(not taught, f"{bench.name}: the teacher {name} receives gradients ({taught[:3]}).")
            _rule(
                module.training == (module.buffer_rule == "own"),
                f"{bench.name}: the teacher {name} is in the wrong mode after train().",
            )


def _parameter_groups_cover_what_is_trained(bench: _Bench) -> None:
    method = bench.method()
    grouped = [id(p) for found in optimizers_of(method).values() for group in found.groups for p in group.params]
    trainable = {id(p): name for name, p in method.named_parameters() if p.requires_grad}
    twice = [trainable.get(key, "?") for key in set(grouped) if grouped.count(key) > 1]
    _rule(not twice, f"{bench.name}: {twice[:3]} stand in several parameter groups.")
    left = [name for key, name in trainable.items() if key not in grouped]
    _rule(not left, f"{bench.name}: parameter_groups() leaves out {left[:3]}.")
    _rule(set(grouped) <= set(trainable), f"{bench.name}: parameter_groups() contains parameters without gradient.")


def _predictors_are_models_of_the_method(bench: _Bench) -> None:
    method = bench.method()
    inside = {id(module) for module in method.modules()}
    predictors = method.predictors()
    _rule(bool(predictors), f"{bench.name}: predictors() is empty; nothing can be evaluated or shipped.")
    image = bench.batch(method).labeled.image
    for name, model in predictors.items():
        own = isinstance(model, Network) and all(id(member) in inside for member in model.members)
        _rule(own, f"{bench.name}: predictor {name} is neither a Model of the method nor an Ensemble of such.")
        with torch.no_grad():
            logits = model.eval()(image)
        _rule(bool(logits.isfinite().all()), f"{bench.name}: predictor {name} gives logits that are not finite.")


def _no_host_sync(bench: _Bench) -> None:
    method = bench.method()
    if method.host_sync is not None:
        return
    optimizers = bench.optimizers(method)
    batch = bench.batch(method)
    progress = Progress(1, _TOTAL, 4)
    # The first step may set up caches.
    bench.train(method, optimizers, 0, 1)
    updates = iter(method.updates(batch, progress))
    while True:
        with no_host_sync():
            update = next(updates, None)
            if update is None:
                method.after_update(progress)
                return
            update.output.loss.backward()
        optimizers[update.group].step()


def _step_is_a_function_of_weights_batch_and_seed(bench: _Bench) -> None:
    first, second = bench.unbroken, bench.method()
    losses = torch.stack(bench.train(second, bench.optimizers(second), 0, 2))
    _rule(
        torch.equal(first.losses, losses) and _differences(first.state, second.state_dict()) == [],
        f"{bench.name}: two runs from the same weights, batches and seeds differ. Draw random numbers from torch's "
        "global generators only, and keep no state outside the module's tensors.",
    )


def _run_continues_from_a_state_dict(bench: _Bench) -> None:
    resumed = bench.method(seed=2)  # other initial weights: everything must come from the state
    resumed.load_state_dict(bench.unbroken.state)
    optimizers = bench.optimizers(resumed)
    for key, optimizer in optimizers.items():
        optimizer.load_state_dict(bench.unbroken.optimizers[key])
    bench.train(resumed, optimizers, 2, 4)
    odd = _differences(bench.unbroken.end, resumed.state_dict())
    _rule(
        not odd,
        f"{bench.name}: a run that continues from a state dict differs from an unbroken one in {odd[:5]}. Keep "
        "counters, queues and averages in registered buffers, or derive them from `progress`.",
    )


def _ignored_label_is_the_tasks(bench: _Bench) -> None:
    other = tiny_task(bench.task.kind, ignore_index=99)
    method = bench.method(task=other)
    losses = torch.stack(bench.train(method, bench.optimizers(method), 0, 2))
    _rule(
        torch.equal(bench.unbroken.losses, losses),
        f"{bench.name}: losses change when ignored pixels are marked by another value. Use task.ignore_index.",
    )


def _no_labeled_pixel_is_no_accident(bench: _Bench) -> None:
    method = bench.method()
    batch = bench.batch(method)
    batch.labeled.target = torch.full_like(batch.labeled.labels, bench.task.ignore_index)
    for stream in (batch.unlabeled, batch.partner):
        if stream is not None:
            stream.valid = torch.zeros_like(stream.valid)
    for update in method.updates(batch, Progress(0, _TOTAL, 4)):
        method.zero_grad()
        update.output.loss.backward()
        gradients = [p.grad for p in method.parameters() if p.grad is not None]
        finite = update.output.loss.isfinite() and all(bool(g.isfinite().all()) for g in gradients)
        _rule(
            bool(finite),
            f"{bench.name}: a batch of ignored pixels gives NaN. Divide by a count clamped to 1, as "
            "halfmask.losses.cross_entropy does.",
        )


_CHECKS: tuple[Callable[[_Bench], None], ...] = (
    _step_gives_a_finite_loss_and_logs,
    _step_leaves_the_batch_as_it_is,
    _gradients_reach_the_networks_but_no_teacher,
    _parameter_groups_cover_what_is_trained,
    _predictors_are_models_of_the_method,
    _no_host_sync,
    _step_is_a_function_of_weights_batch_and_seed,
    _run_continues_from_a_state_dict,
    _ignored_label_is_the_tasks,
    _no_labeled_pixel_is_no_accident,
)


def _rule(kept: bool, message: str) -> None:
    if not kept:
        raise AssertionError(message)


def _same(old: Tensor | None, new: Tensor | None) -> bool:
    return old is new or (old is not None and new is not None and torch.equal(old, new))


def _differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    return [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
