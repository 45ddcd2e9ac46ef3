"""Library use in few lines: networks, methods and batches without the trainer."""

import json
from pathlib import Path

import pytest
import torch

import halfmask
from halfmask import Progress, Task, build_method, create_model, load_bundle, loaders, save_bundle
from halfmask.data.loading.loader import to_batch
from halfmask.errors import RecipeError
from halfmask.methods.mean_teacher import MeanTeacher
from halfmask.run.prepare import prepare
from halfmask.run.prepared import loader_maker
from tests.docs.pages import ROOT, blocks
from tests.run.tiny import recipe, write_dataset

TINY = {"name": "timm", "model": "test_resnet"}
HEAD = {"name": "segformer", "embedding": 16}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("loop") / "data")


def test_the_lists_name_files_without_importing_torch() -> None:
    assert {"fixmatch", "supervised", "unimatch_v2"} <= set(halfmask.list_methods())
    models = halfmask.list_models()
    assert {"resnet", "timm", "dinov2"} <= set(models["encoders"])
    assert {"deeplabv3plus", "dpt"} <= set(models["decoders"])


def test_a_created_network_can_be_bundled_and_is_built_again(tmp_path: Path) -> None:
    model = create_model(TINY, HEAD, ["ground", "patch", "sky"], channels=4, crop=64).eval()
    save_bundle(tmp_path / "net", model)
    bundle = load_bundle(tmp_path / "net")
    assert bundle.task == Task("segmentation", ("ground", "patch", "sky"))
    assert bundle.crop == 64
    image = torch.rand(2, 4, 64, 64)
    with torch.no_grad():
        assert torch.equal(bundle.model(image), model(image))


def test_classes_may_be_a_number_or_a_task() -> None:
    assert create_model(TINY, HEAD, 5)(torch.rand(2, 3, 32, 32)).shape == (2, 5, 32, 32)
    change = create_model(TINY, HEAD, Task("change", ("same", "changed")))
    assert change(torch.rand(2, 2, 3, 32, 32)).shape == (2, 2, 32, 32)
    labels = create_model(TINY, "pool", Task("classification", ("cat", "dog")))
    assert labels(torch.rand(2, 3, 32, 32)).shape == (2, 2)


def test_weights_are_those_of_the_encoder(tmp_path: Path) -> None:
    with pytest.raises(halfmask.HalfmaskError, match="gone"):
        create_model({"name": "resnet", "depth": 18}, "segformer", 2, weights=str(tmp_path / "gone.pth"))
    with pytest.raises(RecipeError, match="resnet"):
        create_model("resnett")


def test_a_method_is_built_by_its_name_or_by_a_recipe(root: Path) -> None:
    by_name = build_method(
        "mean_teacher", ["a", "b"], {"model.encoder": TINY, "model.decoder": HEAD, "method.ema_decay": 0.5}
    )
    assert isinstance(by_name, MeanTeacher)
    assert by_name.task.classes == ("a", "b")
    made = recipe(root, method="mean_teacher")
    torch.manual_seed(made.run.seed)
    ours, trained = build_method(made).state_dict(), prepare(made, look=False).method.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in ours.items())
    assert build_method(made, 7).task.n_classes == 7
    with pytest.raises(RecipeError, match=r"Did you mean `ema_decay`"):
        build_method("mean_teacher", 2, {"method.ema_decai": 0.5})


def test_batches_are_those_of_training(root: Path, tmp_path: Path) -> None:
    made = recipe(root, "data.balance=classes")
    prepared = prepare(made, look=False)
    batches = loaders(made, 5, prepared.method, start=2)
    assert len(batches) == 3
    assert batches.steps_per_epoch == prepared.steps_per_epoch
    theirs = [to_batch(host, "cpu", batches.task) for host in loader_maker(prepared, tmp_path)(2, 5, 0, 1)]
    for ours, other in zip(batches, theirs, strict=True):
        assert torch.equal(ours.labeled.image, other.labeled.image)
        assert torch.equal(ours.labeled.labels, other.labeled.labels)
        assert torch.equal(ours.draw(0).image, other.draw(0).image)
    loss, _ = prepared.method.step(next(iter(batches)), Progress(2, 5, batches.steps_per_epoch))
    assert loss.isfinite()


def test_methods_decide_how_many_images_a_batch_has(root: Path) -> None:
    assert next(iter(loaders(recipe(root), 1))).unlabeled is not None
    supervised = recipe(root, method="supervised")
    assert next(iter(loaders(supervised, 1, build_method(supervised)))).unlabeled is None


def test_several_datasets_are_left_to_the_trainer(root: Path) -> None:
    made = halfmask.load_recipe(
        {"method": "multi_domain", "data": {"domains": {"a": {"root": str(root)}, "b": {"root": "x"}}}}
    )
    for call in (lambda: build_method(made), lambda: loaders(made, 1)):
        with pytest.raises(RecipeError, match="several datasets"):
            call()


def test_the_documented_loop_is_short_and_needs_public_names_only() -> None:
    code = [block.code for block in blocks(ROOT / "docs" / "training_loop.md") if block.language == "python"]
    assert len(code[0].strip().splitlines()) <= 30
    imported = [line for block in code for line in block.splitlines() if line.startswith(("import ", "from "))]
    assert {line.split()[1] for line in imported} == {"torch", "halfmask"}


def test_public_names_are_documented() -> None:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    missing = [name for name in halfmask.__all__ if name != "__version__" and f"`halfmask.{name}" not in text]
    assert json.dumps(missing) == "[]"
