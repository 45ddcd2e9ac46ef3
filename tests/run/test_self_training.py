"""Self-training in three stages by the command line: kept checkpoints, lists and masks, and a run killed everywhere."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from halfmask.cli.app import app
from halfmask.data.splits.weak import load_weak
from halfmask.errors import DataError, RecipeError
from halfmask.infer.bundle import load_bundle
from halfmask.method import Stage
from halfmask.recipe.read import load
from halfmask.recipe.sections import WeakRecipe
from halfmask.run import fit, stages
from halfmask.run.checkpoint import read_checkpoint
from halfmask.run.folder import RunDir
from halfmask.run.loop.callbacks import KeepCheckpoints
from halfmask.run.own_loop import build_method
from halfmask.run.stages import FinishedStage, finish_stage
from tests.run.self_training import SelfTraining
from tests.run.tiny import recipe, write_dataset

STAGES = ("first", "reliable", "all")


class Killed(BaseException):
    """What nothing handles, like a power cut."""


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="halfmask")
    assert result.exit_code == 0, result.output
    return result.output


@contextmanager
def killed_in(place: Any, name: str, call: int, *, after: bool = False) -> Iterator[None]:
    """Within the block, a function dies in its n-th call: before its work, or after it."""
    whole, calls = getattr(place, name), 0

    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise Killed
        result = whole(*arguments, **options)
        if calls == call:
            raise Killed
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, dying)
        yield


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("self")
    data = write_dataset(folder / "data")
    (folder / "recipe.yaml").write_text(recipe(data, method="tests.run.self_training:SelfTraining").to_yaml())
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def finished(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    run("train", file, "--out", out, "--quiet")
    return out


def test_each_stage_learns_what_the_ones_before_wrote(finished: Path) -> None:
    first = finished / "first"
    kept = sorted(path.name for path in (first / "checkpoints").glob("kept-*"))
    assert kept == ["kept-2.ckpt", "kept-4.ckpt"]  # and last.ckpt, of step 6
    assert "optimizer_states" not in read_checkpoint(first / "checkpoints/kept-2.ckpt")
    reliable, rest = ((first / f"{name}.txt").read_text().split() for name in ("reliable", "rest"))
    assert sorted(reliable + rest) == [f"images/shape_{number:02d}.png" for number in range(6, 10)]
    split = json.loads((finished / "reliable" / "split.json").read_text())
    assert split["unlabeled"]["ids"] == reliable
    assert json.loads((finished / "all" / "split.json").read_text())["unlabeled"]["count"] == 4
    masks = load(finished / "all" / "recipe.yaml").data.weak.masks
    assert masks == [str(first / "masks"), str(finished / "reliable" / "masks")]
    for folder, ids in zip(masks, (reliable, rest), strict=True):
        assert sorted(path.stem for path in Path(folder).rglob("*.png")) == sorted(Path(id).stem for id in ids)
    assert "train/loss_unsup" in (finished / "all" / "metrics.jsonl").read_text()


def test_networks_are_fresh_in_every_stage_and_masks_are_the_best_predictors(finished: Path, file: Path) -> None:
    data = Path(load(file).data.root or "")
    id = (finished / "first/reliable.txt").read_text().split()[0]
    pixels = np.asarray(Image.open(data / id).convert("RGB"))
    image = torch.from_numpy(pixels.copy()).movedim(-1, 0)[None].float() / 255
    with torch.no_grad():
        expected = load_bundle(finished / "first").model(image).argmax(1)[0].numpy()
    assert np.array_equal(np.asarray(Image.open(finished / "first/masks" / id)), expected)
    made = load(finished / "reliable" / "recipe.yaml")
    torch.manual_seed(made.run.seed)
    start, end, before = (
        dict(model.named_parameters())["classifier.weight"]
        for model in (
            build_method(made).predictors()["student"],
            load_bundle(finished / "reliable").model,
            load_bundle(finished / "first").model,
        )
    )
    assert (end - start).abs().max() < 0.02 < (end - before).abs().max()  # a few steps from its own first weights


def test_a_run_killed_everywhere_ends_like_an_unbroken_one(finished: Path, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    deaths = [
        (KeepCheckpoints, "on_train_batch_end", 3, False),  # step 3: kept-2 is there, no last.ckpt
        (FinishedStage, "_labeled", 2, False),  # one mask is written
        (stages, "write_json", 1, False),  # all masks are; that `after` returned is not recorded
        (stages, "finish_stage", 1, True),  # between two stages
        (fit, "prepare", 3, False),  # before the last stage begins
    ]
    command: tuple[object, ...] = ("train", file, "--out", out, "--quiet")
    for place, name, call, after in deaths:
        with killed_in(place, name, call, after=after), pytest.raises(Killed):
            run(*command)
        command = ("train", "--resume", out, "--quiet")
    run(*command)
    for stage in STAGES:
        assert load_bundle(out / stage).meta["sha256"] == load_bundle(finished / stage).meta["sha256"]
    written = sorted(path.relative_to(finished) for path in finished.rglob("*") if path.suffix in {".png", ".txt"})
    assert len(written) >= 6
    for path in written:
        if path.name != "log.txt":
            assert (out / path).read_bytes() == (finished / path).read_bytes()
    assert not list(out.rglob("*.part"))


def test_the_command_line_uses_the_last_stage(finished: Path, tmp_path: Path) -> None:
    run("predict", finished, "--input", finished / "first/masks", "--out", tmp_path / "out", "--quiet")
    assert json.loads(run("evaluate", finished, "--json", "--quiet"))
    assert (finished / "all" / "metrics.json").is_file()


def test_one_stage_alone_is_not_resumed(finished: Path) -> None:
    result = CliRunner().invoke(app, ["train", "--resume", str(finished / "reliable")], prog_name="halfmask")
    assert result.exit_code == 2
    assert f"--resume {finished}" in " ".join(result.stderr.split())


def test_overwriting_removes_all_stages_first_and_a_limit_is_kept(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run("train", file, "--out", out, "--quiet", "--limit", 2)
    stray = out / "all" / "mine.txt"
    stray.write_text("mine")
    with killed_in(SelfTraining, "step", 1), pytest.raises(Killed):
        run("train", file, "--out", out, "--quiet", "--overwrite", "--limit", 1)
    assert not (out / "all" / "checkpoints").exists()  # else the old result would seem to be this run's
    assert stray.exists()
    run("train", "--resume", out, "--quiet")
    steps = [read_checkpoint(out / name / "checkpoints/last.ckpt")["halfmask"]["step"] for name in STAGES]
    assert steps == [1, 1, 1]


def finish(finished: Path, tmp_path: Path, after: Any) -> None:
    """Call another `after` for a copy of the first stage."""
    folder = tmp_path / "first"
    folder.mkdir()
    for name in ("recipe.yaml", "model.json", "model.safetensors"):
        (folder / name).write_bytes((finished / "first" / name).read_bytes())
    finish_stage(RunDir(tmp_path), Stage("first", after=after), {})


@pytest.mark.parametrize(
    ("after", "kind", "text"),
    [
        (lambda stage: {"masks": stage.folder / "gone"}, DataError, "nothing is there"),
        (lambda stage: stage.write_list("none", []), DataError, "would be empty"),
        (lambda stage: stage.place("checkpoints"), RecipeError, "plain name"),
        (lambda stage: stage.place("../up"), RecipeError, "plain name"),
        (
            lambda stage: stage.write_masks("m", stage.split.unlabeled, lambda id, image: image[0].long()[:3]),
            DataError,
            "one class per pixel",
        ),
        (
            lambda stage: stage.write_masks("m", stage.split.unlabeled, lambda id, image: image[0].long() * 0 + 7),
            DataError,
            "holds 7",
        ),
        (
            lambda stage: stage.write_masks("m", stage.split.unlabeled, lambda id, image: image[0].long() * 0 + 255),
            DataError,
            "ignored pixels only.*Lower the threshold",
        ),
    ],
)
def test_what_a_stage_writes_is_checked(finished: Path, tmp_path: Path, after: Any, kind: Any, text: str) -> None:
    with pytest.raises(kind, match=text):
        finish(finished, tmp_path, after)


def test_images_too_large_for_their_probabilities_are_labeled_in_tiles(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = FinishedStage(RunDir(finished / "first", root=finished), {})
    model, image = stage.predictor(), stage.image(stage.split.unlabeled[0])
    views = {"scales": (0.5, 1.0), "flip": True}
    whole = stage.class_map(model, image, **views)
    assert torch.equal(whole.long(), stage.probabilities(model, image, **views).argmax(0))
    monkeypatch.setattr(stages, "_WHOLE_BYTES", 4 * model.classes * image[0].numel() - 1)  # at the scale 1
    assert torch.equal(stage.class_map(model, image, **views), whole)  # in a single tile
    monkeypatch.setattr(stages, "tiled_class_map", lambda *given: torch.full(image.shape[1:], 7))
    assert (stage.class_map(model, image, **views) == 7).all()
    assert stage.class_map(model, image, scales=(0.5,)).shape == image.shape[1:]  # a smaller map, taken whole


def test_images_that_differ_in_their_suffix_only_get_masks_of_their_own(
    finished: Path, file: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(str(load(file).data.root), tmp_path / "data")
    (data / "unlabeled").mkdir()
    for name in ("a.jpg", "a.png", "b.png"):
        Image.fromarray(np.zeros((48, 56, 3), np.uint8)).save(data / "unlabeled" / name)
    finish(finished, tmp_path, None)
    made = tmp_path / "first/recipe.yaml"
    made.write_text(load(made, {"data.root": str(data)}).to_yaml())
    ids = ["unlabeled/a.jpg", "unlabeled/a.png", "unlabeled/b.png"]
    classes = dict(zip(ids, (0, 1, 2), strict=True))
    stage = FinishedStage(RunDir(tmp_path / "first", root=tmp_path), {})
    folder = stage.write_masks("masks", ids[1:], lambda id, image: image[0].long() * 0 + classes[id])
    second = stage.write_masks("more", ids[:1], lambda id, image: image[0].long() * 0 + classes[id])
    weak = load_weak(WeakRecipe(masks=[str(folder), str(second)]), stage.unlabeled, stage.dataset.task, ids)
    assert weak.masks is not None
    assert {id: int(weak.masks.read(id, (48, 56)).max()) for id in ids} == classes
    (folder / "unlabeled/a.png.png").rename(folder / "unlabeled/a.png")
    (second / "unlabeled/a.jpg.png").unlink()
    with pytest.raises(DataError, match=r"unlabeled/a\.png: unlabeled/a\.jpg, unlabeled/a\.png"):
        load_weak(WeakRecipe(masks=[str(folder), str(second)]), stage.unlabeled, stage.dataset.task, ids)


def test_two_stages_of_one_name_are_refused(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SelfTraining, "plan", classmethod(lambda cls, recipe: [Stage("a"), Stage("a")]))
    with pytest.raises(RecipeError, match="a name of its own"):
        fit.fit(load(file), tmp_path / "run", quiet=True)
