"""The mean of several networks: probabilities, sizes, bundles."""

import json
from pathlib import Path

import pytest
import torch

from halfmask.errors import CheckpointError, ShapeError
from halfmask.infer.bundle import load_bundle, save_bundle
from halfmask.infer.inference import class_map, probabilities
from halfmask.infer.predict.tiles import choose_tiling
from halfmask.models.ensemble import Ensemble
from halfmask.recipe.read import EvalRecipe
from halfmask.testing.tiny import tiny_builder, tiny_task


def pair(kind: str = "segmentation") -> Ensemble:
    build = tiny_builder(tiny_task(kind))
    both = Ensemble(build(), build()).eval()
    with torch.no_grad():  # one sure network and one unsure: the mean of logits would be another
        both.members[0].classifier.weight.mul_(40)
    return both


@pytest.mark.parametrize("kind", ["segmentation", "change", "classification"])
def test_output_is_the_logarithm_of_the_mean_probability(kind: str) -> None:
    both = pair(kind)
    image = torch.rand(2, *((2,) if kind == "change" else ()), 3, 32, 32)
    with torch.no_grad():
        mean = (both.members[0](image).softmax(1) + both.members[1](image).softmax(1)) / 2
        found = both(image)
    assert torch.allclose(found.exp(), mean, atol=1e-6)
    assert torch.allclose(found.softmax(1), mean, atol=1e-6)
    assert not torch.allclose(found.softmax(1), sum(m(image) for m in both.members).div(2).softmax(1), atol=1e-2)


@pytest.mark.parametrize(
    "protocol",
    [EvalRecipe(), EvalRecipe(fit="resize"), EvalRecipe(mode="slide", window=32), EvalRecipe(flip=True, scales=(1, 2))],
    ids=["whole", "resize", "slide", "views"],
)
def test_every_protocol_averages_the_probabilities_of_the_members(protocol: EvalRecipe) -> None:
    both, image = pair(), torch.rand(1, 3, 45, 50)
    mean = sum(probabilities(member, image, protocol, 32) for member in both.members) / 2
    assert torch.allclose(probabilities(both, image, protocol, 32), mean, atol=1e-6)
    best = class_map(both, image, protocol, 32)
    assert best.dtype == torch.uint8
    assert (best == mean.argmax(1)).float().mean() > 0.999


def test_a_bundle_holds_all_members_and_loads_again(tmp_path: Path) -> None:
    both = pair()
    save_bundle(tmp_path, both, tiny_task())
    again = load_bundle(tmp_path)
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.model(image), both(image))
    meta = json.loads((tmp_path / "model.json").read_text())
    assert len(meta["model"]["ensemble"]) == 2
    assert (meta["format_version"], again.crop, meta["bands"]) == (2, 32, 3)


def test_one_model_is_written_in_the_format_of_before(tmp_path: Path) -> None:
    save_bundle(tmp_path, pair().members[0], tiny_task())
    assert json.loads((tmp_path / "model.json").read_text())["format_version"] == 1


def test_a_model_without_a_description_cannot_be_bundled(tmp_path: Path) -> None:
    both = pair()
    both.members[1].spec = {}
    with pytest.raises(CheckpointError, match="no spec"):
        save_bundle(tmp_path, both, tiny_task())


def test_sizes_suit_all_members() -> None:
    both = pair()
    both.members[0].encoder.size_multiple, both.members[1].encoder.size_multiple = 4, 14
    assert both.size_multiple == 28
    assert choose_tiling(both, EvalRecipe(), 32).align == 56  # the coarsest stride is 8


def test_members_are_of_the_same_classes() -> None:
    with pytest.raises(ShapeError, match="2 classes of 3 bands, 3 classes of 3 bands"):
        Ensemble(tiny_builder(tiny_task())(), tiny_builder(tiny_task("change"))())
    with pytest.raises(ShapeError, match="no model"):
        Ensemble()
