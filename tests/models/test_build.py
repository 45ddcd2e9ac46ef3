"""Builder: recipe section and overrides in, networks and their description out."""

import json

import pytest
import torch

from halfmask.errors import CheckpointError, RecipeError, ShapeError
from halfmask.method import ModelBuilder
from halfmask.models.build import Builder, build_model
from halfmask.recipe.read import ModelRecipe
from halfmask.task import Task

TASK = Task("segmentation", ("road", "tree", "sky"), palette=((0, 0, 0), (0, 255, 0), (0, 0, 255)))
TINY = {
    "encoder": {"name": "resnet", "depth": 18, "width": 8},
    "decoder": {"name": "deeplabv3plus", "aspp": 8, "low": 4, "embedding": 8},
}


def builder(**arguments) -> Builder:
    return Builder(ModelRecipe.model_validate(TINY), TASK, crop=64, **arguments)


def test_it_is_the_protocol_methods_are_written_against():
    assert isinstance(builder(), ModelBuilder)
    assert builder().crop == 64


def test_logits_have_the_image_size_and_one_map_per_class():
    model = builder()().eval()
    assert model(torch.rand(2, 3, 65, 81)).shape == (2, 3, 65, 81)


def test_two_calls_give_different_weights_and_one_seed_gives_the_same():
    build = builder()
    first, second = build(), build()
    assert not torch.equal(first.classifier.weight, second.classifier.weight)
    torch.manual_seed(3)
    third = build()
    torch.manual_seed(3)
    assert torch.equal(third.classifier.weight, build().classifier.weight)


def test_the_spec_is_plain_data_and_rebuilds_the_same_network():
    model = builder(channels=4, mean=(0.1, 0.2, 0.3, 0.4), std=(1.0, 1.0, 1.0, 2.0))().eval()
    spec = json.loads(json.dumps(model.spec))
    again = build_model(spec).eval()
    again.load_state_dict(model.state_dict())
    image = torch.rand(1, 4, 64, 64)
    assert torch.equal(model(image), again(image))
    assert again.spec == model.spec
    assert set(spec) == {"model", "task", "channels", "mean", "std", "crop"}
    assert spec["task"]["classes"] == ["road", "tree", "sky"]


def test_overrides_replace_single_params_and_another_name_starts_from_its_defaults():
    build = builder()
    deeper = build(encoder={"depth": 34})
    assert len(deeper.encoder.net.layer3) == 6
    assert deeper.spec["model"]["encoder"]["width"] == 8
    other = build(encoder={"name": "mit", "size": "b0"}, decoder="segformer")
    assert other.encoder.channels == (32, 64, 160, 256)
    assert other.spec["model"]["decoder"]["embedding"] is None
    assert build.recipe.encoder.params["depth"] == 18


def test_normalization_happens_inside_the_model():
    model = builder()().eval()
    raw = builder(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))().eval()
    state = model.state_dict()
    raw.load_state_dict({**state, "mean": raw.mean, "std": raw.std})
    image = torch.rand(1, 3, 64, 64)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(model(image), raw((image - mean) / std))


def test_forward_is_its_seams_in_a_row():
    model = builder()().eval()
    image = torch.rand(2, 3, 64, 64)
    features = model.encode(image)
    embedding = model.decoder.refine(model.decoder.fuse(features))
    assert torch.equal(model.classify(embedding, (64, 64)), model(image))


def test_batch_norm_is_reported():
    assert builder()().has_batch_stats
    plain = builder()(encoder={"name": "dinov2", "dim": 24, "heads": 2}, decoder="dpt")
    assert not plain.has_batch_stats
    assert plain.size_multiple == 14


def test_a_frozen_encoder_keeps_its_statistics_in_training():
    model = builder()(encoder={"frozen": True}).train()
    before = model.encoder.net.bn1.running_mean.clone()
    model(torch.rand(2, 3, 64, 64)).sum().backward()
    assert torch.equal(model.encoder.net.bn1.running_mean, before)
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert model.decoder.training


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"encoder": {"deph": 34}}, r"model.encoder.deph is not a parameter.*Did you mean `depth`"),
        ({"encoder": {"depth": 35}}, r"model.encoder.depth=35.*one of 18, 34"),
        ({"encodr": "mit"}, r"model.encodr.*Did you mean `encoder`"),
        ({"encoder": "resnt"}, r"there is no encoder 'resnt'. Did you mean `resnet`"),
        (
            {"encoder": {"name": "timm", "model": "test_vit", "out_indices": [1]}, "decoder": "dpt"},
            r"dpt needs four maps, but the encoder gives 1, of strides \(16,\).*Use decoder segformer",
        ),
    ],
)
def test_a_wrong_override_says_what_would_be_right(overrides, message):
    with pytest.raises(RecipeError, match=message):
        builder()(**overrides)


def test_one_image_per_forward_is_refused_where_batch_norm_could_not_train():
    model = builder()().train()
    with pytest.raises(ShapeError, match=r"data.batch.labeled and data.batch.unlabeled of 2 or more"):
        model(torch.rand(1, 3, 64, 64))


def test_a_size_the_encoder_cannot_take_names_the_nearest_crop():
    model = builder()(encoder={"name": "dinov2", "dim": 24, "heads": 2}, decoder="dpt")
    with pytest.raises(
        ShapeError, match=r"image is 500x375 but encoder dinov2 needs multiples of 14. Use data.crop=504"
    ):
        model(torch.rand(1, 3, 375, 500))
    tiny = builder()(encoder={"name": "mit", "size": "b0"}, decoder="segformer")
    with pytest.raises(ShapeError, match="sides of 29 or more"):
        tiny(torch.rand(1, 3, 28, 64))
    assert tiny.eval()(torch.rand(1, 3, 29, 64)).shape == (1, 3, 29, 64)


def test_weights_are_ignored_where_the_caller_loads_its_own():
    model = builder(pretrained=False)(encoder={"weights": "no/such/file.pth"})
    assert model.spec["model"]["encoder"]["weights"] == "no/such/file.pth"
    build_model(model.spec)
    with pytest.raises(CheckpointError, match=r"no/such/file.pth does not exist"):
        build_model(model.spec, pretrained=True)
