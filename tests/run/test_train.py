"""Training runs end to end: files, resume, interruption, independence of workers and hidden masks."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from halfmask.errors import CheckpointError, DataError, HalfmaskError, Interrupted, RecipeError, ShapeError
from halfmask.infer.bundle import load_bundle
from halfmask.methods.fixmatch import FixMatch
from halfmask.recipe.sections import Entry
from halfmask.run import checkpoint as checkpoint_module
from halfmask.run.checkpoint import read_checkpoint
from halfmask.run.fit import fit
from halfmask.run.prepare import prepare
from halfmask.run.prepared import lengths
from tests.run.tiny import failing_at, recipe, write_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    fit(recipe(data), out, quiet=True)
    return out


def state(out: Path) -> dict[str, Any]:
    return read_checkpoint(out / "checkpoints" / "last.ckpt")


def assert_same_run(first: Path, second: Path) -> None:
    one, two = state(first), state(second)
    assert one["halfmask"]["step"] == two["halfmask"]["step"]
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for name, tensor in one["state_dict"].items():
        assert torch.equal(tensor, two["state_dict"][name]), name
    moments = zip(one["optimizer_states"], two["optimizer_states"], strict=True)
    for left, right in moments:
        for index, entry in left["state"].items():
            for key, value in entry.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(right["state"][index][key]))


def records(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("train/img_per_s", None)
    return lines


def test_a_run_leaves_the_documented_files(finished: Path) -> None:
    names = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    assert {
        "recipe.yaml",
        "environment.json",
        "split.json",
        "metrics.jsonl",
        "log.txt",
        "checkpoints/last.ckpt",
        "checkpoints/best-teacher.ckpt",
        "checkpoints/best-student.ckpt",
        "model.safetensors",
        "model.json",
    } <= names


def test_metrics_use_the_fields_names_and_one_value_per_class(finished: Path) -> None:
    lines = records(finished)
    assert [line["step"] for line in lines if "train/loss" in line] == [2, 4, 6]
    assert [line["step"] for line in lines if "val/miou" in line] == [3, 6]
    training = next(line for line in lines if "train/loss" in line)
    assert {
        "train/loss_sup",
        "train/loss_unsup",
        "train/lr",
        "pseudo/coverage",
        "pseudo/share/disc",
        "pseudo/coverage/disc",
    } <= set(training)
    validation = next(line for line in lines if "val/miou" in line)
    assert validation["val/miou"] == validation["teacher/val/miou"]
    assert "student/val/miou" in validation


def test_checkpoint_holds_no_code_and_both_networks(finished: Path) -> None:
    saved = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    names = set(saved["state_dict"])
    assert any(name.startswith("method.student.") for name in names)
    assert any(name.startswith("method.teacher.") for name in names)
    assert saved["halfmask"]["classes"] == ["background", "disc", "bar"]


def test_the_bundle_predicts_with_one_call(finished: Path) -> None:
    bundle = load_bundle(finished)
    logits = bundle.model(torch.rand(1, 3, 32, 40))
    assert logits.shape == (1, 3, 32, 40)
    assert bundle.task.classes == ("background", "disc", "bar")


@pytest.mark.parametrize("step", [2, 4])
def test_stopped_in_mid_epoch_and_resumed_equals_unbroken(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    after_update = FixMatch.after_update

    def stop(self: FixMatch, progress: Any) -> None:
        after_update(self, progress)
        if progress.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(FixMatch, "after_update", stop)
    with pytest.raises(Interrupted, match=rf"stopped at step {step} of 6 .*halfmask train --resume") as caught:
        fit(recipe(data), tmp_path / "run", quiet=True)
    assert caught.value.exit_code == 143
    monkeypatch.setattr(FixMatch, "after_update", after_update)
    assert state(tmp_path / "run")["halfmask"]["step"] == step
    fit(None, tmp_path / "run", resume=True, quiet=True)
    assert_same_run(finished, tmp_path / "run")


def during(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    """Do something when a step is done."""
    after_update = FixMatch.after_update

    def act(self: FixMatch, progress: Any) -> None:
        after_update(self, progress)
        if progress.step + 1 == step:
            action()

    monkeypatch.setattr(FixMatch, "after_update", act)


@pytest.mark.parametrize(
    ("stream", "workers"), [("images/shape_0", 0), ("images/shape_0", 1), ("images/shape_09.png", 1), ("val", 0)]
)
def test_a_file_that_breaks_while_training_ends_in_one_error_and_nothing_is_lost(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: str, workers: int
) -> None:
    mine, kept = tmp_path / "data", tmp_path / "kept"
    shutil.copytree(data, mine)
    val = json.loads((finished / "split.json").read_text())["val"]["ids"]
    hit = [mine / id for id in val] if stream == "val" else sorted(mine.glob(f"{stream}*"))
    hit = hit if stream != "images/shape_0" else [path for path in hit[:6] if f"images/{path.name}" not in val]

    def spoil() -> None:
        for path in hit:
            kept.mkdir(exist_ok=True)
            shutil.copy2(path, kept)
            path.write_bytes(path.read_bytes()[:200])

    with monkeypatch.context() as patch:
        during(patch, 2, spoil)
        with pytest.raises(DataError, match=r"png: cannot be decoded.*\n.*step \d is saved.*train --resume") as caught:
            fit(recipe(mine, f"data.workers={workers}"), tmp_path / "run", quiet=True)
    assert caught.value.code == "H201"
    assert "from its source.\n  Once an intact copy is in its place" in str(caught.value)  # not: or remove it
    assert any(path.name in str(caught.value) for path in hit)
    # How far the loader had read ahead decides the step; the message names the one that is saved, before the last.
    named = re.search(r"checkpoint of step (\d) is saved", str(caught.value))
    saved = state(tmp_path / "run")["halfmask"]["step"]
    assert named is not None
    assert saved == int(named[1])
    assert saved >= 1
    assert saved < 6
    for path in hit:
        shutil.copy2(kept / path.name, path)
    fit(None, tmp_path / "run", resume=True, quiet=True)
    assert_same_run(finished, tmp_path / "run")
    assert state(tmp_path / "run")["halfmask"]["best"] == state(finished)["halfmask"]["best"]
    validations = [[line for line in records(out) if "val/miou" in line] for out in (finished, tmp_path / "run")]
    assert validations[0] == validations[1]


def test_a_wish_to_stop_in_the_last_step_is_heard_and_the_run_is_whole(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during(monkeypatch, 6, lambda: os.kill(os.getpid(), signal.SIGINT))
    stopped = rf"after step 6 of 6 \(SIGINT\): {tmp_path / 'run'} is finished\.$"
    with pytest.raises(Interrupted, match=stopped) as caught:
        fit(recipe(data), tmp_path / "run", quiet=True)
    assert caught.value.result.steps == 6
    assert caught.value.result.best == state(finished)["halfmask"]["best"]
    assert_same_run(finished, tmp_path / "run")


def test_a_second_interrupt_stops_at_once_and_leaves_the_last_checkpoint(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)  # a test run in the background has none

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        during(patch, 5, twice)
        with pytest.raises(
            Interrupted, match=r"at once in step 5 of 6.*checkpoint of step 3 is saved.*--resume"
        ) as caught:
            fit(recipe(data), tmp_path / "run", quiet=True)
    assert (caught.value.exit_code, caught.value.result) == (130, None)
    assert signal.getsignal(signal.SIGINT) is before
    fit(None, tmp_path / "run", resume=True, quiet=True)
    assert_same_run(finished, tmp_path / "run")


def test_auto_precision_is_resolved_and_written_down(data: Path, tmp_path: Path) -> None:
    fit(recipe(data, "run.precision=auto", "run.steps=2", "data.val=none"), tmp_path / "run", quiet=True)
    text = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "precision: bf16-mixed  # auto: native on this device" in text or "precision: 32-true  # auto" in text
    assert all(value.dtype != torch.bfloat16 for value in state(tmp_path / "run")["state_dict"].values())


@pytest.mark.parametrize(
    ("encoder", "native", "precision"),
    [
        ({"name": "resnet", "depth": 18, "width": 8}, True, "bf16-mixed"),
        ({"name": "resnet", "depth": 18, "width": 8}, False, "32-true"),
        ({"name": "mit", "size": "b0"}, True, "bf16-mixed"),  # its depthwise convolutions are a seventh of the layers
        ({"name": "efficientnet_lite"}, True, "32-true"),
        ({"name": "timm", "model": "mobilenetv3_small_050"}, True, "32-true"),
    ],
)
def test_auto_precision_is_a_rule_by_device_and_network(data: Path, monkeypatch, encoder, native, precision) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    asked = recipe(data, "run.precision=auto", "run.accelerator=cpu")
    asked = asked.model_copy(update={"model": asked.model.model_copy(update={"encoder": Entry(**encoder)})})
    prepared = prepare(asked, look=False)
    assert prepared.recipe.run.precision == precision
    assert prepare(prepared.recipe, look=False).recipe == prepared.recipe  # as a resumed run finds it


def test_a_crash_loses_only_what_came_after_the_last_checkpoint(data: Path, finished: Path, tmp_path: Path) -> None:
    with failing_at(FixMatch, 5, RuntimeError("power cut")), pytest.raises(RuntimeError, match="power cut"):
        fit(recipe(data), tmp_path / "run", quiet=True)
    assert [line["step"] for line in records(tmp_path / "run")][-1] == 4
    fit(None, tmp_path / "run", resume=True, quiet=True)
    assert_same_run(finished, tmp_path / "run")
    # The record of step 4 is a mean over step 3, which is in the checkpoint, and step 4, which was done twice.
    assert records(tmp_path / "run") == records(finished)


def test_workers_do_not_change_the_run(data: Path, finished: Path, tmp_path: Path) -> None:
    fit(recipe(data, "data.workers=2"), tmp_path / "run", quiet=True)
    assert_same_run(finished, tmp_path / "run")


def test_deleting_the_masks_of_unlabeled_images_changes_nothing(data: Path, tmp_path: Path) -> None:
    with_masks, without = tmp_path / "with", tmp_path / "without"
    shutil.copytree(data, with_masks)
    (tmp_path / "labeled.txt").write_text("images/shape_00.png masks/shape_00.png\nimages/shape_03.png\n")
    settings = (f"data.labeled={tmp_path / 'labeled.txt'}", "data.val=none", "run.steps=3")
    fit(recipe(with_masks, *settings), tmp_path / "run_with", quiet=True)
    shutil.copytree(with_masks, without)
    for mask in (without / "masks").iterdir():
        if mask.stem not in {"shape_00", "shape_03"}:
            mask.unlink()
    fit(recipe(without, *settings), tmp_path / "run_without", quiet=True)
    assert_same_run(tmp_path / "run_with", tmp_path / "run_without")


def test_a_filled_folder_is_refused_and_overwrite_starts_anew(data: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"not empty.*--overwrite.*another --out"):
        fit(recipe(data), tmp_path, quiet=True)
    fit(recipe(data, "run.steps=1", "data.val=none", method="supervised"), tmp_path, overwrite=True, quiet=True)
    assert (tmp_path / "holiday.jpg").exists()


def test_a_finished_run_is_not_trained_again(finished: Path) -> None:
    before = state(finished)["halfmask"]
    result = fit(None, finished, resume=True, quiet=True)
    assert result.steps == 6
    assert state(finished)["halfmask"] == before


def test_a_limited_run_validates_as_often_as_the_whole_one(data: Path) -> None:
    made = recipe(data, "run.steps=1000", "run.epochs=null", "run.eval_every=null")
    assert lengths(made, 100, None) == (1000, 100)
    assert lengths(made, 100, 20) == (20, 100)  # once, at its end


def test_a_limited_run_keeps_its_limit_when_resumed(data: Path, tmp_path: Path) -> None:
    fit(recipe(data, "data.val=none"), tmp_path / "run", limit=2, quiet=True)
    assert fit(None, tmp_path / "run", resume=True, quiet=True).steps == 2


def test_dry_run_checks_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    fit(recipe(data), tmp_path / "run", dry_run=True, quiet=True)
    assert not (tmp_path / "run").exists()


def test_full_disk_while_saving_keeps_the_earlier_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_save, calls = torch.save, []

    def full(content: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if Path(path).name.startswith(".last") and (calls.append(path) or len(calls) == 2):
            Path(path).write_bytes(b"half of a checkp")
            raise OSError(28, "No space left on device")
        real_save(content, path, *args, **kwargs)

    monkeypatch.setattr(checkpoint_module.torch, "save", full)
    with pytest.raises(CheckpointError, match=r"disk is full.*Free some space"):
        fit(recipe(data), tmp_path / "run", quiet=True)
    assert state(tmp_path / "run")["halfmask"]["step"] == 3
    assert not list((tmp_path / "run" / "checkpoints").glob(".last*"))


@pytest.mark.parametrize(
    ("overrides", "error", "cure"),
    [
        (["run.devices=2", "data.batch.labeled=3"], RecipeError, r"cannot be divided by 2\. Use 2 or 4"),
        (["data.batch.labeled=1"], RecipeError, r"batch normalization.*Raise data\.batch\.labeled"),
        (
            ["data.batch.unlabeled=1", "method.teacher=student"],
            RecipeError,
            r"batch norm.*Raise data\.batch\.unlabeled to 2",
        ),
        (
            ["data.batch.unlabeled=2", "run.devices=2"],
            RecipeError,
            r"1 \w+ image per device.*data\.batch\.labeled to 4",
        ),
        (["data.drop_last=false", "data.batch.labeled=4"], RecipeError, r"batch of 1.*Use data\.drop_last=true"),
        (
            ["data.drop_last=false", "data.batch={labeled: 5, unlabeled: 3}"],
            RecipeError,
            r"4 unlabeled images with a batch of 1.*divides 4",
        ),
        (
            ["method={name: u2pl}", "data.batch.unlabeled=1"],
            RecipeError,
            r"u2pl pairs the images of a batch.*at least 2 on each device.*Raise data\.batch\.unlabeled to 2",
        ),
        (["run.steps=null"], RecipeError, r"run\.steps=4000"),
        (
            ["model.encoder={name: dinov2, size: small}", "model.decoder={name: dpt}", "data.crop=32"],
            ShapeError,
            r"Use data\.crop=28 or 42",
        ),
        (["data.root=/nowhere/at/all"], DataError, r"/nowhere/at/all"),
    ],
)
def test_misfits_are_found_before_training(
    data: Path, tmp_path: Path, overrides: list[str], error: type[HalfmaskError], cure: str
) -> None:
    with pytest.raises(error, match=cure):
        fit(recipe(data, *overrides), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_resuming_with_another_class_count_names_both(data: Path, finished: Path, tmp_path: Path) -> None:
    other, run = tmp_path / "other", tmp_path / "run"
    shutil.copytree(data, other)
    shutil.copytree(finished, run)
    (other / "classes.txt").write_text("background\ndisc\nbar\nring\n")
    with pytest.raises(CheckpointError, match=r"trained for 3 classes.*data has 4.*new run with another --out"):
        fit(None, run, resume=True, overrides=(f"data.root={other}",), quiet=True)


def test_resuming_with_other_lists_is_refused(data: Path, finished: Path, tmp_path: Path) -> None:
    other, run = tmp_path / "other", tmp_path / "run"
    shutil.copytree(data, other)
    shutil.copytree(finished, run)
    Image.new("RGB", (56, 48)).save(other / "images" / "shape_99.png")
    (other / "images" / "shape_08.png").unlink()
    says = r"unlabeled list differs.*\n  unlabeled: 1 missing \(images/shape_08\.png\), 1 new \(images/shape_99\.png\)"
    with pytest.raises(CheckpointError, match=says):
        fit(None, run, resume=True, overrides=(f"data.root={other}",), quiet=True)


def test_a_resumed_run_keeps_its_recipe(finished: Path) -> None:
    with pytest.raises(RecipeError, match=r"optim\.lr=1 would change its result"):
        fit(None, finished, resume=True, overrides=("optim.lr=1",), quiet=True)


def test_resume_needs_a_checkpoint(data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a run folder"):
        fit(None, tmp_path, resume=True, quiet=True)
