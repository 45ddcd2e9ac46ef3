"""A few runs of some steps each, shared by all tests of reports."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfmask.run.fit import fit
from tests.run import tiny

QUICK = ("run.steps=4", "run.eval_every=2", "run.log_every=1")


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """Twenty images of two shapes, fifteen with masks: three of them validate."""
    return tiny.write_dataset(tmp_path_factory.mktemp("report") / "data", images=20, masks=15)


@pytest.fixture(scope="session")
def runs(shapes, tmp_path_factory) -> Path:
    """Folder with `fix` (and its twin `fix/twin`)."""
    out = tmp_path_factory.mktemp("report-runs")
    fit(tiny.recipe(shapes, *QUICK, threshold=0.4), out / "fix", quiet=True)
    fit(tiny.recipe(shapes, *QUICK, method="supervised"), out / "fix" / "twin", quiet=True)
    return out


@pytest.fixture(scope="session")
def fix(runs) -> Path:
    return runs / "fix"


@pytest.fixture(scope="session")
def allspark(shapes, tmp_path_factory) -> Path:
    """Two by two tokens, three classes, memory in use from the first step."""
    out = tmp_path_factory.mktemp("report-allspark") / "run"
    fit(tiny.recipe(shapes, *QUICK, "data.crop=64", method="allspark", warmup_epochs=0.0), out, quiet=True)
    return out


@pytest.fixture(scope="session")
def seeds(shapes, tmp_path_factory) -> Path:
    """One setting with two seeds."""
    out = tmp_path_factory.mktemp("report-seeds")
    for seed in (0, 1):
        fit(tiny.recipe(shapes, *QUICK, f"run.seed={seed}", method="supervised"), out / f"seed-{seed}", quiet=True)
    return out


@pytest.fixture(scope="session")
def staged(shapes, tmp_path_factory) -> Path:
    """A run of two stages, of which the one called `second` comes first."""
    out = tmp_path_factory.mktemp("report-staged") / "run"
    fit(tiny.recipe(shapes, *QUICK, method="tests.run.staged:Staged"), out, quiet=True)
    return out


@pytest.fixture(scope="session")
def change(tmp_path_factory) -> Path:
    """A run on image pairs in which a bright block appears."""
    root = tmp_path_factory.mktemp("report-change")
    rng = np.random.default_rng(3)
    for part, count in (("train", 6), ("val", 3)):
        for number in range(count):
            before = rng.integers(0, 80, (40, 48, 3), dtype=np.uint8)
            target = np.zeros((40, 48), dtype=np.uint8)
            target[8:24, 4 * number : 4 * number + 14] = 255
            after = before + (target[..., None] > 0) * np.uint8(150)
            for folder, pixels in (("A", before), ("B", after), ("label", target)):
                path = root / part / folder / f"pair_{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    keys = ("data.dataset=change_folder", "data.labeled=3")
    fit(tiny.recipe(root, *QUICK, *keys, threshold=0.5), root / "run", quiet=True)
    return root / "run"


@pytest.fixture(scope="session")
def labels(tmp_path_factory) -> Path:
    """A run on whole images: bright ones and dark ones."""
    root = tmp_path_factory.mktemp("report-labels")
    rng = np.random.default_rng(4)
    for part, count in (("train", 6), ("val", 3)):
        for name, low in (("dark", 0), ("bright", 130)):
            for number in range(count):
                path = root / part / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(low, low + 100, (32, 32, 3), dtype=np.uint8)).save(path)
    small = "model.encoder={name: resnet, depth: 18, stem: plain, output_stride: 32, width: 8}"
    keys = ("data.dataset=class_folder", "model.decoder=pool", "data.labeled=4", small)
    fit(tiny.recipe(root, *QUICK, *keys, threshold=0.5), root / "run", quiet=True)
    return root / "run"
