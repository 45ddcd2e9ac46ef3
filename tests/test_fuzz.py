"""Damaged files of every kind: an error that halfmask foresees, or the right result; never a crash, never a hang."""

import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from halfmask.data.check.check import check
from halfmask.data.convert.convert import convert
from halfmask.data.splits.split import open_dataset, resolve_split
from halfmask.errors import HalfmaskError
from halfmask.infer.evaluate import evaluate
from halfmask.infer.export import export
from halfmask.infer.predict.predict import predict
from halfmask.recipe.read import load
from halfmask.report.make import report
from halfmask.run.train import train
from tests.fuzz import Damager
from tests.run.kills import SETTINGS
from tests.run.tiny import recipe, write_dataset

SECTIONS = {
    "method": {"name": "fixmatch"},
    "model": {"encoder": {"name": "resnet"}, "decoder": {"name": "segformer"}},
    "data": {"crop": 32, "labeled": "labeled.txt", "val": "val.txt"},
}
LISTS = ("data.labeled=labeled.txt", "data.val=val.txt")
NAMES = "classes: {0: background, 1: disc, 2: bar}\npalette: {0: [0, 0, 0], 1: [255, 0, 0], 2: [0, 0, 255]}\n"


@contextmanager
def no_hang(what: str) -> Iterator[None]:
    """End what takes a minute, which is a hundred times what it should."""

    def late(*_: Any) -> None:
        raise AssertionError(f"{what}: still not finished")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def crash(what: str, action: Callable[[], object]) -> list[str]:
    """Do something to damaged files; return the crash, if there is one."""
    with no_hang(what):
        try:
            action()
        except HalfmaskError as error:
            return [] if error.code and len(str(error)) < 20_000 else [f"{what}: no code, or no message but a file"]
        except AssertionError as error:
            return [f"{what}: {error}"]
        except Exception as error:
            return [f"{what}: {type(error).__name__}: {error}"[:300]]
    return []


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and masks of several formats, lists, and halfmask.yaml."""
    root = write_dataset(tmp_path_factory.mktemp("fuzz") / "data", images=8, masks=6, size=(40, 36))
    for number, suffix in enumerate((".jpg", ".bmp", ".tif", ".webp")):
        path = root / "images" / f"shape_{number:02d}.png"
        Image.open(path).save(path.with_suffix(suffix))
        path.unlink()
    (root / "classes.txt").unlink()
    (root / "halfmask.yaml").write_text(NAMES)
    (root / "labeled.txt").write_text(
        "images/shape_00.jpg masks/shape_00.png\nimages/shape_01.bmp\nimages/shape_04.png\n"
    )
    (root / "val.txt").write_text("images/shape_02.tif\nimages/shape_05.png\n")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps, evaluated, beside its data."""
    root = tmp_path_factory.mktemp("fuzz")
    made = recipe(write_dataset(root / "data", images=8, masks=6, size=(40, 36)), *SETTINGS, "run.steps=2")
    train(made, root / "run", quiet=True)
    evaluate(root / "run", device="cpu", quiet=True)
    return root / "run"


def read(root: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Read all that a training would: images and masks by id."""
    section = load({**SECTIONS, "data": {**SECTIONS["data"], "root": str(root)}}).data
    dataset = open_dataset(section)
    split = resolve_split(section, dataset)
    images = {id: dataset.read_image(id) for id in (*split.labeled, *split.unlabeled, *split.val)}
    return images, {id: dataset.read_target(id) for id in (*split.labeled, *split.val)}


def check_reading(root: Path, damaged: Path, whole: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]) -> None:
    """Check that what is read is what was there; of the damaged file, what another reader sees in it."""
    images, masks = read(root)
    for id, image in images.items():
        assert root / id == damaged or np.array_equal(image, whole[0][id]), f"another image than before: {id}"
    for id, mask in masks.items():
        if id in whole[1] and not np.array_equal(mask, whole[1][id]):
            assert damaged.parent.name == "masks", f"another mask than before: {id}"
            assert np.array_equal(mask, np.array(Image.open(damaged))), f"another mask than Pillow reads: {id}"


@pytest.mark.parametrize("seed", range(4))
def test_damaged_data_is_an_error_or_read_rightly(data: Path, tmp_path: Path, seed: int) -> None:
    whole, damager = read(data), Damager(seed)
    found = []
    for number in range(40):
        root = shutil.copytree(data, tmp_path / str(number))
        files = sorted(path for path in root.rglob("*") if path.is_file())
        files += [root / name for name in ("halfmask.yaml", "labeled.txt", "val.txt")] * 4
        path = damager.random.choice(files)
        what = f"seed {seed}, {number}: {path.relative_to(root)} {damager.damage(path)}"
        found += crash(what, lambda root=root, path=path: check_reading(root, path, whole))
        if number % 4 == 0:
            found += crash(f"{what}, check", lambda root=root: check(root, overrides=LISTS, workers=1))
        if number % 4 == 1:
            out = tmp_path / f"out{number}"
            found += crash(f"{what}, convert", lambda root=root, out=out: convert(root, out, to="color", quiet=True))
        shutil.rmtree(root)
    assert not found, "\n".join(found)


def commands(run: Path, images: Path, out: Path) -> dict[str, Callable[[], object]]:
    return {
        "evaluate": lambda: evaluate(run, device="cpu", quiet=True),
        "predict": lambda: predict(run, images, out, device="cpu", quiet=True, limit=1),
        "export": lambda: export(run, out, format="torch", images=1),
        "report": lambda: report(run, device="cpu", quiet=True, limit=2),
        "resume": lambda: train(None, run, resume=True, quiet=True),
        "recipe": lambda: load(run / "recipe.yaml"),
    }


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_run_is_an_error_or_used_rightly(run: Path, tmp_path: Path, seed: int) -> None:
    damager, found = Damager(100 + seed), []
    names = ["model.json", "recipe.yaml"] * 4 + ["split.json", "environment.json", "metrics.jsonl", "log.txt"]
    names += ["model.safetensors", "checkpoints/last.ckpt"]
    for number in range(20):
        copy, out = shutil.copytree(run, tmp_path / str(number)), tmp_path / f"out{number}"
        path = copy / damager.random.choice(names)
        what = f"seed {seed}, {number}: {path.relative_to(copy)} {damager.damage(path)}"
        command = damager.random.choice(("evaluate", "evaluate", "predict", "predict", "recipe", "report", "resume"))
        found += crash(f"{what}, {command}", commands(copy, run.parent / "data" / "images", out)[command])
        shutil.rmtree(copy)
    assert not found, "\n".join(found)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "bytes": lambda content: bytes(range(128, 256)),
}
# Which files which command reads; one that it does not read cannot hurt it.
READ = {
    "evaluate": ("recipe.yaml", "split.json", "model.json", "model.safetensors"),
    "predict": ("recipe.yaml", "split.json", "model.json", "model.safetensors"),
    "export": ("model.json", "model.safetensors"),
    "report": ("recipe.yaml", "split.json", "model.json", "environment.json"),
}


@pytest.mark.parametrize("command", READ)
def test_each_damaged_file_that_a_command_reads_is_named_in_one_error(run: Path, tmp_path: Path, command: str) -> None:
    for name in READ[command]:
        for kind, damage in DAMAGES.items():
            copy = shutil.copytree(run, tmp_path / f"{name}-{kind}")
            (copy / name).write_bytes(damage((copy / name).read_bytes()))
            with pytest.raises(HalfmaskError) as caught:
                commands(copy, run.parent / "data" / "images", tmp_path / f"out-{name}-{kind}")[command]()
            assert name in str(caught.value), (name, kind)
            assert caught.value.code in {"H402", "H403", "H304"}, (name, kind)


@pytest.fixture(scope="module")
def results(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of predictions: masks, overlays, probabilities, and what is written beside."""
    out = tmp_path_factory.mktemp("results") / "out"
    predict(run, run.parent / "data" / "images", out, device="cpu", quiet=True, limit=2, overlay=True)
    return out


def test_damaged_results_are_an_error_or_used_rightly(run: Path, results: Path, tmp_path: Path) -> None:
    images, found = run.parent / "data" / "images", []
    names = sorted(path.relative_to(results) for path in results.rglob("*") if path.is_file())
    assert {"halfmask.yaml", "predict.json", "written.sha256"} <= {name.name for name in names}
    for name in names:
        for kind, damage in DAMAGES.items():
            copy, out = shutil.copytree(results, tmp_path / f"{name.name}-{kind}"), tmp_path / f"to-{name.name}-{kind}"
            (copy / name).write_bytes(damage((copy / name).read_bytes()))
            before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
            what = f"{name} {kind}"
            found += crash(f"{what}, convert", lambda copy=copy, out=out: convert(copy, out, to="color", quiet=True))
            again = commands(run, images, copy)["predict"]
            found += crash(f"{what}, predict", again)
            if name.suffix == ".png" and (copy / name).read_bytes() != before[copy / name]:
                found.append(f"{what}, predict: replaced a file that was changed")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", ["stages.json", "first/artifacts.json", "first/recipe.yaml", "first/metrics.jsonl"])
def test_damaged_records_of_stages_are_an_error_or_used_rightly(name: str, run: Path, tmp_path: Path) -> None:
    found = []
    for kind, damage in DAMAGES.items():
        staged = tmp_path / kind
        shutil.copytree(run, staged / "first")
        (staged / "recipe.yaml").write_bytes((run / "recipe.yaml").read_bytes())
        (staged / "stages.json").write_text('["first"]')
        (staged / "first/artifacts.json").write_text('{"written": ["masks"], "artifacts": {"masks": "first/masks"}}')
        (staged / name).write_bytes(damage((staged / name).read_bytes()))
        for command, action in commands(staged, run.parent / "data" / "images", tmp_path / f"out-{kind}").items():
            found += crash(f"{name} {kind}, {command}", action)
    assert not found, "\n".join(found)
