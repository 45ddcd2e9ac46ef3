"""DPT on a pyramid: the plain form, whose numbers are the published ones, without its resizing."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from halfmask.models.build import Builder
from halfmask.models.decoders.dpt import DPT
from halfmask.recipe.read import ModelRecipe
from halfmask.task import Task

WIDTHS = (4, 6, 8, 12)


def test_a_pyramid_is_fused_as_the_resized_maps_of_a_plain_transformer():
    params = {"features": 8, "projections": WIDTHS}
    plain = DPT((24,) * 4, (14,) * 4, **params).double()
    pyramid = DPT(WIDTHS, (4, 8, 16, 32), **params).double()
    shared = {key: value for key, value in plain.state_dict().items() if not key.startswith(("projects", "resize"))}
    assert pyramid.load_state_dict(shared, strict=False).unexpected_keys == []
    for project in pyramid.projects:
        nn.init.dirac_(project.weight)
        nn.init.zeros_(project.bias)

    tokens = [torch.rand(2, 24, 5, 7, dtype=torch.float64) for _ in range(4)]
    levels = [
        resize(project(x)) for x, project, resize in zip(tokens, plain.projects, plain.resize, strict=True)
    ]  # 20x28, 10x14, 5x7, 3x4
    assert_close(pyramid.fuse(levels), plain.fuse(tokens), rtol=0, atol=1e-12)


@pytest.mark.parametrize("output_stride", [32, 8])
def test_resnet_and_mit_give_logits_of_the_image_size_and_train_all_weights(output_stride):
    task = Task("segmentation", ("road", "tree", "house"))
    for encoder in (
        {"name": "resnet", "depth": 50, "width": 4, "blocks": [1, 1, 1, 1], "output_stride": output_stride},
        {"name": "mit", "size": "b0"},
    ):
        section = ModelRecipe.model_validate({"encoder": encoder, "decoder": {"name": "dpt", "features": 8}})
        model = Builder(section, task, crop=70)()
        logits = model(torch.rand(2, 3, 70, 45))
        assert logits.shape == (2, 3, 70, 45)
        logits.square().sum().backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
