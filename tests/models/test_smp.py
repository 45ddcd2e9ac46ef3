"""The adapter gives the library's own outputs through our seams, at any size."""

import pytest
import segmentation_models_pytorch as smp
import torch
from torch.testing import assert_close

from halfmask.errors import CheckpointError, RecipeError, ShapeError
from halfmask.models.build import Builder, build_model
from halfmask.models.encoders.mit import MiT
from halfmask.recipe.read import ModelRecipe
from halfmask.task import Task

TASK = Task("segmentation", ("road", "tree", "sky"))


def build(arch: str, encoder="resnet18", channels: int = 3, **params):
    recipe = ModelRecipe.model_validate({"name": "smp", "arch": arch, "encoder": {"name": encoder, **params}})
    return Builder(recipe, TASK, crop=64, channels=channels)()


ARCHITECTURES = [name for name in smp.MODEL_ARCHITECTURES_MAPPING if name != "dpt"]
CASES = [(arch, "resnet18") for arch in ARCHITECTURES] + [
    ("unet", "mit_b0"),
    ("fpn", "mit_b0"),
    ("unet", "tu-resnet18"),
]


@pytest.mark.parametrize(("arch", "encoder"), CASES)
def test_seams_in_a_row_equal_the_librarys_forward(arch, encoder):
    model = build(arch, encoder).eval()
    original = smp.create_model(arch, encoder_name=encoder, encoder_weights=None, classes=3).eval()
    original.encoder.load_state_dict(model.encoder.net.state_dict())
    original.decoder.load_state_dict(model.decoder.net.state_dict())
    original.segmentation_head.load_state_dict(model.classifier.state_dict())
    image = torch.rand(1, 3, 128, 160)
    with torch.no_grad():
        assert torch.equal(model(image), original((image - model.mean) / model.std))
        features = model.encode(image)
    for x, channels, stride in zip(features, model.encoder.channels, model.encoder.strides, strict=True):
        assert x.shape == (1, channels, 128 // stride, 160 // stride)
        assert channels > 0


@pytest.mark.parametrize(("arch", "height", "width"), [("unet", 96, 128), ("deeplabv3plus", 80, 112)])
def test_any_size_works_and_padding_is_cut_away_at_the_right_and_bottom(arch, height, width):
    model = build(arch).eval()
    image = torch.rand(1, 3, 75, 97)
    padded = torch.nn.functional.pad(image, (0, width - 97, 0, height - 75), mode="reflect")
    with torch.no_grad():
        logits = model(image)
        assert logits.shape == (1, 3, 75, 97)
        assert_close(logits, model(padded)[..., :75, :97])


def test_too_small_images_are_refused_with_the_smallest_size():
    with pytest.raises(ShapeError, match="needs sides above 16"):
        build("unet")(torch.rand(2, 3, 16, 64))
    assert build("unet").eval()(torch.rand(1, 3, 17, 64)).shape == (1, 3, 17, 64)


@pytest.mark.parametrize(("arch", "encoder"), [("pspnet", "resnet18"), ("unet", "efficientnet-b0")])
def test_every_trainable_parameter_gets_a_gradient(arch, encoder):
    # These encoders have layers behind the deepest map in use.
    model = build(arch, encoder).train()
    model(torch.rand(2, 3, 64, 64)).square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert any(not p.requires_grad for p in model.parameters())
    assert all(p.requires_grad for p in model.decoder.parameters())


def test_a_new_network_is_in_train_mode_with_untouched_statistics():
    model = build("unet")
    assert model.training
    assert all((buffer == 0).all() for name, buffer in model.named_buffers() if name.endswith("running_mean"))


def test_the_spec_rebuilds_it_and_the_classifier_is_stored_once():
    model = build("fpn", channels=5, depth=4).eval()
    again = build_model(model.spec).eval()
    again.load_state_dict(model.state_dict())
    image = torch.rand(1, 5, 64, 64)
    assert torch.equal(model(image), again(image))
    assert len({id(parameter) for parameter in model.parameters()}) == sum(1 for _ in model.parameters())
    assert not [key for key in model.state_dict() if "head" in key]
    assert len(model.encoder.channels) == 4


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"arch": "unett"}, r"Did you mean `unet`"),
        ({"arch": "dpt"}, r"decoder dpt"),
        ({"encoder": "resnet-18"}, r"not an encoder of segmentation_models_pytorch"),
        (
            {"encoder": {"name": "resnet18", "dept": 4}},
            r"model.encoder.dept is not a parameter.*Did you mean `depth`",
        ),
        ({"encoder": {"name": "tu-resnet18", "deepness": 4}}, r"unexpected keyword argument 'deepness'"),
        ({"encoder": "resnet18", "bottleneck": {"name": "allspark"}}, r"bottleneck=null"),
    ],
)
def test_a_wrong_section_says_what_would_be_right(section, message):
    recipe = ModelRecipe.model_validate({"name": "smp", **section})
    with pytest.raises(RecipeError, match=message):
        Builder(recipe, TASK, crop=64)()


def test_weights_that_cannot_be_fetched_name_the_cure(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"weights 'imagenet' of encoder resnet18.*weights=null"):
        build("unet", weights="imagenet")


def test_our_mit_equals_the_librarys():
    # Two independent implementations in float32; the published one differs from a float64 run by 2e-6.
    ours = MiT(size="b0", drop_path=0.0).eval()
    theirs = smp.encoders.get_encoder("mit_b0", weights=None).eval()
    theirs.load_state_dict(ours.state_dict())
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(ours(image), theirs(image)[2:], strict=True):
            assert_close(a, b, rtol=0, atol=2e-5)
