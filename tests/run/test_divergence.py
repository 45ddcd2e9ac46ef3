"""The first loss that is not finite ends a run, and the weights from before it are kept."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from halfmask.errors import DataError, DivergenceError
from halfmask.infer.bundle import load_bundle
from halfmask.methods.supervised import Supervised
from halfmask.report.pseudo import not_finite
from halfmask.report.records import read_run
from halfmask.run.checkpoint import read_checkpoint
from halfmask.run.fit import fit
from halfmask.run.loop.finite import FiniteGuard
from tests.run.kills import end, start
from tests.run.tiny import failing_at, recipe, write_dataset


class OneProcessFails(Supervised):
    """In step 5, the loss of the second process alone is not a number, and so are all gradients."""

    def step(self, batch: Any, progress: Any) -> Any:
        output = super().step(batch, progress)
        if progress.step == 4 and os.environ["RANK"] == "1":
            return output._replace(loss=output.loss * math.nan)
        return output


class OneProcessFailsInItsLoss(Supervised):
    """In step 5, the loss of the second process alone is infinite, and its gradient is that of any step."""

    def step(self, batch: Any, progress: Any) -> Any:
        output = super().step(batch, progress)
        if progress.step == 4 and os.environ["RANK"] == "1":
            return output._replace(loss=output.loss + math.inf)
        return output


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "shapes")


def weights(out: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(out / "checkpoints/last.ckpt")["state_dict"]


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@contextmanager
def loss_at(step: int, value: float, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The loss of a step becomes `value`, and poisons the running statistics as huge activations do."""
    whole = Supervised.step

    def poisoned(self: Any, batch: Any, progress: Any) -> Any:
        output = whole(self, batch, progress)
        if progress.step != step:
            return output
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.data.fill_(math.nan)
        return output._replace(loss=output.loss * value)

    with monkeypatch.context() as patch:
        patch.setattr(Supervised, "step", poisoned)
        yield


def test_a_learning_rate_out_of_range_stops_with_step_cause_and_cure(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    text = r"not finite in step [23] of 6\. Likely the learning rate is too high: optim\.lr=1e\+30.*optim\.lr=0\.001"
    with pytest.raises(DivergenceError, match=text) as caught:
        fit(recipe(data, "optim.lr=1e30", "optim.schedule=constant", method="supervised"), out, quiet=True)
    assert (caught.value.exit_code, caught.value.code) == (1, "H602")
    assert all(tensor.isfinite().all() for tensor in weights(out).values())
    assert all(parameter.isfinite().all() for parameter in load_bundle(out).model.state_dict().values())
    (alarm,) = not_finite(read_run(out))
    assert "not finite (H602)" in alarm
    assert all(math.isfinite(value) for record in records(out) for value in record.values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_and_statistics_are_those_from_before_the_step(
    value: float, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = recipe(data, "run.log_every=1", method="supervised")
    with failing_at(Supervised, 4, DataError("gone", "H201")), pytest.raises(DataError):
        fit(section, tmp_path / "whole", quiet=True)
    with loss_at(4, value, monkeypatch), pytest.raises(DivergenceError, match=r"step 5 of 6.*optim\.clip_norm=1"):
        fit(section, tmp_path / "run", quiet=True)
    kept, expected = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(kept[name], tensor) for name, tensor in expected.items())
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["halfmask"]["step"] == 4
    assert records(tmp_path / "run")[-1]["alarm/not_finite"] == 1
    with pytest.raises(DataError), failing_at(Supervised, 5, DataError("gone", "H201")):
        fit(None, tmp_path / "run", resume=True, quiet=True)  # the checkpoint can be continued
    assert not_finite(read_run(tmp_path / "run")) == []


def test_an_update_out_of_range_is_forbidden_though_its_loss_is_finite() -> None:
    layer = nn.BatchNorm1d(2)
    guard = FiniteGuard(layer)
    assert guard.bad_step() is None
    guard.begin(torch.device("cpu"))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    fine, loss = torch.ones(2), torch.tensor(0.5)
    layer.weight.grad, layer.bias.grad = fine, fine
    assert guard.allows(loss, optimizer, 0)
    layer.weight.grad = torch.tensor([1.0, math.nan])
    assert not guard.allows(loss, optimizer, 1)
    layer.weight.grad = fine
    assert not guard.allows(loss, optimizer, 2)  # and none after it
    assert guard.bad_step() == 1
    layer(torch.full((2, 2), math.inf))
    guard.restore_buffers()
    assert layer.running_mean.tolist() == [0, 0]
    guard.begin(torch.device("cpu"))
    optimizer.param_groups[0]["lr"] = 1e38  # the step would leave the range of float32
    assert not guard.allows(loss, optimizer, 3)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["OneProcessFails", "OneProcessFailsInItsLoss"])
def test_all_processes_stop_where_one_is_not_finite(method: str, data: Path, tmp_path: Path) -> None:
    made = recipe(
        data, "run.devices=2", "run.log_every=2", "data.batch.labeled=4", method=f"tests.run.test_divergence:{method}"
    )
    (tmp_path / "recipe.yaml").write_text(made.to_yaml())
    started = start(tmp_path, tmp_path / "run", 2)
    try:
        for process in started:
            process.join(120)
        assert [process.exitcode for process in started] == [1, 1], (tmp_path / "output.txt").read_text()[-3000:]
    finally:
        for process in started:
            end(process)
    assert (tmp_path / "output.txt").read_text().count(
        "DivergenceError: the loss or its gradient is not finite in step 5"
    ) == 2
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())
    assert records(tmp_path / "run")[-1]["alarm/not_finite"] == 1
    assert (tmp_path / "run/model.safetensors").is_file()
