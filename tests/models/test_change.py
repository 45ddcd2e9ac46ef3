"""Networks of image pairs and of whole images: recorded logits, symmetry, batch norm per date, every decoder."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from halfmask.errors import RecipeError, ShapeError
from halfmask.models.build import Builder, build_model
from halfmask.models.decoders.dpt import DPT
from halfmask.models.encoders.dinov2 import DINOv2
from halfmask.models.model import ChangeSegmenter, Classifier
from halfmask.recipe.sections import ModelRecipe
from halfmask.testing import tiny_builder, tiny_task
from tests.methods import official_names

CHANGE, LABELS = tiny_task("change"), tiny_task("classification")


@pytest.fixture
def published(golden):
    """The recorded two-date network: DINOv2 and DPT, in float64; images are normalized already."""
    tensors = golden("unimatch/change_dpt")
    encoder = DINOv2(dim=24, heads=2)
    decoder = DPT(encoder.channels, encoder.strides, features=12, projections=(8, 8, 12, 16))
    model = ChangeSegmenter(encoder, decoder, 2, mean=(0.0,) * 3, std=(1.0,) * 3)
    state = official_names.dpt(official_names.part(tensors, "weight."))
    model.load_state_dict({**state, "mean": model.mean, "std": model.std})
    pair = torch.stack((tensors["image_a"], tensors["image_b"]), dim=1).double()  # (6, 2, 3, 42, 56)
    return model.double().eval(), pair, tensors


def test_logits_of_a_pair_equal_the_published_ones(published):
    # Recorded in float64 and stored as float32: 1e-5 relative, as its README says.
    model, pair, tensors = published
    assert_close(model(pair), tensors["logits"].double(), rtol=1e-5, atol=1e-6)


def test_channels_dropped_from_the_differences_give_the_published_logits(published):
    model, pair, tensors = published
    features = [level * tensors["mask"][..., None, None] for level in model.encode(pair)]
    logits = model.classify(model.decode(features), (42, 56))
    assert_close(logits, tensors["logits_comp_drop"].double(), rtol=1e-5, atol=1e-6)
    assert (logits - tensors["logits"]).abs().max() > 1e-2  # the mask matters


def test_the_order_of_the_dates_does_not_matter_and_equal_dates_give_no_features():
    model = tiny_builder(CHANGE)().eval()
    pair = torch.rand(3, 2, 3, 32, 48)
    assert_close(model(pair), model(pair.flip(1)))
    same = torch.stack((pair[:, 0], pair[:, 0]), dim=1)
    assert all(level.abs().max() < 1e-6 for level in model.encode(same))


def test_batch_norm_takes_its_statistics_per_date():
    """As published: each date passes the network alone, so a brighter date does not shift the other one's maps."""
    torch.manual_seed(0)
    model = tiny_builder(CHANGE)().train()
    single, pair = copy.deepcopy(model.encoder).train(), torch.rand(4, 2, 3, 32, 32)
    normalized = (pair - model.mean) / model.std
    expected = [(a - b).abs() for a, b in zip(single(normalized[:, 0]), single(normalized[:, 1]), strict=True)]
    for level, wanted in zip(model.encode(pair), expected, strict=True):
        assert_close(level, wanted)
    for (name, buffer), other in zip(model.encoder.named_buffers(), single.buffers(), strict=True):
        assert_close(buffer, other, msg=name)


def test_dates_that_share_a_pass_give_the_maps_of_two_passes():
    model = tiny_builder(CHANGE)().eval()
    pair = torch.rand(3, 2, 3, 32, 32)
    first, second = ([level[:, None] for level in model.encoder((pair[:, t] - model.mean) / model.std)] for t in (0, 1))
    for level, a, b in zip(model.encode(pair), first, second, strict=True):
        assert_close(level, (a - b).abs()[:, 0])


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 3, 3, 32, 32)])
def test_images_that_are_no_pairs_are_refused(shape):
    with pytest.raises(ShapeError, match=r"two dates.*torch\.stack"):
        tiny_builder(CHANGE)().encode(torch.rand(shape))


def test_gradients_reach_both_dates():
    model = tiny_builder(CHANGE)().train()
    pair = torch.rand(2, 2, 3, 32, 32, requires_grad=True)
    model(pair).square().sum().backward()
    assert (pair.grad.abs().sum((0, 2, 3, 4)) > 0).all()


@pytest.mark.parametrize("kind", ["change", "classification"])
def test_a_spec_builds_the_same_kind_of_network(kind):
    task = tiny_task(kind)
    model = tiny_builder(task)()
    again = build_model(model.spec)
    assert type(again) is type(model)
    again.load_state_dict(model.state_dict())
    image = torch.rand(2, 2, 3, 32, 32) if kind == "change" else torch.rand(2, 3, 32, 32)
    assert torch.equal(model.eval()(image), again.eval()(image))


def test_smp_networks_compare_dates_too():
    section = ModelRecipe.model_validate({"name": "smp", "arch": "linknet", "encoder": {"name": "resnet18"}})
    model = Builder(section, CHANGE, crop=64)().eval()
    pair = torch.rand(2, 2, 3, 64, 96)
    assert model(pair).shape == (2, 2, 64, 96)
    assert_close(model(pair), model(pair.flip(1)))
    with pytest.raises(RecipeError, match=r"model\.decoder\.name=pool"):
        Builder(section, LABELS, crop=64)()


def pooled(encoder: dict) -> Classifier:
    section = ModelRecipe.model_validate({"encoder": encoder, "decoder": "pool"})
    return Builder(section, LABELS, crop=32)()


def test_a_classifier_is_a_linear_layer_on_the_average_of_the_coarsest_map():
    model = pooled({"name": "resnet", "depth": 18, "width": 8, "stem": "plain"}).eval()
    image = torch.rand(3, 3, 64, 40)
    coarsest = model.encoder.net.forward_features((image - model.mean) / model.std)
    weight = model.classifier.weight[:, :, 0, 0]
    expected = coarsest.mean((2, 3)) @ weight.T + model.classifier.bias
    assert_close(model(image), expected)


def test_any_decoder_classifies_by_the_average_of_its_logits():
    model = tiny_builder(LABELS)().eval()
    image = torch.rand(2, 3, 32, 32)
    dense = model.classifier(model.decode(model.encode(image)))
    assert isinstance(model, Classifier)
    assert isinstance(model.classifier, nn.Conv2d)
    assert_close(model(image), dense.flatten(2).mean(2))


def test_transformers_classify():
    assert pooled({"name": "dinov2", "dim": 24, "heads": 2})(torch.rand(2, 3, 28, 42)).shape == (2, 3)
