"""Exported files: same classes as the original on real photographs, for every image size and batch they allow."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from halfmask.errors import DataError, ParityError, RecipeError
from halfmask.infer import export as export_module
from halfmask.infer.bundle import load_bundle, save_bundle
from halfmask.infer.export import export
from halfmask.models.build import Builder
from halfmask.recipe.read import ModelRecipe
from halfmask.task import Task
from tests import processes

FACADE = Task("segmentation", ("Door", "Shop", "Balcony", "Window", "Wall", "Sky", "Roof"))
SMALL = {"encoder": {"name": "timm", "model": "test_resnet"}, "decoder": {"name": "segformer", "embedding": 16}}
LITE = {  # pads by the size of the image; the network that a plan for a CPU takes
    "encoder": {"name": "efficientnet_lite", "frozen_stages": 3},
    "decoder": {"name": "segformer", "embedding": 16},
}
VIT = {
    "encoder": {"name": "dinov2", "dim": 24, "heads": 2},
    "decoder": {"name": "dpt", "features": 8, "projections": [8, 8, 8, 8]},
}


def bundle_of(folder: Path, spec: dict, crop: int = 64) -> Path:
    torch.manual_seed(0)
    model = Builder(ModelRecipe.model_validate(spec), FACADE, crop=crop)()
    save_bundle(folder, model.eval(), FACADE)
    return folder


@pytest.fixture
def photos(shared: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, path in enumerate(sorted((shared / "data" / "facades" / "images").rglob("*.jpg"))[:3]):
        with Image.open(path) as image:
            image.resize((96 + 32 * number, 64)).save(folder / path.name)
    return folder


@pytest.mark.parametrize(("format", "spec"), [("onnx", SMALL), pytest.param("torch", LITE, marks=pytest.mark.slow)])
def test_any_batch_and_size_and_all_the_user_must_know(tmp_path: Path, photos: Path, format: str, spec: dict) -> None:
    run = bundle_of(tmp_path / "run", spec)
    # A process of its own: the type checks of the tests look at shapes, which tracing would take for a condition.
    done = processes.run(tmp_path, "export", str(run), "--format", format, "--input", str(photos), "--json")
    assert done.code == 0, done.err
    assert "Skipping" not in done.err
    report = json.loads(done.out)
    assert report["shapes"] == "batch and size"
    assert report["agreement"] >= 0.999
    assert report["images"] == 3
    assert report["largest_difference"] < 1e-4
    file = Path(report["file"])
    assert json.loads((run / f"{file.name}.parity.json").read_text())["agreement"] == report["agreement"]
    image = torch.rand(3, 3, 96, 160)
    with torch.inference_mode():
        wanted = load_bundle(run).model(image)
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(file)
        found = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
        about = session.get_modelmeta().custom_metadata_map
        assert json.loads(about["classes"]) == list(FACADE.classes)
        assert len(json.loads(about["palette"])) == 7
    else:
        files = {"halfmask.json": ""}
        found = torch.export.load(file, extra_files=files).module()(image)
        assert json.loads(files["halfmask.json"])["classes"] == list(FACADE.classes)
    assert torch.allclose(found, wanted, atol=1e-4)


def test_a_file_that_answers_otherwise_is_not_kept(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bundle_of(tmp_path / "run", SMALL)
    monkeypatch.setattr(export_module, "_open_torch", lambda file: lambda image: torch.rand(len(image), 7, 64, 64))
    monkeypatch.setattr(export_module, "_pixels", lambda *_: torch.rand(1, 3, 64, 64))
    with pytest.raises(ParityError, match="was not kept") as caught:
        export(run, format="torch", input=photos)
    assert caught.value.exit_code == 1
    assert not list(run.glob("*.pt2"))


def test_mistakes(tmp_path: Path, photos: Path) -> None:
    run = bundle_of(tmp_path / "run", SMALL)
    with pytest.raises(RecipeError, match="Did you mean `onnx`"):
        export(run, format="onxn", input=photos)
    with pytest.raises(RecipeError, match="--input"):
        export(run, format="torch")
    (run / "model.pt2").write_bytes(b"")
    with pytest.raises(DataError, match="--overwrite"):
        export(run, format="torch", input=photos)


@pytest.mark.slow
def test_vision_transformer_with_positions(tmp_path: Path, photos: Path) -> None:
    run = bundle_of(tmp_path / "run", VIT, crop=56)
    report = export(run, format="torch", input=photos)
    assert report.agreement >= 0.999
    assert np.isfinite(report.largest_difference)
