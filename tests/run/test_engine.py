"""What the engine promises a method, step by step: draws, clipping, rates, and which validation is the best."""

import itertools
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from halfmask.batch import Batch, Progress
from halfmask.errors import DataError
from halfmask.infer.bundle import load_bundle
from halfmask.method import Method, ModelBuilder, ParamGroup, StepOutput
from halfmask.methods.fixmatch import FixMatch
from halfmask.recipe.read import OptimRecipe, Recipe
from halfmask.run.checkpoint import open_predictors, read_checkpoint
from halfmask.run.fit import fit
from halfmask.run.folder import RunDir
from halfmask.run.loop.module import LitMethod
from halfmask.run.loop.optim import make_optimizers, rate_factor
from halfmask.run.loop.shipping import doubtful_statistics
from halfmask.run.loop.validation import CleanStatistics, Examination, TaskExaminer
from halfmask.run.prepare import prepare
from halfmask.run.prepared import clean_statistics, loader_maker
from halfmask.task import Task
from halfmask.testing.tiny import tiny_builder, tiny_task
from halfmask.views.mixing import box_mask
from halfmask.views.strong import StrongAugment
from tests.run.tiny import failing_at, recipe, write_dataset

NETWORK = (
    "model.encoder={name: 'halfmask.testing.tiny:TinyEncoder'}",
    "model.decoder={name: 'halfmask.testing.tiny:TinyDecoder'}",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "shapes")


class Watched(Method):
    """A loss of known gradient on the network's classifier; notes what each step draws and where the weights are."""

    draws = 0
    drawn: ClassVar[list[dict[str, Tensor]]] = []
    places: ClassVar[list[Tensor]] = []

    def __init__(self, task: Task, build: ModelBuilder, *, slope: float = 1.0) -> None:
        super().__init__(task)
        self.net = build()
        self.strong, self.dropout, self.slope = StrongAugment(), nn.Dropout(0.5), slope
        type(self).drawn, type(self).places = [], [self.place()]

    def place(self) -> Tensor:
        return self.net.classifier.weight.detach().flatten().clone()

    def step(self, batch: Batch, progress: Progress) -> StepOutput:
        still = torch.linspace(0, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)  # the same image in every step
        self.drawn.append(
            {
                "box": box_mask((4, 32, 32), p=1.0).float(),
                "color": self.strong(still),
                "dropout": self.dropout(still),
            }
        )
        # The gradient is `slope` at each weight, so its norm is slope * sqrt(number of weights).
        return StepOutput(self.slope * self.net.classifier.weight.sum(), {})

    def parameter_groups(self) -> dict[str, list[ParamGroup]]:
        return {"main": [ParamGroup("decoder", [self.net.classifier.weight])]}

    def after_update(self, progress: Progress) -> None:
        self.places.append(self.place())


def watched(data: Path, out: Path, *extra: str, slope: float = 1.0) -> list[float]:
    """Train `Watched` by plain SGD at rate 1 and return how far each step went."""
    plain = ("optim={name: sgd, lr: 1, momentum: 0, weight_decay: 0, schedule: constant}", "data.val=none")
    fit(recipe(data, *NETWORK, *plain, *extra, method=f"{__name__}:Watched", slope=slope), out, quiet=True)
    return [float((new - old).norm()) for old, new in itertools.pairwise(Watched.places)]


def test_successive_steps_draw_other_boxes_colors_and_dropout(data: Path, tmp_path: Path) -> None:
    watched(data, tmp_path / "one", "run.steps=4")
    first = Watched.drawn
    assert len(first) == 4
    for name in ("box", "color", "dropout"):
        for one, other in itertools.combinations(range(4), 2):
            assert not torch.equal(first[one][name], first[other][name]), (name, one, other)
    watched(data, tmp_path / "again", "run.steps=4")
    assert all(torch.equal(a[name], b[name]) for a, b in zip(first, Watched.drawn, strict=True) for name in a)
    watched(data, tmp_path / "other", "run.steps=1", "run.seed=1")
    assert all(not torch.equal(first[0][name], Watched.drawn[0][name]) for name in first[0])


@pytest.mark.parametrize(("slope", "clip", "expected"), [(50.0, 0.3, 0.3), (1e-3, 0.3, None), (50.0, None, None)])
def test_clipping_bounds_the_update(
    data: Path, tmp_path: Path, slope: float, clip: float | None, expected: float | None
) -> None:
    clipped = () if clip is None else (f"optim.clip_norm={clip}",)
    moved = watched(data, tmp_path / "run", "run.steps=2", *clipped, slope=slope)
    free = slope * len(Watched.places[0]) ** 0.5
    assert moved == pytest.approx([free if expected is None else expected] * 2, rel=1e-3)


@pytest.mark.parametrize("norms", [True, False])
def test_weight_decay_leaves_out_norms_and_biases_and_nothing_else(norms: bool) -> None:
    class Plain(Method):
        def __init__(self, task: Task, build: ModelBuilder) -> None:
            super().__init__(task)
            self.net = build()
            self.matrix = nn.Linear(3, 2)  # of two dimensions, which no convolution has

    method = Plain(tiny_task(), tiny_builder(tiny_task()))
    optim = OptimRecipe(weight_decay=0.3, decay_norm_bias=norms)
    (made,) = make_optimizers(method, optim, 1e-3).values()
    decay = {id(p): group["weight_decay"] for group in made.param_groups for p in group["params"]}
    assert len(decay) == sum(1 for _ in method.parameters())
    flat = [name for name, p in method.named_parameters() if p.ndim <= 1]
    assert len(flat) > 10
    for name, parameter in method.named_parameters():
        assert decay[id(parameter)] == (0.3 if norms or parameter.ndim > 1 else 0.0), name


@pytest.mark.parametrize("lag", [0, 1])
def test_a_lagging_schedule_stays_one_step_behind(lag: int) -> None:
    optim = OptimRecipe(schedule="poly", power=0.9, schedule_lag=lag)
    factors = [rate_factor(step, 10, optim) for step in range(10)]
    formula = [(1 - step / 10) ** 0.9 for step in range(10)]
    assert factors == pytest.approx([1.0, *formula[:-1]] if lag else formula)


def test_every_step_runs_at_its_rate_and_the_decoder_at_a_multiple(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[dict[str, float]] = []
    whole = torch.optim.SGD.step

    def noted(self: torch.optim.SGD, *arguments: Any, **options: Any) -> Any:
        rates.append({group["name"]: group["lr"] for group in self.param_groups})
        return whole(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    keys = ("optim={name: sgd, lr: 0.01, decoder_lr_scale: 10, schedule: poly, power: 0.9, schedule_lag: 1}",)
    fit(
        recipe(data, *NETWORK, *keys, "run.steps=4", "data.val=none", method="supervised"), tmp_path / "run", quiet=True
    )
    expected = [0.01 * (1 - t / 4) ** 0.9 for t in (0, 0, 1, 2)]
    assert [rate["encoder"] for rate in rates] == pytest.approx(expected)
    assert [rate["decoder"] for rate in rates] == pytest.approx([10 * rate for rate in expected])


@pytest.mark.parametrize(
    ("scores", "best"),
    [((0.2, 0.5, 0.3), 2), ((0.5, 0.5, 0.3), 1), ((0.2, 0.3, 0.5), 3)],  # of equal ones the first, as published
    ids=["second", "tie", "last"],
)
def test_the_best_checkpoint_is_that_of_the_first_highest_score(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: tuple[float, ...], best: int
) -> None:
    def scripted(self: TaskExaminer, module: object, rank: int, world: int) -> Examination:
        score = scores[module.step - 1]  # type: ignore[attr-defined]
        return Examination({"val/miou": score}, {"student": score})

    monkeypatch.setattr(TaskExaminer, "examine", scripted)
    made: Recipe = recipe(data, *NETWORK, "run.steps=3", "run.eval_every=1", method="supervised")
    result = fit(made, tmp_path / "run", quiet=True)
    assert result.best == {"student": scores[best - 1]}
    kept = read_checkpoint(tmp_path / "run" / "checkpoints" / "best-student.ckpt")["halfmask"]
    assert (kept["step"], kept["best"]) == (best, {"student": scores[best - 1]})
    last = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["halfmask"]
    assert (last["step"], last["best"]) == (3, {"student": scores[best - 1]})


def test_clean_statistics_are_evaluated_and_shipped_and_the_training_goes_on_without_them(
    data: Path, tmp_path: Path
) -> None:
    plain, clean = tmp_path / "plain", tmp_path / "clean"
    fit(recipe(data), plain, quiet=True)
    fit(recipe(data, "run.precise_bn=8"), clean, quiet=True)
    states = [read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (plain, clean)]
    assert all(torch.equal(value, states[1]["state_dict"][name]) for name, value in states[0]["state_dict"].items())
    kept = states[1]["halfmask"]["statistics"]
    assert set(kept) == {"teacher", "student"}

    best = read_checkpoint(RunDir(clean).best("teacher"))
    shipped, of_training = load_bundle(clean).model, load_bundle(plain).model
    for name, value in best["halfmask"]["statistics"]["teacher"].items():
        assert torch.equal(shipped.get_buffer(name), value)
        assert not torch.equal(of_training.get_buffer(name), value)
    # What is loaded from the checkpoint scores as it did in the run.
    networks = open_predictors(load_bundle(clean), torch.device("cpu"))
    for name, value in shipped.state_dict().items():
        assert torch.equal(networks["teacher"].state_dict()[name], value)


def test_a_run_with_clean_statistics_resumes_to_the_same_result(data: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    asked = recipe(data, "run.precise_bn=8")
    fit(asked, whole, quiet=True)
    with failing_at(FixMatch, 4, DataError("a file is gone")), pytest.raises(DataError, match="a file is gone"):
        fit(asked, parts, quiet=True)
    fit(None, parts, resume=True, quiet=True)
    first, second = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (whole, parts))
    assert first["halfmask"]["best"] == second["halfmask"]["best"]
    for name, value in first["halfmask"]["statistics"]["teacher"].items():
        assert torch.equal(value, second["halfmask"]["statistics"]["teacher"][name])
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()


def test_statistics_that_describe_other_images_are_told(data: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CleanStatistics, "agreement", lambda *_: {"teacher": 0.97, "student": 0.4})
        fit(recipe(data, "run.steps=2"), tmp_path / "run", quiet=True)
    text = (tmp_path / "run" / "log.txt").read_text()
    assert "[H604]" in text
    assert "only so many pixels keep their class: student 40%. So the predictions may be poor" in text
    assert "97%" not in text
    plain = recipe(data).model_dump(mode="json")
    assert not doubtful_statistics({"teacher": 0.97}, plain)
    # Passes apart are a cure with DeepLabV3+, and cost accuracy with the head that plans take.
    assert "run.passes=apart" not in text
    deeplab = plain | {"model": plain["model"] | {"decoder": {"name": "deeplabv3plus"}}}
    assert "run.passes=apart" in doubtful_statistics({"teacher": 0.4}, deeplab)
    assert "run.precise_bn=64" in text
    precise = plain | {"run": plain["run"] | {"precise_bn": 8}}
    assert "precise_bn" not in doubtful_statistics({"teacher": 0.4}, precise)


def test_agreement_is_that_of_the_classes_with_both_statistics(data: Path, tmp_path: Path) -> None:
    made = prepare(recipe(data, "run.precise_bn=8"))
    clean, method = clean_statistics(made), made.method
    assert clean is not None
    module = LitMethod(
        method, made.recipe.optim, lr=1e-3, total_steps=6, steps_per_epoch=2, seed=0, meta={},
        make_loader=loader_maker(made, tmp_path),
    )  # fmt: skip
    norms = [part for net in method.predictors().values() for part in net.modules() if isinstance(part, nn.BatchNorm2d)]
    for net in method.predictors().values():
        torch.nn.init.zeros_(net.classifier.bias)  # else it decides alone
        torch.nn.init.normal_(net.classifier.weight)
    with clean.swapped_in(module, 0, 1):  # the averages are what clean images give: nothing changes
        assert clean.agreement(module, 0, 1) == {"teacher": 1.0, "student": 1.0}
    for norm in norms:
        norm.running_mean.copy_(torch.linspace(-1, 1, len(norm.running_mean)))
    before = [norm.running_mean.clone() for norm in norms]
    assert min(clean.agreement(module, 0, 1).values()) < 1
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))
