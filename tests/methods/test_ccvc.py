"""CCVC: both losses against the recorded ones, and a whole step against a plain one."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from halfmask.batch import Progress
from halfmask.errors import RecipeError
from halfmask.methods.ccvc import Ccvc, discrepancy
from halfmask.models.bottlenecks.mapping import Mapping
from halfmask.models.build import Builder
from halfmask.models.encoders._encoder import Encoder
from halfmask.recipe.read import ModelRecipe
from halfmask.task import Task
from halfmask.testing import tiny_batch, tiny_builder, tiny_task

TASK = tiny_task()
DEEPLAB = {
    "encoder": {"name": "resnet", "depth": 18, "width": 8, "weights": None},
    "decoder": {"name": "deeplabv3plus", "rates": [1], "aspp": 6, "low": 4, "embedding": 8},
}


def builder(task: Task = TASK) -> Builder:
    return Builder(ModelRecipe.model_validate(DEEPLAB), task, crop=32)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_the_consistency_is_the_recorded_one(golden, kind):
    data = golden("peers/ccvc")
    method = Ccvc(TASK, builder(), threshold=0.9, conflict_weight=2.0, conflict_on=kind)
    first, second = data["logits1"].requires_grad_(), data["logits2"].requires_grad_()
    valid = data["ignore_mask"] != 255
    loss = method._consistency(first, second, first.detach(), second.detach(), valid)
    assert_close(loss, data["loss_con" if kind == "logits" else "prob_loss_con"], rtol=1e-5, atol=0)
    if kind == "logits":
        gradients = torch.autograd.grad(loss, (first, second))
        assert_close(gradients, (data["grad1"], data["grad2"]), rtol=1e-5, atol=1e-6)


def test_the_discrepancy_is_the_recorded_one(golden):
    data = golden("peers/ccvc")
    first, second = data["feat1"].requires_grad_(), data["feat2"].requires_grad_()
    loss = discrepancy(first, second)
    assert_close(loss, data["dis_loss"], rtol=1e-5, atol=0)
    gradients = torch.autograd.grad(loss, (first, second))
    assert_close(gradients, (data["dis_grad1"], data["dis_grad2"]), rtol=1e-5, atol=1e-6)


def test_equal_features_cost_two_and_opposite_ones_nothing():
    features = torch.randn(2, 4, 3, 3)
    assert discrepancy(features, 2 * features) == pytest.approx(2.0)
    assert discrepancy(features, -features) == pytest.approx(0.0, abs=1e-6)


def test_a_step_is_the_weighted_sum_of_its_terms():
    torch.manual_seed(0)
    method = Ccvc(TASK, builder(), threshold=0.0).double().eval()
    batch = tiny_batch(TASK)
    batch.labeled.image, batch.unlabeled.image = batch.labeled.image.double(), batch.unlabeled.image.double()
    batch.unlabeled.valid[0, :3] = False
    found = method.step(batch, Progress(0, 10, 5))

    nets, x_u, valid = (method.net_a, method.net_b), batch.unlabeled.image, batch.unlabeled.valid
    logits = [net(x_u) for net in nets]
    labels = [z.argmax(1) for z in logits]
    conflict = labels[0] != labels[1]
    assert conflict.any()
    terms = [
        (F.cross_entropy(z, label, reduction="none") * (1 + conflict.double()) * valid).sum() / valid.sum()
        for z, label in zip(logits, reversed(labels), strict=True)
    ]
    loss_l = sum(F.cross_entropy(net(batch.labeled.image), batch.labeled.target, ignore_index=255) for net in nets) / 2
    fused = [[net.decoder.fuse(net.encode(image)) for net in nets] for image in (batch.labeled.image, x_u)]
    loss_dis = sum(1 + F.cosine_similarity(*both, dim=1).mean() for both in fused) / 2  # labeled, unlabeled
    assert_close(found.logs["loss_discrepancy"].double(), loss_dis, rtol=1e-5, atol=0)
    assert_close(found.logs["loss_unsup"], sum(terms) / 2)
    assert_close(found.loss, 5 * loss_l + 2 * sum(terms) / 2 + loss_dis, rtol=1e-6, atol=1e-6)


def test_strong_mixed_views_are_taught_by_labels_of_evaluation_mode():
    method = Ccvc(TASK, builder(), augment=True)
    found = method.step(tiny_batch(TASK), Progress(0, 10, 5))
    found.loss.backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_only_the_second_network_maps_its_features_and_the_mean_is_shipped():
    method = Ccvc(TASK, builder())
    assert method.net_a.decoder.mapping is None
    assert method.net_b.decoder.mapping is not None
    assert list(method.predictors()) == ["mean", "net_a", "net_b"]


def test_other_decoders_get_the_mapping_before_them_unless_a_bottleneck_is_there():
    method = Ccvc(TASK, tiny_builder(TASK))
    assert method.net_a.bottleneck is None
    assert isinstance(method.net_b.bottleneck, Mapping)
    section = {**DEEPLAB, "decoder": {"name": "segformer", "embedding": 8}, "bottleneck": {"name": "allspark"}}
    with pytest.raises(RecipeError, match=r"model\.bottleneck=null"):
        Ccvc(TASK, Builder(ModelRecipe.model_validate(section), TASK, crop=32))


class OneMap(Encoder):
    """A single map of stride 8, as of a network that has no low-level one.

    Args:
        in_channels: bands of the image.
        weights: there are none.
    """

    def __init__(self, *, in_channels: int = 3, weights: str | None = None) -> None:
        super().__init__()
        self.channels, self.strides = (8,), (8,)
        self.mean, self.std = (0.5,) * in_channels, (0.25,) * in_channels
        self.stem = torch.nn.Conv2d(in_channels, 8, 8, stride=8)

    def forward(self, image):
        return [self.stem(image)]


@pytest.mark.parametrize("decoder", [DEEPLAB["decoder"], {"name": "segformer", "embedding": 8}])
def test_networks_without_a_low_level_map_take_the_mapping_too(decoder):
    section = {"encoder": {"name": f"{__name__}:OneMap"}, "decoder": decoder}
    method = Ccvc(TASK, Builder(ModelRecipe.model_validate(section), TASK, crop=32)).train()
    method.step(tiny_batch(TASK), Progress(3, 8, 4)).loss.backward()
    for net in (method.net_a, method.net_b):
        assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
    names = [{name for name, _ in net.named_parameters()} for net in (method.net_a, method.net_b)]
    assert any("mapping" in name or "bottleneck" in name for name in names[1] - names[0])
