"""AllSpark's switches, and what it refuses; the published run is repeated in test_allspark_golden.py."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from halfmask.batch import Batch, Progress
from halfmask.errors import CheckpointError, RecipeError, ShapeError
from halfmask.methods.allspark import AllSpark
from halfmask.models import channel_attention
from halfmask.recipe.read import Entry, load
from halfmask.run.prepare import prepare
from halfmask.task import Task
from halfmask.testing import tiny_batch, tiny_builder, tiny_task
from tests.run.tiny import recipe, write_dataset

TASK = tiny_task()


def make(task: Task = TASK, **params: Any) -> AllSpark:
    torch.manual_seed(0)
    return AllSpark(task, tiny_builder(task), **params).train()


def keys_used(method: AllSpark, step: int, batch: Batch | None = None) -> tuple[Tensor, Tensor | None]:
    """Keys of the labeled images in one step."""
    seen = []
    attend = method.bottleneck.attend

    def watch(tokens: Tensor, residual: Tensor, keys: Tensor, **options: Any) -> Tensor:
        if method.bottleneck.training:
            seen.append((keys, options["present"]))
        return attend(tokens, residual, keys, **options)

    method.bottleneck.attend = watch
    method.step(batch or tiny_batch(TASK), Progress(step, 8, 2))
    del method.bottleneck.attend
    return seen[0]


def test_the_memory_is_read_from_the_warm_up_epoch_on_and_written_before():
    method = make(warmup_epochs=2.0)
    start = method.memory.slots.clone()
    keys, _ = keys_used(method, step=3)  # epoch 1.5
    assert keys.shape[0] == 2  # the images of the batch
    assert keys.requires_grad  # gradients reach the unlabeled images through the keys
    assert method.memory.filled.sum() == 24
    assert not torch.equal(method.memory.slots, start)
    keys, present = keys_used(method, step=4)
    assert keys is method.memory.slots
    assert present is None


def test_the_memory_already_holds_the_batch_it_is_used_for():
    method = make(warmup_epochs=0.0)
    method.memory.slots.zero_()
    keys, _ = keys_used(method, step=0)
    assert int((keys.abs().sum(-1) > 0).sum()) == int(method.memory.filled.sum()) > 0
    assert set(method.memory.origin.unique().tolist()) == {-1, 0, 1}


def test_empty_slots_can_be_left_out():
    keys, present = keys_used(make(warmup_epochs=0.0, mask_empty=True, grouping="none"), step=0)
    assert present.all()  # every class got some of the 24 channels
    method = make(warmup_epochs=0.0, mask_empty=True)
    keys, present = keys_used(method, step=0)
    filled = method.memory.filled
    assert torch.equal(present, filled.any(1))
    assert not keys[~filled].any()
    assert torch.equal(keys[filled], method.memory.slots[filled])


def test_without_memory_there_is_no_memory_to_save():
    method = make(keys="batch")
    assert not [key for key in method.state_dict() if key.startswith("memory")]
    keys, _ = keys_used(method, step=7)
    assert keys.shape[0] == 2


def test_pseudo_labels_see_the_batch_or_one_image():
    batch = tiny_batch(TASK)
    image = batch.draw(0).image
    pooled, alone = make(), make(eval_keys="per_image")
    for method in (pooled, alone):
        method.student.eval()
    together, single = pooled._label(image), pooled._label(image[:1])
    assert (together[:1] - single).abs().max() > 1e-4
    torch.testing.assert_close(alone._label(image)[:1], single, rtol=0, atol=1e-5)
    torch.testing.assert_close(pooled.student(image)[:1], single, rtol=0, atol=1e-5)


def test_the_loss_is_the_mean_of_both_terms_unless_told_otherwise():
    for scale in (0.5, 1.0):
        output = make(loss_scale=scale, labeled_color=False).step(tiny_batch(TASK), Progress(0, 8, 2))
        torch.testing.assert_close(output.loss, scale * (output.logs["loss_sup"] + output.logs["loss_unsup"]))
    assert output.logs["memory/filled"].shape == (3,)


def test_a_change_of_pixels_under_padding_teaches_only_where_wanted():
    """The published code trains on padding; by default it is left out."""
    batch = tiny_batch(TASK)
    batch.unlabeled.valid[:, :, 10:] = False
    ignoring, published = (
        make(ignore_padding=ignore, labeled_color=False).step(batch, Progress(0, 8, 2)) for ignore in (True, False)
    )
    assert ignoring.loss != published.loss


def test_labels_alone_teach_during_the_warm_up():
    batch = tiny_batch(TASK)
    method = make(warmup=0.5)
    for step, part in ((0, 0.0), (4, 1.0)):
        output = method.step(batch, Progress(step, 8, 2))
        torch.testing.assert_close(output.loss, 0.5 * (output.logs["loss_sup"] + part * output.logs["loss_unsup"]))


def test_pairs_of_dates_work_too():
    task = tiny_task("change")
    output = make(task, warmup_epochs=0.0).step(tiny_batch(task), Progress(0, 8, 2))
    output.loss.backward()
    assert output.loss.isfinite()


def test_halves_of_different_size_are_refused_with_the_reason():
    batch = tiny_batch(TASK)
    batch.unlabeled = dataclasses.replace(
        batch.unlabeled,
        **{name: getattr(batch.unlabeled, name)[:1] for name in ("image", "valid", "index")},
    )
    with pytest.raises(ShapeError, match=r"equal size, but got 2 labeled and 1 unlabeled.*equal data.batch"):
        make().step(batch, Progress(0, 8, 2))


def test_a_crop_that_does_not_fit_the_memory_is_refused():
    batch = tiny_batch(TASK)
    for samples in (batch.labeled, batch.unlabeled):
        samples.image, samples.valid = samples.image[..., :24], samples.valid[..., :24]
    batch.labeled.target = batch.labeled.labels[..., :24]
    with pytest.raises(ShapeError, match=r"4 x 4 tokens, but a crop of 24x32 gives 12.*data.crop"):
        make().step(batch, Progress(0, 8, 2))


def test_a_state_of_other_classes_or_another_crop_is_refused():
    state = make().state_dict()
    with pytest.raises(CheckpointError, match="3 classes in the checkpoint, 4 here"):
        make(Task("segmentation", ("a", "b", "c", "d"))).load_state_dict(state)
    build = tiny_builder(TASK)
    build.crop = 48
    with pytest.raises(CheckpointError, match=r"16 tokens per channel in the checkpoint, 36 here.*the crop"):
        AllSpark(TASK, build).load_state_dict(state)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.batch={labeled: 2, unlabeled: 4}",), r"2 labeled and 4 unlabeled.*unlabeled: 2\}"),
        (("data.drop_last=false",), "data.drop_last is false.*data.drop_last=true"),
        (("model={name: smp, arch: unet, encoder: resnet18}",), "needs an encoder and a decoder of ours"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_before_training(tmp_path, overrides, message):
    with pytest.raises(RecipeError, match=message):
        prepare(recipe(write_dataset(tmp_path / "data"), *overrides, method="allspark"))


def test_the_ablation_steps_of_the_paper_are_values():
    for values in (["method.keys=batch"], ["method.grouping=none"], []):
        params = load("allspark/pascal", values).method.params
        make(**params)


@pytest.mark.parametrize("mask_empty", [False, True])
@pytest.mark.parametrize("stream_bytes", [0, 2**26])
def test_bfloat16_autocast_changes_the_step_by_rounding_only(monkeypatch, stream_bytes, mask_empty):
    """Backward inside autocast, as the trainer runs it; both forms of the attention."""
    monkeypatch.setattr(channel_attention, "STREAM_BYTES", stream_bytes)
    losses, norms = [], []
    for enabled in (False, True):
        torch.manual_seed(0)
        build = tiny_builder(TASK, norm=False)
        build.recipe = build.recipe.model_copy(update={"bottleneck": Entry(name="allspark", dropout=0.0)})
        method = AllSpark(TASK, build, warmup_epochs=0.0, mask_empty=mask_empty, labeled_color=False).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = method.step(tiny_batch(TASK), Progress(0, 8, 2)).loss
            loss.backward()
        losses.append(loss.detach())
        norms.append(torch.cat([parameter.grad.flatten() for parameter in method.bottleneck.parameters()]).norm())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-2, atol=0)
    torch.testing.assert_close(norms[1], norms[0], rtol=5e-2, atol=0)
