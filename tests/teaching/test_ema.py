"""Teachers: what is averaged, what is copied, and what nobody can change by accident."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from halfmask.errors import CheckpointError
from halfmask.models.model import eval_mode
from halfmask.teaching import ema
from halfmask.teaching.ema import ema_copy
from tests.oracles.ema import ema_update


class Net(nn.Module):
    """Batch norm (float and integer buffers), an index table, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.register_buffer("table", torch.arange(5))
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.layers(x).mean((2, 3))))


def _moved(net: Net, steps: int = 3) -> Net:
    """Other weights and running statistics, as after some training."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
        for _ in range(steps):
            net.train()(torch.randn(2, 3, 4, 4))
        net.table.add_(10)
    return net


@pytest.mark.parametrize("lerp", ["foreach", "loop"])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.996, 1.0])
def test_update_equals_the_plain_loop(monkeypatch, lerp, decay):
    if lerp == "loop":
        monkeypatch.setattr(ema, "_FOREACH_LERP", None)
    student = Net()
    teacher, plain = ema_copy(student), copy.deepcopy(student)
    _moved(student)
    teacher.update(student, decay)
    # The plain loop meets the tied weight twice.
    ema_update(plain.layers, student.layers, decay)
    ema_update(plain.first, student.first, decay)
    plain.table.copy_(student.table)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(teacher.model.state_dict()[key], value, msg=key)


def test_decay_zero_copies_exactly():
    student = _moved(Net())
    teacher = ema_copy(Net())
    teacher.update(student, 0.0)
    for key, value in student.state_dict().items():
        assert torch.equal(teacher.model.state_dict()[key], value), key


def test_integers_are_copied_not_averaged():
    student = Net()
    teacher = ema_copy(student)
    _moved(student, steps=3)
    teacher.update(student, 0.9)
    assert teacher.model.table.tolist() == [10, 11, 12, 13, 14]
    assert teacher.model.layers[1].num_batches_tracked.item() == 3


@pytest.mark.parametrize("rule", ["ema", "copy", "own"])
def test_running_statistics_follow_the_rule(rule):
    student = Net()
    teacher = ema_copy(student, buffers=rule)
    before = teacher.model.layers[1].running_mean.clone()
    _moved(student)
    teacher.update(student, 0.75)
    ours, theirs = teacher.model.layers[1].running_mean, student.layers[1].running_mean
    expected = {"ema": 0.75 * before + 0.25 * theirs, "copy": theirs, "own": before}[rule]
    torch.testing.assert_close(ours, expected)


def test_training_mode_reaches_only_a_teacher_with_its_own_statistics():
    trainer = nn.ModuleDict({"student": Net()})
    for rule in ("ema", "copy", "own"):
        trainer[rule] = ema_copy(trainer["student"], buffers=rule)
    trainer.train()
    for rule in ("ema", "copy"):
        assert not any(part.training for part in trainer[rule].modules())
    assert all(part.training for part in trainer["own"].modules())
    before = trainer["ema"].model.layers[1].running_mean.clone()
    trainer["ema"](torch.randn(2, 3, 4, 4))
    assert torch.equal(trainer["ema"].model.layers[1].running_mean, before)


def test_parameters_need_no_gradient_and_keep_that():
    student = Net()
    teacher = ema_copy(student)
    assert all(parameter.requires_grad for parameter in student.parameters())
    teacher.update(student, 0.5)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher(torch.randn(1, 3, 2, 2)).requires_grad


def test_teacher_travels_through_a_state_dict_and_a_copy():
    student = _moved(Net())
    teacher, fresh = ema_copy(student), ema_copy(Net())
    teacher.update(student, 0.5)
    file = io.BytesIO()
    torch.save(teacher.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), teacher.state_dict().values(), strict=True)
    )

    twin, before = copy.deepcopy(teacher), copy.deepcopy(teacher.state_dict())
    twin.update(Net(), 0.0)
    assert all(torch.equal(a, b) for a, b in zip(teacher.state_dict().values(), before.values(), strict=True))


def test_update_follows_tensors_that_a_conversion_replaced():
    # `.double()` puts new buffers in place of the old ones, after the pairs were remembered.
    student = Net()
    teacher = ema_copy(student)
    teacher.update(student, 0.5)
    student.double()
    teacher.double()
    _moved_double = student.layers[1].running_mean
    _moved_double.fill_(2.0)
    teacher.update(student, 0.5)
    assert teacher.model.layers[1].running_mean.tolist() == [1.0] * 4


def test_another_architecture_is_refused():
    with pytest.raises(CheckpointError, match=r"ema_copy\(student\)"):
        ema_copy(Net()).update(nn.Linear(2, 2), 0.5)


def test_eval_mode_gives_every_part_its_mode_back_even_after_an_error():
    net = Net().train()
    net.layers[1].eval()  # frozen batch norm
    modes = [part.training for part in net.modules()]

    def fail() -> None:
        with eval_mode(net):
            assert not any(part.training for part in net.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [part.training for part in net.modules()] == modes


def test_eval_mode_leaves_batch_statistics_alone():
    net = Net().train()
    before = net.layers[1].running_mean.clone()
    with eval_mode(net), torch.no_grad():
        first, second = net(torch.ones(2, 3, 4, 4)), net(torch.ones(2, 3, 4, 4))
    assert torch.equal(first, second)  # no dropout either
    assert torch.equal(net.layers[1].running_mean, before)
