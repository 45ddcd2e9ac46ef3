"""Contrastive losses against the recorded ones, and where nothing can be compared."""

import torch
from torch.testing import assert_close

from halfmask.losses.contrast import anchor_contrast, local_density, queue_contrast
from halfmask.teaching.queues import ClassQueues


def test_contrast_with_a_queue_is_that_of_pixcon(golden):
    data = golden("peers/pixcon")
    queues = ClassQueues(6, 10, 8)
    queues.enqueue(data["bank_feat"], data["bank_label"].long())
    anchors = data["anchor2"].requires_grad_()
    loss = queue_contrast(anchors, data["anchor_label2"].long(), queues.slots, queues.filled, temperature=0.1)
    assert_close(loss, data["loss"], rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(loss, anchors)
    assert_close(gradient, data["grad_anchor2"], rtol=1e-5, atol=1e-6)


def test_contrast_of_thin_and_dense_features_is_that_of_dgcl(golden):
    data = golden("peers/dgcl")
    data["rep"].requires_grad_()
    label, (rep, feat) = data["label"].flatten(), (data[key].movedim(1, -1).flatten(0, 2) for key in ("rep", "feat"))
    losses = []
    for number in range(1, 4):
        own = label == number
        density = local_density(feat[own], data["mem_feat"][number], neighbors=(4, 8, 16))
        if number == 1:
            assert_close(density, data["density_class1"], rtol=1e-5, atol=1e-6)
        thin, dense = density.topk(20, largest=False).indices, density.topk(10).indices
        remembered = data["mem_proj"][number][data["mem_density"][number].topk(10).indices]
        positive = torch.cat((rep[own][dense], remembered)).mean(0)
        others = rep[(label != number) & (label != 255)].expand(20, -1, -1)
        losses.append(anchor_contrast(rep[own][thin], positive, others, temperature=0.5))
    loss = torch.stack(losses).mean()
    assert_close(loss, data["loss"], rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(loss, data["rep"])
    assert_close(gradient, data["grad"], rtol=1e-5, atol=1e-6)


def test_anchors_without_a_positive_or_out_of_use_do_not_count():
    queues = ClassQueues(3, 4, 2)
    anchors = torch.nn.functional.normalize(torch.randn(4, 2)).requires_grad_()
    empty = queue_contrast(anchors, torch.tensor([0, 1, 2, 3]), queues.slots, queues.filled, temperature=0.1)
    empty.backward()
    assert empty == 0
    assert not anchors.grad.any()

    queues.enqueue(torch.nn.functional.normalize(torch.randn(3, 2)), torch.tensor([0, 0, 1]))
    some = queue_contrast(anchors, torch.tensor([0, 1, 2, 3]), queues.slots, queues.filled, temperature=0.1)
    alone = queue_contrast(anchors[:2], torch.tensor([0, 1]), queues.slots, queues.filled, temperature=0.1)
    assert_close(some, alone)


def test_contrast_of_anchors_falls_as_they_turn_to_the_positive():
    positive, negatives = torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).expand(1, 2, 2)
    far, near = (
        anchor_contrast(torch.tensor([[x, y]]), positive, negatives, 0.5).item() for x, y in ((0.0, 1.0), (1.0, 0.1))
    )
    assert near < far
    assert_close(
        anchor_contrast(torch.tensor([[0.0, 3.0]]), positive, negatives, temperature=0.5),
        torch.tensor([0.0, 2.0, 0.0]).logsumexp(0),  # cosines 0, 1 and 0
    )
