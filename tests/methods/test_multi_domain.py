"""Domains over one encoder: who moves in which step, what is shared, and what each domain sees of a schedule."""

import copy
import dataclasses

import pytest
import torch

from halfmask.batch import Batch, Progress
from halfmask.errors import DataError, RecipeError
from halfmask.methods.multi_domain import MultiDomain
from halfmask.plugins import names, resolve
from halfmask.task import Task
from halfmask.testing import tiny_batch, tiny_builder

STREET = Task("segmentation", ("sky", "road", "car"), foreground=(False, False, True))
FACADE = Task("segmentation", ("sky", "wall", "door", "window"), foreground=(False, False, True, True))
TASKS = {"street": STREET, "facade": FACADE}
STEPS = 6


def make(method="supervised", **params) -> MultiDomain:
    torch.manual_seed(0)
    builders = {name: tiny_builder(task) for name, task in TASKS.items()}
    return MultiDomain(TASKS, builders, method=method, **params).train()


def turn(step: int, draws: int = 1) -> Batch:
    domain = list(TASKS)[step % 2]
    return dataclasses.replace(tiny_batch(TASKS[domain], draws=draws, seed=step), domain=domain)


def train(method: MultiDomain, optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        for update in method.updates(turn(step, method.draws), Progress(step, STEPS, 2)):
            optimizer.zero_grad(set_to_none=True)
            update.output.loss.backward()
            optimizer.step()
        method.after_update(Progress(step, STEPS, 2))


def optimizer_of(method: MultiDomain, **settings):
    groups = [group for groups in method.parameter_groups().values() for group in groups]
    return torch.optim.SGD([p for group in groups for p in group.params], lr=0.1, **settings)


def heads_of(method: MultiDomain, domain: str) -> dict[str, torch.Tensor]:
    own = method.of(domain)
    encoder = {id(p) for p in own.student.encoder.parameters()}
    return {name: p for name, p in own.named_parameters() if id(p) not in encoder and p.requires_grad}


def test_the_encoder_is_one_object_and_every_head_has_its_domains_classes():
    method = make("cct")
    street, facade = method.of("street"), method.of("facade")
    assert street.student.encoder is facade.student.encoder
    assert street.student.decoder is not facade.student.decoder
    image = torch.rand(2, 3, 32, 32)
    assert street.student(image).shape[1] == 3
    assert facade.student(image).shape[1] == 4
    assert street.heads is not facade.heads
    assert list(method.predictors()) == ["street/student", "facade/student"]


@pytest.mark.parametrize("method", [{"name": "cct", "heads": "lite"}, "fixmatch"])
def test_idle_parameters_have_no_gradient_and_stay_put_under_momentum_and_weight_decay(method):
    multi = make(method)
    optimizer = optimizer_of(multi, momentum=0.9, weight_decay=0.1)
    train(multi, optimizer, range(2))  # both domains have momentum now
    for step, (busy, idle) in ((2, ("street", "facade")), (3, ("facade", "street"))):
        before = copy.deepcopy(multi.state_dict())
        waiting = {name: p.detach().clone() for name, p in heads_of(multi, idle).items()}
        encoder = multi.of("street").student.encoder.state_dict()
        moving = {key: value.clone() for key, value in encoder.items() if value.is_floating_point()}
        train(multi, optimizer, range(step, step + 1))
        assert all(p.grad is None for p in heads_of(multi, idle).values())
        assert all(torch.equal(p, waiting[name]) for name, p in heads_of(multi, idle).items())
        assert all(p.grad is not None for p in heads_of(multi, busy).values())
        after = multi.of("street").student.encoder.state_dict()
        assert any(not torch.equal(moving[key], after[key]) for key in moving)
        # Nothing that is the idle domain's alone moved: teachers, statistics, queues.
        position = multi.names.index(idle)
        own = [key for key in before if key.startswith(f"domains.{position}.") and ".student.encoder." not in key]
        now = multi.state_dict()
        assert own
        assert all(torch.equal(before[key], now[key]) for key in own)


def test_the_loss_of_a_turn_is_that_of_the_method_alone():
    multi = make("fixmatch")
    for step in range(2):
        batch, domain = turn(step), list(TASKS)[step % 2]
        alone = copy.deepcopy(multi.of(domain))
        torch.manual_seed(7)
        expected = alone.step(batch, Progress(0, STEPS // 2, 1)).loss
        torch.manual_seed(7)
        (update,) = multi.updates(batch, Progress(step, STEPS, 2))
        assert torch.equal(update.output.loss, expected)


def test_each_domain_counts_its_own_steps():
    multi = make()
    total = Progress(0, 7, 4)
    seen = {name: [] for name in TASKS}
    for step in range(7):
        domain = list(TASKS)[step % 2]
        own = multi.progress_of(domain, dataclasses.replace(total, step=step))
        seen[domain].append(own.step)
        assert own.steps_per_epoch == 2
        assert own.total_steps == {"street": 4, "facade": 3}[domain]
    assert seen == {"street": [0, 1, 2, 3], "facade": [0, 1, 2]}


def test_own_batch_norm_shares_the_weights_but_not_the_statistics():
    multi = make(batch_norm="own")
    street, facade = (multi.of(name).student.encoder for name in TASKS)
    mine, theirs = dict(street.named_modules()), dict(facade.named_modules())
    norms = [name for name, part in mine.items() if isinstance(part, torch.nn.BatchNorm2d)]
    convolutions = [name for name, part in mine.items() if isinstance(part, torch.nn.Conv2d)]
    assert norms
    assert all(mine[name].weight is theirs[name].weight for name in convolutions)
    assert all(mine[name].weight is not theirs[name].weight for name in norms)
    train(multi, optimizer_of(multi), range(1))
    assert all(mine[name].num_batches_tracked == 1 for name in norms)
    assert all(theirs[name].num_batches_tracked == 0 for name in norms)


def test_logs_name_the_domain_and_its_classes():
    multi = make({"name": "cct", "heads": "lite"})
    logs = multi.step(turn(1), Progress(1, STEPS, 2)).logs
    assert {"loss_sup", "train/facade/loss_sup", "pseudo/facade/coverage", "pseudo/share/facade/door"} <= set(logs)
    assert all(value.ndim == 0 for value in logs.values())
    assert "pseudo/share/facade/road" not in logs


def test_a_batch_out_of_turn_is_refused():
    with pytest.raises(DataError, match=r"turn of domain 'facade'.*'street'"):
        make().step(turn(0), Progress(1, STEPS, 2))


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("fixmach", "Did you mean `fixmatch`"),
        ({"name": "fixmatch", "treshold": 0.9}, "Did you mean `threshold`"),
        ({"name": "fixmatch", "threshold": 2}, "less than or equal to 1"),
        ("multi_domain", "not itself"),
        ({"threshold": 0.9}, "needs a name"),
    ],
)
def test_a_wrapped_method_is_checked_like_any_other(method, text):
    with pytest.raises(ValueError, match=text):
        make(method)


def test_encoders_that_differ_cannot_be_shared():
    builders = {"street": tiny_builder(STREET), "facade": tiny_builder(FACADE, channels=4)}
    with pytest.raises(RecipeError, match="number of bands"):
        MultiDomain(TASKS, builders, method="supervised")


@pytest.mark.parametrize("name", [name for name in names("methods") if name != "multi_domain"])
def test_every_method_can_be_wrapped(name):
    if "segmentation" not in resolve("methods", name).tasks:
        pytest.skip("for other data")
    multi = make(name)
    train(multi, optimizer_of(multi), range(2))
    scores = {"val/miou": 0.5, "val/street/miou": 0.4, "val/facade/miou": 0.6}
    multi.after_evaluation(scores, Progress(2, STEPS, 2))
    assert all(bool(p.isfinite().all()) for p in multi.parameters())
