"""PrevMatch, RankMatch and PixCon: whole steps against plain ones written from the papers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from halfmask.batch import Batch, Progress
from halfmask.losses.rank import rank_consistency
from halfmask.methods.pixcon import PixCon
from halfmask.methods.prevmatch import PrevMatch
from halfmask.methods.rankmatch import RankMatch
from halfmask.task import Task
from halfmask.testing import tiny_batch, tiny_builder, tiny_task

TASK = tiny_task()
HALF = Progress(5, 10, 5)  # half-way: the weight of the past is 1


def batch_of(draws: int) -> Batch:
    batch = tiny_batch(TASK, draws=draws)
    for samples in (batch.labeled, batch.unlabeled, batch.partner):
        if samples is not None:
            samples.image = samples.image.double()
    batch.unlabeled.valid[0, :3] = False
    batch.labeled.target[1, :, :2] = 255
    return batch


def made(cls, **params):
    torch.manual_seed(3)
    method = cls(TASK, tiny_builder(TASK), **params).double().eval()
    method.strong = nn.Identity()
    if cls is not PixCon:
        method.dropout = lambda maps: [2 * x for x in maps]
    return method


def box_of(batch: Batch) -> Tensor:
    box = torch.zeros_like(batch.unlabeled.valid)
    box[:, 2:9, 4:11] = True
    return box


def supervised(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target, ignore_index=255)


def mixed(box: Tensor, own: Tensor, other: Tensor) -> Tensor:
    inside = box[:, None] if own.dim() == 4 else box
    return torch.where(inside, other, own)


def unlabeled(logits: Tensor, target: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Mean over valid pixels, of a target given by logits."""
    confidence, label = target.softmax(1).max(1)
    keep = valid & (confidence >= threshold)
    return (F.cross_entropy(logits, label, reduction="none") * keep).sum() / valid.sum()


def dropped(net: nn.Module, image: Tensor) -> Tensor:
    return net.classify(net.embed([2 * x for x in net.encode(image)]), image.shape[-2:])


def test_a_step_of_prevmatch_adds_the_past_as_a_second_teacher():
    batch = batch_of(2)
    method = made(PrevMatch, threshold=0.4, previous_threshold=0.35)
    box = box_of(batch)
    method.boxes = lambda shape, device: box
    net, x_0, x_1 = method.student, batch.unlabeled, batch.partner

    def expected(target: nn.Module, threshold: float) -> Tensor:
        own, other = target(x_0.image).detach(), target(x_1.image).detach()
        z = net(mixed(box, x_0.image, x_1.image))
        strong = unlabeled(z, mixed(box, own, other), mixed(box, x_0.valid, x_1.valid), threshold)
        return strong / 2 + unlabeled(dropped(net, x_0.image), own, x_0.valid, threshold) / 2

    loss_l = supervised(net(batch.labeled.image), batch.labeled.target)
    first = method.step(batch, HALF)
    assert_close(first.loss, (loss_l + expected(net, 0.4)) / 2)  # nothing in the pool yet

    method.after_evaluation({"val/miou": 0.3}, HALF)
    past = method.pool.models[0]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    loss_l = supervised(net(batch.labeled.image), batch.labeled.target)
    total = loss_l + expected(net, 0.4) + expected(past, 0.35)
    assert_close(method.step(batch, HALF).loss, total / 3)
    quarter = Progress(2, 8, 4)
    total = loss_l + expected(net, 0.4) + 0.5 * expected(past, 0.35)
    assert_close(method.step(batch, quarter).loss, total / 2.5)


def test_only_better_networks_enter_the_pool():
    method = made(PrevMatch, pool=2)
    for score, size in ((0.2, 1), (0.1, 1), (0.2, 1), (0.4, 2), (0.5, 2)):
        method.after_evaluation({"val/miou": score}, HALF)
        assert len(method.pool) == size


def test_without_validation_images_each_validation_time_fills_the_pool():
    method = made(PrevMatch, pool=2)
    for size in (1, 2, 2):
        method.after_evaluation({}, HALF)
        assert len(method.pool) == size


def test_a_step_of_rankmatch_is_unimatch_and_the_rank_loss():
    batch = batch_of(2)
    method = made(RankMatch, threshold=0.4, rank_weight=0.7, agents=5, top=3)
    box = box_of(batch)
    method.boxes = lambda shape, device: box
    places = torch.tensor([1, 2])
    method.rank = lambda weak, strong: rank_consistency(weak, strong, agents=5, top=3, first=places)
    found = method.step(batch, HALF)

    net, x_0, x_1 = method.student, batch.unlabeled, batch.partner
    own, other = net(x_0.image).detach(), net(x_1.image).detach()
    image = mixed(box, x_0.image, x_1.image)
    strong = unlabeled(net(image), mixed(box, own, other), mixed(box, x_0.valid, x_1.valid), 0.4)
    loss_u = strong / 2 + unlabeled(dropped(net, x_0.image), own, x_0.valid, 0.4) / 2
    loss_l = supervised(net(batch.labeled.image), batch.labeled.target)
    weak, given, g = (net.embed(net.encode(x)) for x in (x_0.image, x_1.image, image))
    small = F.interpolate(box[:, None].double(), size=g.shape[-2:])[:, 0].bool()
    assert 0 < small.sum() < small.numel()
    rank = rank_consistency(mixed(small, weak, given), g, agents=5, top=3, first=places)
    assert rank > 0
    assert_close(found.loss, (loss_l + loss_u) / 2 + 0.7 * rank)


def test_pixcon_without_contrast_is_unimatch_v2_and_with_it_compares_what_was_seen_before():
    batch = batch_of(1)
    method = made(PixCon, threshold=0.4, contrast_weight=0.5, width=6, queue=200, anchors_per_class=1000)
    box = box_of(batch)
    method.boxes = lambda shape, device: box
    method.dropout = lambda images, widths, device: [torch.ones(2 * images, width) for width in widths]

    net, x_u = method.student, batch.unlabeled
    with torch.no_grad():  # so that it predicts every class
        net.classifier.bias -= net(batch.labeled.image).mean((0, 2, 3))
        method.teacher.model.load_state_dict(net.state_dict())
    batch.labeled.target = net(batch.labeled.image).argmax(1)  # most are right, of several classes
    batch.labeled.target[:, :, ::3] = (batch.labeled.target[:, :, ::3] + 1) % TASK.n_classes
    target = net(x_u.image).detach()  # the teacher starts as the student
    image, label = mixed(box, x_u.image, x_u.image.flip(0)), mixed(box, target, target.flip(0))
    loss_u = unlabeled(net(image), label, mixed(box, x_u.valid, x_u.valid.flip(0)), 0.4)
    logits = net(batch.labeled.image)
    base = (supervised(logits, batch.labeled.target) + loss_u) / 2
    assert_close(method.step(batch, HALF).loss, base)  # empty queues

    # The second step compares the same pixels with themselves.
    z = net.embed(net.encode(batch.labeled.image))
    vectors = F.normalize(method.projection(z), dim=1).movedim(1, -1).reshape(-1, 6)
    truth, predicted = (
        F.interpolate(labels[:, None].double(), size=z.shape[-2:])[:, 0].long().flatten()
        for labels in (batch.labeled.target, logits.argmax(1))
    )
    right = (truth == predicted) & (truth != 255)
    assert len(truth[right].unique()) > 1
    method.most_anchors = int(right.sum())  # empty places come last
    anchors, classes = vectors[right], truth[right]
    similarity = anchors @ anchors.detach().T / 0.1
    same = classes[:, None] == classes
    terms = similarity.logsumexp(1) - similarity.masked_fill(~same, -torch.inf).logsumexp(1)
    found = method.step(batch, HALF)
    assert terms.mean() > 0.1
    assert_close(found.logs["loss_contrast"].double(), terms.mean(), rtol=1e-5, atol=1e-6)
    assert_close(found.loss, base + 0.5 * found.logs["loss_contrast"])


def test_pixcon_chooses_and_remembers_the_recorded_pixels_and_its_loss_reaches_their_features(golden, monkeypatch):
    data, task = golden("peers/pixcon"), Task("segmentation", tuple(f"class {number}" for number in range(6)))
    method = PixCon(task, tiny_builder(task), width=8, queue=10)
    method.projection = nn.Identity()
    monkeypatch.setattr(torch, "rand", lambda count, device: torch.arange(count) / count)  # pixels keep their order
    for step in range(3):
        # Where nothing is known the recorded prediction is no class either.
        predicted, label = data[f"pred{step}"].long().clamp(max=5), data[f"label{step}"].long()
        feature, logits = data[f"feat{step}"].requires_grad_(), F.one_hot(predicted, 6).movedim(-1, 1).float()
        before = method.queues.slots[method.queues.filled]
        loss = method._contrast(feature, logits, label)
    assert_close(before, data["bank_feat"][data["bank_label"].argsort(stable=True)], rtol=0, atol=1e-6)
    assert_close(loss, data["loss"], rtol=1e-5, atol=0)

    # Recorded is the gradient of unit vectors; what lies along a vector is lost in scaling it to length 1.
    pixels = (label == predicted).flatten().nonzero()[:, 0]
    pixels = pixels[label.flatten()[pixels].argsort(stable=True)]
    (gradient,) = torch.autograd.grad(loss, feature)
    unit, recorded = data["anchor2"], data["grad_anchor2"]
    expected = torch.zeros(72, 8).index_copy(0, pixels, recorded - (recorded * unit).sum(1, keepdim=True) * unit)
    assert_close(gradient.movedim(1, -1).flatten(0, 2), expected, rtol=1e-5, atol=1e-6)
