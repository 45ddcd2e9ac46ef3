"""The mean of the weights of the last part of a run, shipped where no validation chooses."""

from pathlib import Path
from typing import Any

import pytest
import torch

from halfmask.errors import DataError
from halfmask.infer.bundle import load_bundle
from halfmask.methods.fixmatch import FixMatch
from halfmask.run.checkpoint import open_predictors, read_checkpoint
from halfmask.run.fit import fit
from halfmask.run.loop.average import AverageLast, WeightAverage
from halfmask.run.own_loop import build_method
from tests.run.same import assert_same_run
from tests.run.tiny import failing_at, recipe, write_dataset

KEYS = ("run.average_last=0.5", "eval.ship=best")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "shapes")


@pytest.mark.parametrize(
    ("method", "keys"),
    [("supervised", ("data.val=none",)), ("supervised", ("run.precise_bn=8",)), ("fixmatch", ())],
    ids=["no image", "precise", "teacher"],
)
def test_the_mean_of_the_last_steps_is_shipped_and_the_training_goes_on_without_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, keys: tuple[str, ...]
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    take = AverageLast.on_train_batch_end

    def noted(self: AverageLast, trainer: Any, module: Any, *rest: Any) -> None:
        if module.step > 3:
            seen.append(
                {name: value.clone() for name, value in module.method.predictors()["student"].state_dict().items()}
            )
        take(self, trainer, module, *rest)

    monkeypatch.setattr(AverageLast, "on_train_batch_end", noted)
    fit(recipe(data, *KEYS, *keys, method=method), tmp_path / "run", quiet=True)
    shipped, log = load_bundle(tmp_path / "run"), (tmp_path / "run" / "log.txt").read_text()
    learned = method == "supervised"
    assert shipped.meta.get("averaged_steps") == (3 if learned else None)  # a teacher is an average already
    assert ("ship     student, the mean of its weights over the last 3 steps: " in log) == learned
    assert ("ship     teacher, its last weights: " in log) == (not learned)

    # The checkpoint holds the last step to go on from, and whatever is opened from it for use is the mean.
    last = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    networks = open_predictors(shipped, torch.device("cpu"))
    assert len(seen) == 3  # of six steps
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    name = next(name for name in seen[-1] if name.endswith("conv1.weight"))
    assert any(torch.equal(value, seen[-1][name]) for key, value in last["state_dict"].items() if key.endswith(name))
    for name, value in networks["student"].state_dict().items():
        if name.endswith(statistics[2]) or ("run.precise_bn=8" in keys and name.endswith(statistics)):
            continue
        expected = torch.stack([weights[name].double() for weights in seen]).mean(0)
        assert torch.allclose(value.double(), expected, atol=1e-6), name
    for name, value in shipped.model.state_dict().items():
        assert torch.equal(networks[shipped.meta["predictor"]].state_dict()[name], value), name


def test_a_resumed_run_ships_the_same_mean(data: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    asked = recipe(data, *KEYS)
    fit(asked, whole, quiet=True)
    with failing_at(FixMatch, 4, DataError("a file is gone")), pytest.raises(DataError, match="a file is gone"):
        fit(asked, parts, quiet=True)  # one of the three points is taken
    assert read_checkpoint(parts / "checkpoints" / "last.ckpt")["halfmask"]["average"]["count"] == 1
    fit(None, parts, resume=True, quiet=True)
    assert_same_run(whole, parts)


@pytest.mark.parametrize("rule", ["first", "best"])
def test_where_validation_chooses_nothing_is_averaged(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, rule: str
) -> None:
    many = write_dataset(tmp_path_factory.mktemp("many") / "shapes", 30, 25)
    fit(recipe(many, "run.average_last=0.5", f"eval.ship={rule}", "run.steps=2"), tmp_path / "run", quiet=True)
    assert "averaged_steps" not in load_bundle(tmp_path / "run").meta
    assert "average" not in read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["halfmask"]


def test_an_ensemble_of_networks_that_learn_and_each_of_them_is_averaged(data: Path, tmp_path: Path) -> None:
    asked = recipe(data, *KEYS, method="cps", ensemble=True)
    fit(asked, tmp_path / "run", quiet=True)
    assert load_bundle(tmp_path / "run").meta["averaged_steps"] == 3
    average = WeightAverage(0.5, 6)
    method = build_method(asked)
    average.take(method)
    assert [average.span_of(name) for name in ("mean", "net_a", "net_b", "net_c")] == [3, 3, 3, 0]
    again = WeightAverage(0.5, 6)
    again.load(average.state())
    assert again.span_of("net_b") == 3
    weights = sum(value.numel() for value in method.state_dict().values() if value.is_floating_point())
    assert sum(value.numel() for value in average.state()["mean"].values()) == weights  # each once


def test_teachers_that_learned_in_the_first_epochs_only_are_shipped_as_they_are(data: Path, tmp_path: Path) -> None:
    fit(recipe(data, *KEYS, method="ps_mt", warmup_epochs=0.5), tmp_path / "run", quiet=True)
    assert "averaged_steps" not in load_bundle(tmp_path / "run").meta
    mean = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["halfmask"]["average"]["mean"]
    assert {name.partition(".")[0] for name in mean} == {"student"}


def test_what_is_averaged_is_settled_at_the_first_point(data: Path) -> None:
    method, average = build_method(recipe(data, method="fixmatch")), WeightAverage(0.5, 6)
    student = method.predictors()["student"]
    average.take(method)
    names = list(average.state()["mean"])
    method.requires_grad_(False)
    average.take(method)
    assert list(average.state()["mean"]) == names
    before = {name: value.clone() for name, value in student.state_dict().items()}
    method.requires_grad_(True)
    with average.swapped_in(method):
        assert average.span_of("student") == 3
        assert average.span_of("teacher") == 0
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_points_are_few_and_the_last_step_is_one_of_them() -> None:
    for steps in (1, 7, 100, 1000, 8000):
        average = WeightAverage(0.25, steps)
        points = [step for step in range(1, steps + 1) if average.due(step)]
        assert points[-1] == steps
        assert len(points) <= 40
        assert points[0] > 0.7 * steps or steps < 7
