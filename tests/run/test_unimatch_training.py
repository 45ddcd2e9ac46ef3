"""UniMatch V2 and V1 through the engine: runs, bad input before training, and the warning of a silent threshold."""

import json
from pathlib import Path
from typing import Any

import pytest

from halfmask.errors import HalfmaskError, RecipeError, ShapeError
from halfmask.run.checkpoint import read_checkpoint
from halfmask.run.fit import fit
from halfmask.run.loop import callbacks
from tests.run.tiny import recipe, write_dataset

DINO = (
    "model={encoder: {name: dinov2, dim: 12, heads: 2}, decoder: {name: dpt, features: 8, projections: [8, 8, 8, 8]}}",
    "data.crop=28",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "shapes")


def last_record(out: Path, key: str) -> dict[str, Any]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if key in line][-1]


def test_unimatch_v2_trains_and_logs_its_confidence(data: Path, tmp_path: Path) -> None:
    fit(recipe(data, *DINO, method="unimatch_v2", threshold=0.3), tmp_path / "run", quiet=True)
    record = last_record(tmp_path / "run", "train/loss")
    shares = [value for name, value in record.items() if name.startswith("pseudo/confidence_range/")]
    assert len(shares) == 7
    assert sum(shares) == pytest.approx(1)
    assert 0 < record["pseudo/coverage"] <= 1
    assert {"teacher/val/miou", "student/val/miou"} <= last_record(tmp_path / "run", "val/miou").keys()


def test_unimatch_trains_and_logs_its_terms(data: Path, tmp_path: Path) -> None:
    fit(recipe(data, method="unimatch", threshold=0.3), tmp_path / "run", quiet=True)
    record = last_record(tmp_path / "run", "train/loss")
    assert record["train/loss_unsup"] == pytest.approx(
        (record["train/loss_strong"] + record["train/loss_features"]) / 2
    )


def test_a_frozen_encoder_is_saved_as_it_began(data: Path, tmp_path: Path) -> None:
    weights = []
    for steps in (1, 4):
        run = recipe(
            data, *DINO, "model.encoder.frozen=true", f"run.steps={steps}", method="unimatch_v2", threshold=0.0
        )
        fit(run, tmp_path / str(steps), quiet=True)
        checkpoint = read_checkpoint(tmp_path / str(steps) / "checkpoints" / "last.ckpt")
        weights.append(checkpoint["state_dict"])
        assert [group["name"] for group in checkpoint["optimizer_states"][0]["param_groups"]] == ["decoder"]
    name = "method.student.encoder.net.blocks.0.attn.qkv.weight"
    assert (weights[0][name] == weights[1][name]).all()
    assert (weights[0]["method.student.classifier.weight"] != weights[1]["method.student.classifier.weight"]).any()


@pytest.mark.parametrize(
    ("overrides", "error", "cure"),
    [
        (("data.batch.unlabeled=1",), RecipeError, r"unimatch_v2 pairs .* data\.batch\.unlabeled to 2"),
        (
            ("data.batch.unlabeled=2", "run.devices=2", "data.batch.labeled=4"),
            RecipeError,
            r"data\.batch\.unlabeled to 4",
        ),
        (("data.crop=30",), ShapeError, r"needs multiples of 14\. Use data\.crop=28 or 42"),
        (
            ("model.encoder={name: timm, model: test_vit, out_indices: [1]}", "data.crop=32"),
            RecipeError,
            "four maps",
        ),
    ],
)
def test_bad_input_is_found_before_training(
    data: Path,
    tmp_path: Path,
    overrides: tuple[str, ...],
    error: type[HalfmaskError],
    cure: str,
) -> None:
    with pytest.raises(error, match=cure):
        fit(recipe(data, *DINO, *overrides, method="unimatch_v2"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_batches_of_one_are_refused_together_with_every_reason(data: Path, tmp_path: Path) -> None:
    ones = ("data.batch.labeled=1", "data.batch.unlabeled=1")
    with pytest.raises(RecipeError) as caught:
        fit(recipe(data, *ones, method="unimatch_v2", dropout_at="classifier"), tmp_path / "run", quiet=True)
    labeled, unlabeled = str(caught.value).splitlines()
    assert "data.batch.labeled=1 gives 1 labeled image per device: this model has batch normalization" in labeled
    assert "pairs" not in labeled
    assert "batch normalization" in unlabeled
    assert "pairs the images of a batch (mixing partners, complementary dropout) and needs at least 2" in unlabeled


def test_one_unlabeled_image_is_enough_where_nothing_is_paired(data: Path, tmp_path: Path) -> None:
    one = (*DINO, "data.batch.unlabeled=1", "run.steps=1")
    fit(recipe(data, *one, method="unimatch_v2", dropout="none", cutmix=0.0), tmp_path / "v2", quiet=True)
    fit(recipe(data, *one, method="unimatch"), tmp_path / "v1", quiet=True)
    with pytest.raises(RecipeError, match=r"data\.batch\.unlabeled to 2"):
        fit(recipe(data, *one, method="unimatch", cutmix_partner="flip"), tmp_path / "flip", quiet=True)


def test_a_threshold_that_nothing_passes_is_warned_about_once_with_the_histogram(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "_SILENT_STEPS", 5)
    overrides = ("run.steps=14", "run.log_every=2", "run.eval_every=14")
    fit(recipe(data, *DINO, *overrides, method="unimatch_v2", threshold=1.0), tmp_path / "run", quiet=True)
    text = (tmp_path / "run" / "log.txt").read_text()
    assert text.count("no pseudo-label has passed method.threshold for 6 steps") == 1
    (warning,) = [line for line in text.splitlines() if "has passed" in line]
    assert "Pixels by confidence: 0.00-0.50: " in warning
    assert "Use a lower method.threshold" in warning
    control = (*DINO, *overrides[1:], "run.steps=8", "method.unlabeled_weight=0")  # learns nothing from them
    fit(recipe(data, *control, method="unimatch_v2", threshold=1.0), tmp_path / "control", quiet=True)
    assert "has passed" not in (tmp_path / "control" / "log.txt").read_text()


def test_a_threshold_that_is_passed_is_not_warned_about(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "_SILENT_STEPS", 5)
    overrides = ("run.steps=10", "run.log_every=2", "run.eval_every=10")
    fit(recipe(data, *DINO, *overrides, method="unimatch_v2", threshold=0.3), tmp_path / "run", quiet=True)
    assert "has passed" not in (tmp_path / "run" / "log.txt").read_text()
