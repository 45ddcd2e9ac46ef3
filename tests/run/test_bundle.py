"""Bundles: what is saved comes back, what is broken says so, and a failed write leaves the earlier file."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from halfmask import atomic
from halfmask.atomic import atomic_path, write_json
from halfmask.errors import CheckpointError, DataError
from halfmask.infer.bundle import load_bundle, save_bundle
from halfmask.recipe.read import EvalRecipe
from halfmask.task import Task
from tests.run.toy import THREE, random_window_model, small_model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    extra = {"step": 12, "eval": EvalRecipe(mode="slide").model_dump(mode="json")}
    save_bundle(tmp_path / "run", small_model(), THREE, extra=extra)
    return tmp_path / "run"


def edit(folder: Path, **changes: object) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", ["", "model.json", "model.safetensors"])
def test_a_bundle_comes_back_with_the_same_logits(tmp_path: Path, name: str) -> None:
    model, image = small_model(), torch.rand(2, 3, 40, 32)
    task = Task(
        "segmentation", ("a", "b", "c"), foreground=(False, True, True), palette=((0, 0, 0), (1, 2, 3), (9, 9, 9))
    )
    save_bundle(tmp_path, model, task, extra={"step": 7})
    bundle = load_bundle(tmp_path / name)
    assert torch.equal(bundle.model(image), model(image))
    assert not bundle.model.training
    assert bundle.task == task
    assert bundle.meta["step"] == 7
    assert bundle.crop == 64


def test_whoever_may_read_the_description_may_read_the_weights(saved: Path) -> None:
    (saved / "other.txt").touch()
    modes = {path.stat().st_mode for path in saved.iterdir()}
    assert len(modes) == 1, [f"{path.name} {path.stat().st_mode:o}" for path in saved.iterdir()]


def test_model_json_says_what_a_user_of_the_weights_must_know(saved: Path) -> None:
    meta = json.loads((saved / "model.json").read_text())
    assert meta["classes"] == list(THREE.classes)
    assert meta["bands"] == 3
    assert meta["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert meta["std"] == pytest.approx([0.229, 0.224, 0.225])
    assert meta["crop"] == 64
    assert meta["license"] is None
    assert load_bundle(saved).protocol == EvalRecipe(mode="slide")


def test_a_float64_model_stays_float64(tmp_path: Path) -> None:
    save_bundle(tmp_path, small_model().double(), THREE)
    assert load_bundle(tmp_path).model.mean.dtype == torch.float64


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    model = small_model()
    assert isinstance(model.decoder, torch.nn.Module)
    model.decoder.branches[1][0].weight = model.decoder.branches[2][0].weight
    save_bundle(tmp_path, model, THREE)
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(load_bundle(tmp_path).model(image), model(image))


def test_a_model_without_a_spec_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="create_model"):
        save_bundle(tmp_path, random_window_model(), THREE)


def test_missing_things_are_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_bundle(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="first validation"):
        load_bundle(tmp_path / "empty")
    with pytest.raises(CheckpointError, match=r"several models.*for example .*run"):
        load_bundle(tmp_path)
    (saved / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="copy both"):
        load_bundle(saved)


def test_another_format_is_refused(saved: Path) -> None:
    edit(saved, format_version=99)
    with pytest.raises(CheckpointError, match=r"format 99.*install that version"):
        load_bundle(saved)
    edit(saved, format="other")
    with pytest.raises(CheckpointError, match="not a halfmask bundle"):
        load_bundle(saved)
    (saved / "model.json").write_text("{")
    with pytest.raises(CheckpointError, match="JSON"):
        load_bundle(saved)


def test_an_incomplete_model_json_is_refused(saved: Path) -> None:
    edit(saved, model={"task": {}})
    with pytest.raises(CheckpointError, match="incomplete"):
        load_bundle(saved)
    meta = json.loads((saved / "model.json").read_text())
    del meta["task"]
    (saved / "model.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match="task are missing"):
        load_bundle(saved)


def test_a_model_that_cannot_be_built_here_keeps_the_code_of_the_reason(saved: Path) -> None:
    spec = json.loads((saved / "model.json").read_text())["model"]
    spec["model"]["encoder"] = {"name": "my_own"}
    edit(saved, model=spec)
    with pytest.raises(CheckpointError, match=r"cannot be built here.*no encoder 'my_own'") as caught:
        load_bundle(saved)
    assert caught.value.code == "H303"


def test_truncated_weights_are_refused(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut short"):
        load_bundle(saved)


def test_weights_of_another_bundle_are_refused(saved: Path, tmp_path: Path) -> None:
    other = small_model()
    torch.nn.init.normal_(other.classifier.weight)
    save_bundle(tmp_path / "other", other, THREE)
    (saved / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_bundle(saved)


def test_all_keys_that_do_not_fit_are_listed(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = load_file(saved / "model.safetensors")
    state["classifier.weight"] = torch.zeros(9, 8, 1, 1)
    state["stranger"] = state.pop("classifier.bias")
    save_file(state, saved / "model.safetensors")
    monkeypatch.setattr(
        "halfmask.infer.bundle.digest_of", lambda path: json.loads((saved / "model.json").read_text())["sha256"]
    )
    with pytest.raises(CheckpointError) as caught:
        load_bundle(saved)
    for part in ("missing: classifier.bias", "unexpected: stranger", "(9, 8, 1, 1) in the file, (3, 8, 1, 1)"):
        assert part in str(caught.value)


@pytest.mark.parametrize("fits", [0, 1])
def test_a_full_disk_leaves_the_earlier_bundle_intact(saved: Path, monkeypatch: pytest.MonkeyPatch, fits: int) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    flushed: list[int] = []

    def full_disk(handle: int) -> None:
        flushed.append(handle)
        if len(flushed) > fits:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", full_disk)
        with pytest.raises(CheckpointError, match=r"disk is full.*Free some space"):
            save_bundle(saved, small_model().double(), THREE)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    load_bundle(saved)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_what_torch_says_on_a_full_disk_is_understood(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="disk is full"), atomic_path(tmp_path / "last.ckpt"):
        torch.save(torch.zeros(300_000), "/dev/full")


def test_a_folder_without_permission_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="choose another one with --out"), atomic_path(tmp_path / "a", error=DataError):
        raise PermissionError(errno.EACCES, "denied")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"), atomic_path(tmp_path / "file" / "b"):
        pass


def test_other_exceptions_pass_and_leave_nothing(tmp_path: Path) -> None:
    def write_half() -> None:
        with atomic_path(tmp_path / "a") as part:
            part.write_text("half")
            raise KeyError("bug")

    with pytest.raises(KeyError):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_json_refuses_what_it_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"miou": float("nan")})
    assert not (tmp_path / "a.json").exists()
