"""Which network is shipped: the rule, the bundle that follows from it, and what is said of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from halfmask.errors import CheckpointError, RecipeError
from halfmask.infer.bundle import load_bundle
from halfmask.infer.evaluate import evaluate
from halfmask.infer.metrics import ConfusionMatrix
from halfmask.methods.fixmatch import FixMatch
from halfmask.run.checkpoint import open_predictors, read_checkpoint
from halfmask.run.fit import fit
from halfmask.run.loop import shipping
from halfmask.run.loop.validation import Examination, TaskExaminer, only_class
from halfmask.run.predictor import bundle_of
from tests.run.tiny import recipe, write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "shapes")


def found(teacher: float, student: float, *one_class: str) -> Examination:
    return Examination({}, {"teacher": teacher, "student": student}, dict.fromkeys(one_class, "background"))


@pytest.mark.parametrize(
    ("rule", "now", "best", "images", "expected"),
    [
        ("first", found(0.4, 0.9), {}, 40, ("teacher", True, False)),
        ("first", found(0.4, 0.9), {"teacher": 0.4, "student": 0.1}, 40, ("teacher", False, False)),
        ("best", found(0.4, 0.9), {}, 5, ("student", True, False)),
        ("best", found(0.9, 0.9), {}, 5, ("teacher", True, False)),
        ("best", found(0.6, 0.7), {"teacher": 0.5, "student": 0.8}, 5, ("student", False, False)),
        ("best", found(0.9, 0.7), {"teacher": 0.5, "student": 0.8}, 5, ("teacher", True, False)),
        ("best", found(0.4, 0.9), {"teacher": 0.5, "student": 0.8}, 4, ("teacher", True, True)),
        ("best", found(0.4, 0.9, "teacher"), {}, 1, ("student", True, True)),
        ("best", found(0.4, 0.4, "teacher", "student"), {}, 1, ("teacher", True, True)),
    ],
)
def test_the_rule(rule: Any, now: Examination, best: dict[str, float], images: int, expected: tuple[Any, ...]) -> None:
    assert tuple(shipping.choose(rule, now, best, images)) == expected


def test_a_single_class_is_noticed_where_the_masks_show_several() -> None:
    names = ("background", "disc", "bar")

    def scores(prediction: list[int], target: list[int]) -> Any:
        matrix = ConfusionMatrix(3)
        matrix.update(torch.tensor(prediction), torch.tensor(target))
        return matrix.scores(names)

    assert only_class(scores([0, 0, 0], [0, 1, 2])) == "background"
    assert only_class(scores([2, 2, 2], [0, 1, 2])) == "bar"
    assert only_class(scores([0, 0, 1], [0, 1, 2])) is None
    assert only_class(scores([0, 0, 0], [0, 0, 0])) is None  # it is right


# Of three validations: the teacher is background everywhere in the first two.
SCORES = ({"teacher": 0.1, "student": 0.6}, {"teacher": 0.2, "student": 0.9}, {"teacher": 0.5, "student": 0.7})


@pytest.mark.parametrize(
    ("rule", "images", "shipped", "step", "score"),
    [("first", 9, "teacher", 3, 0.5), ("best", 9, "student", 2, 0.9), ("best", 1, "teacher", 3, 0.5)],
)
def test_the_bundle_is_of_the_network_and_the_step_of_the_rule(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rule: str,
    images: int,
    shipped: str,
    step: int,
    score: float,
) -> None:
    def scripted(self: TaskExaminer, module: Any, rank: int, world: int) -> Examination:
        self.images = images
        main = SCORES[module.step - 1]
        values = {f"{name}/val/miou": value for name, value in main.items()} | {"val/miou": main["teacher"]}
        return Examination(values, main, {"teacher": "background"} if module.step < 3 else {})

    monkeypatch.setattr(TaskExaminer, "examine", scripted)
    made = recipe(data, "run.steps=3", "run.eval_every=1", f"eval.ship={rule}")
    out = tmp_path / "run"
    first = TaskExaminer.__init__

    def counted(self: TaskExaminer, task: Any, evaluate: Any, count: int) -> None:
        first(self, task, evaluate, images)

    monkeypatch.setattr(TaskExaminer, "__init__", counted)
    result = fit(made, out, quiet=True)
    last = "teacher, its last weights: 1 validation image cannot tell which step is best"
    assert result.shipped == (last if images == 1 else "")
    bundle = load_bundle(out)
    assert (bundle.meta["predictor"], bundle.meta["step"], bundle.meta["val_miou"]) == (shipped, step, score)
    # The checkpoint of the shipped one is of the same step and weights, whatever a report or `--resume-from` reads.
    assert read_checkpoint(out / "checkpoints" / f"best-{shipped}.ckpt")["halfmask"]["step"] == step
    networks = open_predictors(bundle, torch.device("cpu"))
    assert next(iter(networks)) == shipped
    ours, theirs = networks[shipped].state_dict(), bundle.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    curve = [record["val/miou"] for record in records if "val/miou" in record]
    assert score in curve
    assert (max(curve) == score) or images < shipping.FEW_IMAGES
    log = (out / "log.txt").read_text()
    own = "ship     teacher, at its best validation, as eval.ship=first has it: 50.0%, student 90.0%"
    assert (own in log) == (rule == "first")
    assert ("ship     student, by validation: 90.0% at best, teacher 50.0%" in log) == (shipped == "student")
    assert ("1 validation image cannot tell which step is best" in log) == (images == 1)


def test_a_network_that_learned_nothing_is_warned_about(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, param in (("bias", [9.0, 0.0, 0.0]), ("spread", [0.0, 0.0, 0.0])):
        whole = FixMatch.__init__

        def biased(self: Any, *args: Any, _whole: Any = whole, _bias: list[float] = param, **params: Any) -> None:
            _whole(self, *args, **params)
            for model in self.predictors().values():
                model.classifier.bias.data = torch.tensor(_bias)

        with monkeypatch.context() as patch:
            patch.setattr(FixMatch, "__init__", biased)
            made = recipe(data, "run.steps=1", "optim.lr=1e-9", "eval.ship=best")
            fit(made, tmp_path / name, quiet=True)
        warned = "[H603]" in (tmp_path / name / "log.txt").read_text()
        assert warned == ("[H603]" in capsys.readouterr().err)  # also when quiet
        alone = only_class(evaluate(tmp_path / name, quiet=True, write=False, device="cpu"))
        assert warned == (alone is not None)
        assert name == "spread" or alone == "background"


def test_any_predictor_is_evaluated_and_used_by_name_or_by_its_checkpoint(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(recipe(data, "run.steps=4", "run.eval_every=2"), out, quiet=True)
    best = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert bundle_of(out) == out
    assert bundle_of(out, "teacher") == out  # it is shipped
    student = bundle_of(out, "student")
    assert student == out / "predictors" / "student"
    assert bundle_of(out / "checkpoints" / "best-student.ckpt") == student
    meta = load_bundle(student).meta
    about = read_checkpoint(out / "checkpoints" / "best-student.ckpt")["halfmask"]
    assert (meta["predictor"], meta["step"]) == ("student", about["best_steps"]["student"])
    # Its protocol, data and validation images are those of the run.
    scores = evaluate(student, quiet=True, write=False, device="cpu")
    assert scores.miou == pytest.approx(about["best"]["student"])
    last = bundle_of(out / "checkpoints" / "last.ckpt", "student")
    assert evaluate(last, quiet=True, write=False, device="cpu").miou == pytest.approx(best["student/val/miou"])
    before = (student / "model.json").stat().st_mtime_ns
    assert bundle_of(out, "student") == student
    assert (student / "model.json").stat().st_mtime_ns == before
    with pytest.raises(RecipeError, match=r"no predictor 'studnet'.*student"):
        bundle_of(out, "studnet")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        bundle_of(out / "checkpoints" / "best-nobody.ckpt")
    fit(recipe(data, "run.steps=2"), out, quiet=True, overwrite=True)
    assert not (out / "predictors").exists()
