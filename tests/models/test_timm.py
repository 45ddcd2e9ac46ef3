"""Networks of timm: those bound to one image size, and the final norm of plain transformers."""

from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from halfmask.errors import RecipeError
from halfmask.infer.inference import class_map
from halfmask.models.build import Builder, build_model
from halfmask.models.encoders.dinov2 import DINOv2
from halfmask.models.encoders.timm import Timm
from halfmask.recipe.read import EvalRecipe, ModelRecipe
from halfmask.task import Task

TASK = Task("segmentation", ("road", "tree", "house"))
BEIT = {"name": "timm", "model": "beit_base_patch16_224", "out_indices": [0, 1, 2, 3]}


def beit(crop: int, **params) -> Builder:
    section = {"encoder": BEIT | params, "decoder": {"name": "dpt", "features": 8, "projections": [4, 4, 8, 8]}}
    return Builder(ModelRecipe.model_validate(section), TASK, crop=crop)


def test_beit_is_made_for_the_crop_and_resizes_what_else_comes():
    model = beit(48)().eval()
    assert (model.size_multiple, model.encoder.only_size) == (1, 48)
    assert model.spec["model"]["encoder"]["img_size"] is None
    assert build_model(model.spec).encoder.only_size == 48  # from the crop, again

    image = torch.rand(1, 3, 40, 70)
    resized = F.interpolate(image, size=(48, 48), mode="bilinear", align_corners=True)
    with torch.inference_mode():
        for own, expected in zip(model.encode(image), model.encode(resized), strict=True):
            assert own.shape == (1, 768, 3, 3)
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)  # resized after or before normalization
    for mode in ("whole", "slide"):
        for fit in ("pad", "resize"):
            assert class_map(model, image, EvalRecipe(mode=mode, fit=fit), crop=48).shape == (1, 40, 70)

    model.train()(torch.rand(2, 3, 48, 48)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_size_of_its_own_wins_over_the_crop_and_a_wrong_one_names_the_nearest():
    with torch.device("meta"):
        assert beit(48, img_size=64)().encoder.only_size == 64
        with pytest.raises(RecipeError, match=r"made for one image size, and 518 is no multiple.*data.crop=512"):
            beit(518)()


@pytest.mark.parametrize(
    ("model", "taps", "parameters"),
    [("beit_base_patch16_224", (2, 5, 8, 11), 86.2), ("beit_large_patch16_224", (4, 11, 17, 23), 304.6)],
)
def test_beit_at_512_has_the_size_logged_for_unimatch_v2(model, taps, parameters):
    with torch.device("meta"):
        encoder = beit(512, model=model, out_indices=taps)().encoder
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(parameters, abs=0.05)


def test_a_plain_transformer_gives_normalized_maps_as_dinov2_does(monkeypatch, tmp_path):
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, embed_dim=24, num_heads=2))
    dinov2 = DINOv2(dim=24, heads=2, interpolation="size")
    torch.nn.init.normal_(dinov2.net.norm.weight)
    torch.nn.init.normal_(dinov2.net.norm.bias)
    save_file(dinov2.net.state_dict(), tmp_path / "w.safetensors")
    encoder = Timm(model="vit_small_patch14_dinov2", weights=str(tmp_path / "w.safetensors"))
    assert (encoder.channels, encoder.strides, encoder.size_multiple) == ((24,) * 4, (14,) * 4, 14)

    image = torch.rand(2, 3, 56, 70)
    maps = encoder(image)
    for own, expected in zip(maps, dinov2(image), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)

    sum(x.square().sum() for x in maps).backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []
    assert encoder.net.model.norm.weight.grad.abs().max() > 0


def test_maps_of_all_other_networks_stay_as_they_are():
    with torch.device("meta"):
        for model in ("test_convnext", "test_efficientnet", "samvit_base_patch16"):  # SAM's norm is a neck of its own
            assert not getattr(Timm(model=model).net, "norm", False)


def test_drop_path_is_an_option_of_networks_that_have_it():
    network = Timm(model="test_vit", drop_path=0.4)
    rates = [module.drop_prob for module in network.modules() if type(module).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.4)
    assert not [module for module in Timm(model="test_vit").modules() if type(module).__name__ == "DropPath"]
    image = torch.rand(2, 3, 64, 64)
    torch.manual_seed(0)
    one = network.train()(image)[-1]
    assert not torch.equal(one, network(image)[-1])  # the next pass skips other branches
    assert torch.equal(network.eval()(image)[-1], network(image)[-1])


def test_drop_path_is_refused_where_it_would_do_nothing():
    with pytest.raises(RecipeError, match="vgg11 has no drop path"):
        Timm(model="vgg11", drop_path=0.1)


@pytest.mark.parametrize("model", ["test_resnet.r160_in1k", "test_resnet.", "adv_inception_v3", "test_resnt"])
def test_a_name_with_a_tag_is_refused_and_so_is_one_that_is_none(model):
    """Else it would be trained from random weights, though a release was named."""
    with pytest.raises(
        RecipeError, match=r"is not a network of timm.*A weight tag goes to model.encoder.weights"
    ) as caught:
        Timm(model=model)
    assert caught.value.code == "H303"
