"""After a crash of the machine: damaged checkpoints, half-written files, and in the end the unbroken run."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from halfmask.errors import CheckpointError
from halfmask.run import checkpoint
from halfmask.run.checkpoint import read_checkpoint
from halfmask.run.fit import fit
from halfmask.run.folder import RunDir
from halfmask.run.loop.module import LogSums
from halfmask.run.loop.validation import TaskExaminer
from tests.run.kills import kill_and_resume
from tests.run.same import assert_same_run
from tests.run.tiny import recipe, write_dataset

MEANS = "run.log_every=4"  # means that reach over the validation and the checkpoint of step 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    fit(recipe(data, MEANS), out, quiet=True)
    return out


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path: Path) -> None:
    """Change one bit in the middle, which is one of a tensor; without a checksum the file would open."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [empty, cut, flip, Path.unlink])
def test_a_damaged_last_checkpoint_falls_back_to_the_newest_intact_one(
    finished: Path, tmp_path: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(shutil.copytree(finished, tmp_path / "run"))
    for path in run.checkpoints.glob("best-*.ckpt"):
        path.unlink()
    damage(run.last)
    fit(None, run.path, resume=True, quiet=True)
    says = capsys.readouterr().err
    assert ("last.ckpt is missing" if damage is Path.unlink else "last.ckpt is damaged") in says
    assert "going on from previous.ckpt, the newest intact checkpoint, of step 3" in says
    assert "going on from previous.ckpt" in run.log.read_text()
    assert_same_run(finished, run.path, best=False)
    assert read_checkpoint(run.previous)["halfmask"]["step"] == 3  # not the damaged file


def test_the_newest_intact_checkpoint_may_be_that_of_the_best_validation(finished: Path, tmp_path: Path) -> None:
    run = RunDir(shutil.copytree(finished, tmp_path / "run"))
    best = max(run.checkpoints.glob("best-*.ckpt"), key=lambda path: read_checkpoint(path)["halfmask"]["step"])
    for path in run.saved():
        if path != best:
            empty(path)
    fit(None, run.path, resume=True, quiet=True)
    assert_same_run(finished, run.path, best=False)


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_intact_checkpoints_the_newest_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: int
) -> None:
    steps = {"best-student.ckpt": 2, "best-teacher.ckpt": 5, "previous.ckpt": 4}

    def read(path: Path) -> dict[str, Any]:
        if path.name not in steps:
            raise CheckpointError(f"{path} is damaged", "H402")
        return {"halfmask": {"step": steps[path.name]}}

    monkeypatch.setattr(checkpoint, "read_checkpoint", read)
    monkeypatch.setattr(RunDir, "saved", lambda run: [run.checkpoints / name for name in [*steps][::order]])
    point = checkpoint.resume_point(RunDir(tmp_path))
    assert point.checkpoint.name == "best-teacher.ckpt"
    assert point.note.endswith("the newest intact checkpoint, of step 5.")


def test_with_no_intact_checkpoint_the_last_one_is_named(finished: Path, tmp_path: Path) -> None:
    run = RunDir(shutil.copytree(finished, tmp_path / "run"))
    for path in run.saved():
        empty(path)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: cannot be opened \(0 bytes\).*damaged") as caught:
        fit(None, run.path, resume=True, quiet=True)
    assert caught.value.code == "H402"


class PowerCut(BaseException):
    """Nothing handles it."""


def cut_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, *, before: bool = False) -> None:
    """End the process, as far as a test can, in the given call of a function, before or after what it does."""
    whole, calls = getattr(owner, name), []

    def cut(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if before and len(calls) == call:
            raise PowerCut
        result = whole(*arguments, **options)
        if len(calls) == call:
            raise PowerCut
        return result

    monkeypatch.setattr(owner, name, cut)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (TaskExaminer, "ship", 1),  # the bundle is of step 3, no checkpoint is yet
        (RunDir, "append_metrics", 1),  # the record of the validation, likewise
        (RunDir, "append_metrics", 3),  # that of step 6; the checkpoint is of step 3
        (RunDir, "flush_records", 2),
        (RunDir, "copy_best", 1),  # all is written
    ],
)
def test_a_run_that_dies_between_two_writes_is_the_unbroken_one_in_the_end(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int
) -> None:
    made, run = recipe(data, MEANS), RunDir(tmp_path / "run")
    with monkeypatch.context() as patch:
        cut_at(patch, owner, name, call)
        with pytest.raises(PowerCut):
            fit(made, run.path, quiet=True)
    if run.saved():
        fit(None, run.path, resume=True, quiet=True)
    else:
        fit(made, run.path, overwrite=True, quiet=True)
    assert_same_run(finished, run.path)


def test_copies_of_the_best_step_that_were_not_made_are_made_by_the_resumed_run(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "run")
    with monkeypatch.context() as patch:
        cut_at(patch, RunDir, "copy_best", 1, before=True)
        with pytest.raises(PowerCut):
            fit(recipe(data, MEANS), run.path, quiet=True)
    assert [path.name for path in run.saved()] == ["last.ckpt"]
    leftover = run.checkpoints / ".last.1.part.ckpt"
    leftover.write_bytes(b"half of a checkpoint")
    fit(None, run.path, resume=True, quiet=True)
    assert_same_run(finished, run.path)
    assert not leftover.exists()


def test_sums_of_two_processes_go_on_in_one() -> None:
    saved = []
    for rank in range(2):
        sums = LogSums()
        sums.add({"loss": torch.tensor(1.0 + rank), "pseudo/share": torch.tensor([float("nan"), rank])})
        saved += sums.state()
    ranks = [LogSums() for _ in range(2)]
    for rank, sums in enumerate(ranks):
        sums.load(saved, rank, 2)
    assert [sums.read()["loss"] for sums in ranks] == [[1.0], [2.0]]
    alone = LogSums()
    alone.load(saved, 0, 1)
    alone.add({"loss": torch.tensor(6.0)})
    means = alone.read()
    assert means["loss"] == [3.0]
    assert means["pseudo/share"][1] == 0.5
    other = LogSums()
    other.load(saved, 2, 3)
    assert other.read() == {}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_goes_on_to_the_same_end(tmp_path: Path, processes: int) -> None:
    tally = kill_and_resume(2, tmp_path, processes=processes, seed=5)
    assert tally.kills == 2
    assert not tally.differences, "\n".join(tally.differences)
