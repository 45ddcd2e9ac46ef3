"""CAM learns tags: its loss against a loop, frozen parts, unknown images, and its place before CCT."""

import dataclasses

import pytest
import torch

from halfmask.batch import Batch, Progress
from halfmask.errors import RecipeError
from halfmask.methods.cam import Cam
from halfmask.methods.cct import CCT
from halfmask.models.build import Builder
from halfmask.recipe.read import load
from halfmask.recipe.sections import ModelRecipe
from halfmask.testing import tiny_batch, tiny_builder, tiny_task

TASK = tiny_task()
START = Progress(0, 4, 2)


def make(**params) -> Cam:
    return Cam(TASK, tiny_builder(TASK, norm=False), **params).train()


def tagged(rows: list[list[bool]]) -> Batch:
    batch = tiny_batch(TASK)
    return dataclasses.replace(batch, unlabeled=dataclasses.replace(batch.unlabeled, tags=torch.tensor(rows)))


def test_the_loss_is_the_binary_cross_entropy_of_pooled_scores_over_foreground_classes():
    method = make()
    batch = tagged([[True, False, True], [True, True, True]])
    loss = method.step(batch, START).loss
    total, count = 0.0, 0
    for samples in (batch.labeled, batch.unlabeled):
        cells = method.student.classifier(method.student.encode(samples.image)[-1])
        for number, one in enumerate(cells):
            side = 32 // one.shape[-1]
            real = samples.valid[number, ::side, ::side]
            shown = (
                [bool((samples.target[number] == k).any()) for k in range(3)]
                if samples.target is not None
                else samples.tags[number].tolist()
            )
            for k in (1, 2):  # 0 is background
                score = one[k][real].mean()
                total -= torch.log(torch.sigmoid(score if shown[k] else -score))
                count += 1
    torch.testing.assert_close(loss, total / count, rtol=1e-5, atol=1e-6)


def test_images_without_tags_and_the_background_teach_nothing():
    method = make()
    known = tagged([[True, True, False], [False, False, False]])
    other = tagged([[True, True, False], [False, False, False]])
    other.unlabeled.image[1] = torch.rand(3, 32, 32)
    assert torch.equal(method.step(known, START).loss, method.step(other, START).loss)
    method.step(known, START).loss.backward()
    assert method.student.classifier.weight.grad[0].abs().max() == 0
    assert method.student.classifier.weight[0].abs().max() == 0
    assert method.student.classifier.weight.grad[1:].abs().max() > 0


def test_the_published_freezing_holds_stem_first_stages_and_statistics():
    section = {"encoder": {"name": "resnet", "depth": 18, "width": 8, "stem": "plain"}, "decoder": "segformer"}
    build = Builder(ModelRecipe.model_validate(section), TASK, crop=32)
    method = Cam(TASK, build, frozen=True).train()
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    assert not [name for name in trained if "layer1" in name or "layer2" in name or ".bn" in name]
    assert any("layer4" in name for name in trained)
    before = {name: b.clone() for name, b in method.named_buffers()}
    method.step(tagged([[True, True, False]] * 2), START).loss.backward()
    assert all(torch.equal(b, before[name]) for name, b in method.named_buffers())
    with pytest.raises(RecipeError, match="another one"):
        make(frozen=True)


def test_the_mask_of_an_image_shows_its_tags_only():
    method = make(scales=(1.0, 0.5))
    image = torch.rand(3, 40, 56)
    mask = method.mask(method.student.eval(), image, torch.tensor([True, False, True]))
    assert mask.shape == (40, 56)
    assert set(mask.unique().tolist()) <= {0, 2, 255}


def test_thresholds_and_background_are_checked():
    with pytest.raises(RecipeError, match="Swap them"):
        make(low=0.5, high=0.3)
    with pytest.raises(RecipeError, match="no class"):
        make(background=3)


def test_cct_has_a_stage_of_tags_only_where_tags_are_all_there_is():
    def stages(*overrides: str) -> list[str]:
        return [stage.name for stage in CCT.plan(load({"method": "cct"}, overrides))]

    assert stages() == ["train"]
    assert stages("data.weak={tags: a.csv}") == ["cam", "cct"]
    assert stages("data.weak={tags: a.csv, masks: here}") == ["train"]
    assert stages("data.weak={masks: here}") == ["train"]
    recipe = load({"method": "cct"}, ["data.weak={tags: a.csv, stage: {optim.lr: 0.5, method.high: 0.4}}"])
    first = load(recipe.model_dump(mode="json"), CCT.plan(recipe)[0].overrides)
    assert (first.method.name, first.method.params["high"], first.optim.lr) == ("cam", 0.4, 0.5)
    assert (first.optim.momentum, first.run.epochs) == (0.0, 5)
    with pytest.raises(RecipeError, match=r"cannot change method\.name"):
        CCT.plan(load({"method": "cct"}, ["data.weak={tags: a.csv, stage: {method.name: fixmatch}}"]))
