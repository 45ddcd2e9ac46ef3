"""What each switch of UniMatch V2 and V1 does to masks, labels, thresholds and the average."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from halfmask.batch import Progress
from halfmask.methods import unimatch_v2
from halfmask.methods.unimatch import UniMatch
from halfmask.methods.unimatch_v2 import UniMatchV2
from halfmask.testing import tiny_batch, tiny_builder, tiny_task
from tests.oracles import pseudo as plain

TASK = tiny_task()
START = Progress(0, 1000, 10)
IMAGES = 5  # odd: half of them is rounded


def make(cls, norm=False, **params):
    return cls(TASK, tiny_builder(TASK, norm=norm), **params).train()


@pytest.fixture
def masks_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Tensor]]:
    """Run one step; give the factors by which its strong images were scaled, (2, IMAGES, D) for each map."""

    def run(**params) -> list[Tensor]:
        seen = []

        def spy(x: Tensor, mask: Tensor) -> Tensor:
            seen.append(mask)
            return scale_channels(x, mask)

        monkeypatch.setattr(unimatch_v2, "scale_channels", spy)
        make(UniMatchV2, **params).step(tiny_batch(TASK, size=IMAGES), START)
        assert all((mask[:IMAGES] == 1).all() for mask in seen)  # labeled images, in the same pass
        return [mask[IMAGES:].unflatten(0, (-1, IMAGES)) for mask in seen]

    scale_channels = unimatch_v2.scale_channels
    return run


def undropped(view: Tensor) -> Tensor:
    return (view == 1).all(1)


def test_views_lose_complementary_channels_the_same_in_all_maps(masks_of):
    masks = masks_of()
    assert len(masks) == 4
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    first, second = masks[0]
    assert torch.equal(second, 2 - first)
    assert undropped(first).sum() == IMAGES // 2
    assert set(first[~undropped(first)].unique().tolist()) == {0, 2}


def test_independent_dropout_draws_a_mask_for_each_view(masks_of):
    masks = masks_of(dropout="independent")
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    first, second = masks[0]
    assert ((first == 0) & (second == 0)).any()  # never with complementary masks
    assert torch.equal(undropped(first), undropped(second))
    assert undropped(first).sum() == IMAGES // 2


def test_dropout_of_levels_draws_complementary_masks_for_each_map(masks_of):
    masks = masks_of(dropout_at="levels")
    assert len(masks) == 4
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 4
    for first, second in masks:
        assert torch.equal(second, 2 - first)
        assert torch.equal(undropped(first), undropped(masks[0][0]))


def test_dropout_before_the_classifier_is_complementary_too(masks_of):
    (mask,) = masks_of(dropout_at="classifier")
    assert torch.equal(mask[1], 2 - mask[0])


def test_without_dropout_nothing_is_scaled(masks_of):
    assert masks_of(dropout="none") == []


@pytest.mark.parametrize("keep", ["exact", "bernoulli"])
def test_the_number_of_undropped_images_is_half_or_left_to_chance(keep):
    method = make(UniMatchV2, dropout_keep=keep)
    counts = {int(undropped(method.dropout(IMAGES, [12])[0][:IMAGES]).sum()) for _ in range(60)}
    assert (counts == {IMAGES // 2}) is (keep == "exact")


@pytest.mark.parametrize(
    ("params", "smallest"),
    [
        ({}, 2),
        ({"dropout": "none"}, 2),  # one image would be its own partner
        ({"dropout": "none", "cutmix_partner": "shuffle"}, 1),
        ({"dropout": "none", "cutmix": 0.0}, 1),
        ({"cutmix_partner": "shuffle"}, 2),  # one image would always lose channels
        ({"cutmix": 0.0}, 2),
    ],
)
def test_a_batch_of_one_image_is_allowed_where_images_need_no_others(params, smallest):
    assert make(UniMatchV2, **params).smallest_batch == smallest


@pytest.mark.parametrize("cls", [UniMatchV2, UniMatch])
@pytest.mark.parametrize(("step", "decay"), [(0, 0.0), (1, 0.5), (900, 0.75)])
def test_the_average_forgets_at_the_rate_of_ema_decay_after_a_warm_up(cls, step, decay):
    method = make(cls, teacher="ema", ema_decay=0.75)
    before = [p.clone() for p in method.teacher.model.parameters()]
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(torch.randn_like(parameter))
    method.after_update(Progress(step, 1000, 10))
    moved = zip(method.teacher.model.parameters(), before, method.student.parameters(), strict=True)
    for teacher, old, student in moved:
        assert_close(teacher, decay * old + (1 - decay) * student)


@pytest.mark.parametrize("cls", [UniMatchV2, UniMatch])
def test_a_confidence_equal_to_the_threshold_teaches(cls):
    method = make(cls, teacher="ema", cutmix_partner="flip", threshold=1.0)
    with torch.no_grad():
        method.teacher.model.classifier.bias[1] += 1000  # its softmax is exactly 1
    logs = method.step(tiny_batch(TASK), START).logs
    assert logs["pseudo/coverage"] == 1
    assert logs["loss_unsup"] > 0


@pytest.mark.parametrize(
    ("cls", "params"),
    [(UniMatchV2, {"teacher": "student"}), (UniMatch, {"label_mode": "eval", "cutmix_partner": "flip"})],
)
def test_a_student_labels_in_evaluation_mode_and_keeps_its_statistics(cls, params):
    method, twin = make(cls, norm=True, threshold=0.4, **params), make(cls, norm=True)
    for _ in range(3):
        method.student(torch.rand(4, 3, 32, 32))  # statistics that are not those of the batch
    twin.student.load_state_dict(method.student.state_dict())
    batch = tiny_batch(TASK)
    logs = method.step(batch, START).logs

    with torch.no_grad():
        confidence, label = twin.student.eval()(batch.unlabeled.image).softmax(1).max(1)
    expected = plain.pseudo_logs(label, confidence, confidence >= 0.4, batch.unlabeled.valid, 3)
    assert 0 < expected["pseudo/coverage"] < 1
    for name, value in expected.items():
        assert_close(logs[name], value, equal_nan=True, msg=name)
    assert method.student.training
    # Two training passes: labeled images (UniMatch: with the weak ones), strong images.
    counters = [b for name, b in method.student.named_buffers() if name.endswith("num_batches_tracked")]
    assert len(counters) > 0
    assert {int(counter) for counter in counters} == {3 + 2}


@pytest.mark.parametrize(("params", "factor", "p"), [({}, 2.0, 0.5), ({"feature_dropout": 0.2}, 1.25, 0.2)])
def test_unimatch_drops_the_given_part_of_the_channels_half_by_default(params, factor, p):
    (dropped,) = make(UniMatch, **params).dropout([torch.ones(64, 32, 2, 3)])
    assert set(dropped.unique().tolist()) == {0.0, factor}
    assert abs((dropped == 0).float().mean() - p) < 4 * (p * (1 - p) / (64 * 32)) ** 0.5
