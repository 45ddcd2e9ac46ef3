"""AugSeg: mixing, confidence and loss against the recorded ones, and a whole step against a plain one."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from halfmask.batch import Progress
from halfmask.methods.augseg import AugSeg, image_confidence
from halfmask.testing import tiny_batch, tiny_builder, tiny_task
from halfmask.views.boxes import centered

TASK = tiny_task()


def test_the_mixture_is_the_recorded_one(golden):
    data = golden("peers/augseg")
    label, confidence = data["pseudo"].long(), data["conf_map"]
    assert_close(image_confidence(data["teacher_logits"]), data["image_conf"], rtol=1e-5, atol=1e-6)

    method = AugSeg(TASK, tiny_builder(TASK))
    rows, columns, rows_v, columns_v = data["draw_centres"]
    boxes = [
        centered(share, torch.stack(center, dim=1), (32, 32))
        for share, center in zip(data["draw_beta"], ((rows, columns), (rows_v, columns_v)), strict=True)
    ]
    method._draws = lambda valid: (data["draw_perm"].long(), data["draw_inject"], boxes)
    everywhere = torch.ones_like(label, dtype=torch.bool)
    given = data["label_l"].long()
    found = method._mixed(
        (data["img_u"], label, confidence, everywhere),
        (data["img_l"], given, torch.ones_like(confidence), given != 255),
        data["image_conf"],
    )
    assert torch.equal(found[0], data["mixed_img"])
    assert torch.equal(found[1], data["mixed_label"].long())
    assert torch.equal(found[2], data["mixed_conf"])
    assert torch.equal(found[3], data["mixed_label"] != 255)


def test_a_step_is_the_plain_one():
    batch = tiny_batch(TASK)
    batch.labeled.image, batch.unlabeled.image = batch.labeled.image.double(), batch.unlabeled.image.double()
    batch.labeled.target[0, 3:6] = 255
    batch.unlabeled.valid[1, :2] = False
    torch.manual_seed(1)
    method = AugSeg(TASK, tiny_builder(TASK), threshold=0.4, unlabeled_weight=2.0).double().eval()
    method.strong = nn.Identity()
    box, other = torch.zeros_like(batch.unlabeled.valid), torch.zeros_like(batch.unlabeled.valid)
    box[:, 1:9, 2:12], other[:, 4:12, 4:12] = True, True
    draws = torch.tensor([2.0, -1.0], dtype=torch.float64)  # the first image is surely unsure, the second never
    method._draws = lambda valid: (torch.tensor([1, 0]), draws, [box, other])
    found = method.step(batch, Progress(0, 10, 5))

    net, x_l, x_u = method.student, batch.labeled, batch.unlabeled
    logits = net(x_u.image).detach()
    confidence, label = logits.softmax(1).max(1)
    image, copies, copied = x_u.image.clone(), x_u.image.clone(), label.masked_fill(~x_u.valid, 255)
    label, sure = copied.clone(), confidence.clone()
    copies[0, :, 1:9, 2:12], copied[0, 1:9, 2:12] = x_l.image[1, :, 1:9, 2:12], x_l.target[1, 1:9, 2:12]
    sure[0, 1:9, 2:12] = 1.0
    image[0, :, 4:12, 4:12], image[1, :, 4:12, 4:12] = copies[1, :, 4:12, 4:12], copies[0, :, 4:12, 4:12]
    label[0, 4:12, 4:12], label[1, 4:12, 4:12] = copied[1, 4:12, 4:12], copied[0, 4:12, 4:12]
    confidence[0, 4:12, 4:12], confidence[1, 4:12, 4:12] = sure[1, 4:12, 4:12], sure[0, 4:12, 4:12]
    losses = F.cross_entropy(net(image), label, ignore_index=255, reduction="none")
    loss_l = F.cross_entropy(net(x_l.image), x_l.target, ignore_index=255)
    loss_u = (losses * (confidence >= 0.4)).sum() / label.numel()
    assert_close(found.logs["loss_sup"], loss_l)
    assert_close(found.logs["loss_unsup"], loss_u)
    assert_close(found.loss, loss_l + 2.0 * loss_u)
