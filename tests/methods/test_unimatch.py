"""UniMatch V2 and V1 against their textbook form, their switches, and what must not matter."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from halfmask.batch import Progress
from halfmask.errors import RecipeError
from halfmask.methods.unimatch import UniMatch
from halfmask.methods.unimatch_v2 import UniMatchV2
from halfmask.models.build import Builder
from halfmask.recipe.sections import ModelRecipe
from halfmask.testing import tiny_batch, tiny_builder, tiny_task
from halfmask.views.channel_dropout import channel_masks
from tests.oracles import unimatch as plain

TASK = tiny_task()
START = Progress(0, 100, 10)


class Dimmed(nn.Module):
    """A strong view that depends on how often it was asked, and on nothing random."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, image: Tensor) -> Tensor:
        self.calls += 1
        return image * (1 - 0.1 * self.calls)


def two_boxes(count: int = 2) -> list[Tensor]:
    boxes = torch.zeros(2, count, 32, 32, dtype=torch.bool)
    boxes[0, 0, 4:20, 8:30] = True
    boxes[1, 1, :15, 3:9] = True
    return list(boxes)


def one_by_one(boxes: list[Tensor]) -> Callable[..., Tensor]:
    left = iter(boxes)
    return lambda shape, device: next(left)


def make(cls, norm=True, **params):
    torch.manual_seed(3)
    method = cls(TASK, tiny_builder(TASK, norm=norm), threshold=0.38, **params).train()
    method.strong = Dimmed()
    return method


def test_unimatch_v2_equals_its_textbook_form():
    for norm in (True, False):
        method, batch = make(UniMatchV2, norm), tiny_batch(TASK)
        with torch.no_grad():
            for parameter in method.student.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))  # teacher and student differ
        boxes = two_boxes()
        method.boxes = one_by_one(boxes)
        (mask,) = channel_masks(2, [12])
        method.dropout = lambda images, widths, device, mask=mask: [mask] * len(widths)
        assert method.one_pass is not norm

        twin = make(UniMatchV2, norm)
        twin.load_state_dict(method.state_dict())
        x_u = batch.unlabeled.image
        expected = plain.unimatch_v2_loss(
            twin.student,
            twin.teacher,
            (batch.labeled.image, batch.labeled.labels),
            (x_u, batch.unlabeled.valid),
            [x_u * 0.9, x_u * 0.8],
            boxes,
            mask,
            0.38,
        )
        loss, logs = method.step(batch, START)
        assert 0 < logs["pseudo/coverage"] < 1
        assert_close(loss, expected)
        loss.backward()
        expected.backward()
        for (name, ours), theirs in zip(method.student.named_parameters(), twin.student.parameters(), strict=True):
            assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)
        # Batch-norm statistics too: the published code passes labeled and strong images apart.
        for (name, ours), theirs in zip(method.student.named_buffers(), twin.student.buffers(), strict=True):
            assert_close(ours, theirs, msg=name)


@pytest.mark.parametrize("partner", ["same_view", "flip"])
def test_unimatch_equals_its_textbook_form(partner):
    # The flipped partner is labeled in the training pass; without batch norm that is its label in evaluation mode.
    norm = partner != "flip"
    method, twin, batch = make(UniMatch, norm, cutmix_partner=partner), make(UniMatch, norm), tiny_batch(TASK, draws=2)
    x_u, x_m = batch.unlabeled.image, batch.partner.image
    boxes = two_boxes()
    method.boxes = one_by_one(boxes)
    masks = [torch.randint(0, 2, (4, 12)) * 2.0 for _ in range(4)]
    method.dropout = lambda features: [x * m[:, :, None, None] for x, m in zip(features, masks, strict=True)]
    if partner == "flip":
        batch.partner.image, batch.partner.valid = x_u.flip(0), batch.unlabeled.valid.flip(0)
        strong = [(x_u * 0.9, x_u.flip(0) * 0.9), (x_u * 0.8, x_u.flip(0) * 0.8)]
    else:
        # Views are asked for in the order partner, own; partner, own.
        strong = [(x_u * 0.8, x_m * 0.9), (x_u * 0.6, x_m * 0.7)]
    expected = plain.unimatch_loss(
        twin.student,
        (batch.labeled.image, batch.labeled.labels),
        (x_u, batch.unlabeled.valid),
        (batch.partner.image, batch.partner.valid),
        strong,
        boxes,
        masks,
        0.38,
    )
    loss, logs = method.step(batch, START)
    assert 0 < logs["pseudo/coverage"] < 1
    assert_close(loss, expected)
    for (name, ours), theirs in zip(method.student.named_buffers(), twin.student.buffers(), strict=True):
        assert_close(ours, theirs, msg=name)


@pytest.mark.parametrize("weight", [0.0, 0.5, 4.0])
def test_terms_are_weighed_without_changing_the_total_weight(weight):
    for cls, draws in ((UniMatchV2, 1), (UniMatch, 2)):
        loss, logs = make(cls, unlabeled_weight=weight).step(tiny_batch(TASK, draws=draws), START)
        assert_close(loss, (logs["loss_sup"] + weight * logs["loss_unsup"]) / (1 + weight))
    logs = make(UniMatch, feature_weight=0.25).step(tiny_batch(TASK, draws=2), START).logs
    assert_close(logs["loss_unsup"], 0.75 * logs["loss_strong"] + 0.25 * logs["loss_features"])


def test_the_teacher_and_the_labeled_images_never_lose_channels():
    batch = tiny_batch(TASK)
    terms = []
    for fill in (0.0, 1.0):  # all channels of all strong views dropped, or none
        method = make(UniMatchV2, norm=False)
        method.boxes = lambda shape, device: torch.zeros(shape, dtype=torch.bool)
        method.dropout = lambda images, widths, device, fill=fill: [torch.full((4, w), fill) for w in widths]
        terms.append(method.step(batch, START).logs)
    assert_close(terms[0]["loss_sup"], terms[1]["loss_sup"])
    assert torch.equal(terms[0]["pseudo/share"], terms[1]["pseudo/share"])
    assert not torch.equal(terms[0]["loss_unsup"], terms[1]["loss_unsup"])


def test_without_dropout_and_boxes_one_view_is_fixmatch():
    method = make(UniMatchV2, norm=False, dropout="none", cutmix=0.0, views=1)
    batch = tiny_batch(TASK)
    logs = method.step(batch, START).logs
    label = method.student(batch.unlabeled.image).detach().softmax(1)
    valid = batch.unlabeled.valid
    keep = valid & (label.amax(1) >= 0.38)
    logits = method.student(batch.unlabeled.image * 0.9)
    each = nn.functional.cross_entropy(logits, label.argmax(1), reduction="none")
    assert_close(logs["loss_unsup"], (each * keep).sum() / valid.sum())
    assert method.smallest_batch == 1


def test_dropout_before_the_classifier_acts_on_the_embedding():
    method = make(UniMatchV2, norm=False, dropout_at="classifier", cutmix=0.0)
    widths_seen = []
    original = method.dropout

    def watched(images, widths, device):
        widths_seen.append((images, widths))
        return [torch.zeros_like(mask) for mask in original(images, widths, device=device)]

    method.dropout = watched
    batch = tiny_batch(TASK)
    logs = method.step(batch, START).logs
    assert widths_seen == [(2, [12])]
    # With the whole embedding dropped, only the classifier's bias is left: every pixel has the same logits.
    logits = method.student.classifier.bias[None, :, None, None].expand(2, -1, 32, 32)
    label = method.student(batch.unlabeled.image).detach().softmax(1)
    keep = batch.unlabeled.valid & (label.amax(1) >= 0.38)
    each = nn.functional.cross_entropy(logits, label.argmax(1), reduction="none")
    assert_close(logs["loss_unsup"], (each * keep).sum() / batch.unlabeled.valid.sum())


def test_who_labels_and_what_is_shipped():
    assert list(make(UniMatchV2).predictors()) == ["teacher", "student"]
    assert list(make(UniMatchV2, teacher="student").predictors()) == ["teacher", "student"]  # evaluated only
    assert list(make(UniMatch).predictors()) == ["student"]
    assert list(make(UniMatch, teacher="ema").predictors()) == ["teacher", "student"]
    for cls, params in ((UniMatchV2, {}), (UniMatch, {"teacher": "ema", "cutmix_partner": "flip"})):
        method, other = make(cls, **params), make(cls, **params)
        with torch.no_grad():
            other.teacher.model.classifier.bias[1] += 100  # a teacher that knows one class only
        shares = [m.step(tiny_batch(TASK), START).logs["pseudo/share"] for m in (method, other)]
        assert not torch.equal(*shares)
        assert shares[1].tolist() == [0, 1, 0]


def test_evaluation_mode_labels_do_not_depend_on_the_labeled_images():
    changed = tiny_batch(TASK, draws=1)
    changed.labeled.image = torch.rand_like(changed.labeled.image)
    for mode, same in (("eval", True), ("train", False)):
        coverage = [
            make(UniMatch, label_mode=mode, cutmix_partner="flip").step(batch, START).logs["pseudo/coverage"]
            for batch in (tiny_batch(TASK), changed)
        ]
        assert torch.equal(*coverage) is same


def test_the_partner_is_asked_for_only_where_it_is_used():
    assert (UniMatchV2(TASK, tiny_builder(TASK)).draws, make(UniMatchV2, cutmix_partner="shuffle").draws) == (1, 2)
    assert make(UniMatchV2, cutmix_partner="shuffle", cutmix=0.0).draws == 1
    method = make(UniMatch)
    assert (method.draws, method.draws_share_images, method.smallest_batch) == (2, True, 1)
    method = make(UniMatch, cutmix_partner="shuffle")
    assert (method.draws, method.draws_share_images, method.smallest_batch) == (2, False, 1)
    method = make(UniMatch, cutmix_partner="flip")
    assert (method.draws, method.smallest_batch) == (1, 2)


def test_frozen_parameters_stay_out_of_the_optimizer_and_unchanged():
    section = {"encoder": {"name": "resnet", "depth": 18, "width": 8, "blocks": [1, 1, 1, 1], "frozen": True}}
    build = Builder(
        ModelRecipe.model_validate({**section, "decoder": {"name": "segformer", "embedding": 8}}), TASK, crop=32
    )
    method = UniMatchV2(TASK, build, threshold=0.0).train()
    (encoder, rest) = method.parameter_groups()["main"]
    assert encoder.params == []
    assert len(rest.params) > 0
    before = [p.clone() for p in method.student.encoder.state_dict().values()]
    loss = method.step(tiny_batch(TASK), START).loss
    loss.backward()
    assert all(p.grad is None for p in method.student.encoder.parameters())
    assert all(torch.equal(*pair) for pair in zip(before, method.student.encoder.state_dict().values(), strict=True))
    assert not method.student.encoder.training


MODELS = {
    "smp unet": {"name": "smp", "arch": "unet", "encoder": {"name": "resnet18"}},
    "timm convnext + segformer": {
        "encoder": {"name": "timm", "model": "test_convnext"},
        "decoder": {"name": "segformer", "embedding": 8},
    },
    "dinov3 + dpt": {
        "encoder": {"name": "dinov3", "dim": 24, "heads": 2},
        "decoder": {"name": "dpt", "features": 8, "projections": [8, 8, 8, 8]},
    },
    "timm vit + dpt": {
        "encoder": {"name": "timm", "model": "test_vit"},
        "decoder": {"name": "dpt", "features": 8, "projections": [8, 8, 8, 8]},
    },
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cls", [UniMatchV2, UniMatch])
def test_any_model_works(cls, name):
    section = MODELS[name]
    build = Builder(ModelRecipe.model_validate(section), TASK, crop=32)
    method = cls(TASK, build, threshold=0.0).train()
    batch = tiny_batch(TASK, draws=method.draws)
    if "smp" in name:
        for samples in (batch.labeled, batch.unlabeled, batch.partner):
            if samples is not None:
                samples.image = samples.image.repeat(1, 1, 2, 2)
                samples.valid = samples.valid.repeat(1, 2, 2)
                samples.target = None if samples.target is None else samples.target.repeat(1, 2, 2)
    loss = method.step(batch, START).loss
    loss.backward()
    missed = [key for key, p in method.student.named_parameters() if p.requires_grad and p.grad is None]
    assert missed == []
    assert loss.isfinite()


def test_dpt_refuses_an_encoder_without_four_taps():
    section = {"encoder": {"name": "timm", "model": "test_vit", "out_indices": [1]}, "decoder": {"name": "dpt"}}
    with pytest.raises(RecipeError, match=r"decoder dpt needs four maps, but the encoder gives 1.*Use decoder"):
        UniMatchV2(TASK, Builder(ModelRecipe.model_validate(section), TASK, crop=32))


@pytest.mark.parametrize("cls", [UniMatchV2, UniMatch])
def test_an_all_ignored_batch_teaches_nothing_and_breaks_nothing(cls):
    method = make(cls)
    batch = tiny_batch(TASK, draws=method.draws)
    batch.labeled.target = torch.full_like(batch.labeled.labels, TASK.ignore_index)
    for samples in (batch.unlabeled, batch.partner):
        if samples is not None:
            samples.valid = torch.zeros_like(samples.valid)
    loss, logs = method.step(batch, START)
    loss.backward()
    assert loss == 0
    assert logs["pseudo/coverage"] == 0
    assert all(bool((p.grad == 0).all()) for p in method.student.parameters())
