"""GTA-Seg: the assistant's loss against the recorded one, and who learns from what."""

import torch
from torch.nn.functional import cross_entropy, interpolate
from torch.testing import assert_close

from halfmask.batch import Progress
from halfmask.losses.pseudo_labels import pseudo_label_loss
from halfmask.methods.gta_seg import GtaSeg
from halfmask.teaching.weighting import confident_share
from halfmask.testing import tiny_batch, tiny_builder, tiny_task

TASK = tiny_task()
LATE = Progress(10, 20, 5)


def made(**params) -> GtaSeg:
    torch.manual_seed(2)
    return GtaSeg(TASK, tiny_builder(TASK), **params)


def test_the_loss_is_the_recorded_one(golden):
    data = golden("peers/gta_seg")
    logits = data["student_logits"].requires_grad_()
    label = data["target"].long()
    valid = label != 255
    keep, weight = confident_share(data["teacher_logits"].softmax(1).amax(1), valid, 80.0)
    assert torch.equal(label.masked_fill(~keep, 255), data["target_after"].long())
    loss = pseudo_label_loss(logits, label, keep, valid=valid, divisor="weight", weight=weight)
    assert_close(loss, data["loss"], rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert_close(gradient, data["grad"], rtol=1e-5, atol=1e-6)


def test_pseudo_labels_reach_the_assistant_only_and_labels_the_student_only():
    method = made(unlabeled_weight=0.7)
    updates = method.updates(tiny_batch(TASK), LATE)
    first = next(updates)
    assert first.group == "assistant"
    assert_close(first.output.loss, 0.7 * first.output.logs["loss_unsup"])
    first.output.loss.backward()
    assert all(parameter.grad is not None for parameter in method.assistant.parameters())
    assert all(parameter.grad is None for parameter in method.student.parameters())
    method.zero_grad()
    second = next(updates)
    assert second.group == "main"
    second.output.loss.backward()
    assert all(parameter.grad is None for parameter in method.assistant.parameters())
    assert all(parameter.grad is not None for parameter in method.student.parameters())
    assert list(updates) == []


def test_features_go_over_and_the_prediction_head_stays():
    method = made(assistant_decay=0.75)
    with torch.no_grad():
        for parameter in method.assistant.parameters():
            parameter.add_(1.0)
    before = {name: parameter.clone() for name, parameter in method.student.named_parameters()}
    updates = method.updates(tiny_batch(TASK), LATE)
    next(updates)
    next(updates)
    theirs = dict(method.assistant.named_parameters())
    for name, parameter in method.student.named_parameters():
        moved = 0.75 * before[name] + 0.25 * theirs[name]
        assert_close(parameter, before[name] if name.startswith("classifier.") else moved)


def test_all_networks_are_the_same_until_the_supervised_epochs_end():
    torch.manual_seed(2)
    method = GtaSeg(TASK, tiny_builder(TASK, norm=True))
    (only,) = method.updates(tiny_batch(TASK), Progress(4, 20, 5))
    assert only.group == "main"
    method.after_update(Progress(4, 20, 5))
    student = method.student.state_dict()
    for other in (method.assistant, method.teacher.model):
        assert all(torch.equal(tensor, student[name]) for name, tensor in other.state_dict().items())
    assert any("running_mean" in name and tensor.any() for name, tensor in student.items())
    with torch.no_grad():
        method.assistant.classifier.weight.add_(1.0)
    method.after_update(Progress(5, 20, 5))  # the first step with pseudo-labels: the assistant keeps what it learned
    assert not torch.equal(method.assistant.classifier.weight, method.student.classifier.weight)


def test_optimizers_share_nothing():
    groups = made().parameter_groups()
    owners = {key: {id(one) for group in value for one in group.params} for key, value in groups.items()}
    assert set(owners) == {"main", "assistant"}
    assert not owners["main"] & owners["assistant"]


def test_the_auxiliary_head_is_the_students_and_learns_from_labels():
    method = made(aux_weight=0.4).double().eval()
    batch = tiny_batch(TASK)
    batch.labeled.image, batch.unlabeled.image = batch.labeled.image.double(), batch.unlabeled.image.double()
    x_l, y_l = batch.labeled.image, batch.labeled.labels
    inside = method.aux(method.student.encode(x_l)[-2])
    aux = interpolate(inside, size=y_l.shape[1:], mode="bilinear", align_corners=True)
    own, more = (cross_entropy(logits, y_l, ignore_index=255) for logits in (method.student(x_l), aux))
    (warm,) = method.updates(batch, Progress(0, 20, 5))
    assert_close(warm.output.loss, own + 0.4 * more)

    updates = method.updates(batch, LATE)
    next(updates).output.loss.backward()
    assert all(parameter.grad is None for parameter in method.aux.parameters())
    before = [parameter.clone() for parameter in method.aux.parameters()]
    second = next(updates)  # the assistant's features went over
    assert_close(list(method.aux.parameters()), before)
    second.output.loss.backward()
    assert all(parameter.grad is not None for parameter in method.aux.parameters())

    groups = method.parameter_groups()
    owned = {key: {id(one) for group in value for one in group.params} for key, value in groups.items()}
    heads = {id(one) for one in method.aux.parameters()}
    assert heads <= owned["main"]
    assert not heads & owned["assistant"]
    assert not any("aux" in name for name, _ in method.predictors()["teacher"].named_parameters())
    assert made().aux is None
